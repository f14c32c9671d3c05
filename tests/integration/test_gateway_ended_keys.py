"""What is open when its key ends: streams of every surface and WebSockets are told so soon, and go on elsewhere where they were."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import openai
import orjson
import pytest
import structlog

from services.common import testing
from services.common.accounts import Accounts
from services.common.errors import Overloaded, Unauthenticated
from services.gateway import fakes
from services.gateway.edge import standing
from services.gateway.edge.standing import Standing
from services.gateway.fakes import frames_of
from tests.integration.oidc_issuer import idp
from tests.integration.test_gateway_oidc import entry, write
from tests.integration.websocket_client import talk, watched

SAID = {"messages": [{"role": "user", "content": "x"}]}
AG_UI = {"threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [], "forwardedProps": {}}


@pytest.fixture
def soon(monkeypatch):
    """Credentials are looked at again after a moment."""
    monkeypatch.setattr(standing, "LOOK_EVERY_S", 0.1)


@pytest.fixture
async def served(identities, state_url, soon):
    """A gateway with its accounts."""
    async with fakes.gateway(identities, state_url) as made:
        yield made


@asynccontextmanager
async def as_holder(served, secret):
    async with aiohttp.ClientSession(served.url, headers={"authorization": f"Bearer {secret}"}) as http:
        yield http


async def key_of(served, **more):
    return await served.accounts.create_key(tenant="acme", user="ana", tier="enterprise", scopes=("*",), **more)


async def ended_by(served, issued, how):
    """Ends the key as `how` says."""
    key_id = issued.record.key_id
    if how == "deleted":
        await served.accounts.revoke("acme", key_id)
    elif how == "blocked":
        await served.accounts.keys.update(key_id, "acme", lambda old: replace(old, blocked=True))
    elif how == "replaced":
        await served.accounts.keys.rotate(key_id, "acme")
    else:
        await served.accounts.keys.update(key_id, "acme", lambda old: replace(old, expires_at=time.time() + 0.2))


REASONS = {"deleted": "INVALID_API_KEY", "blocked": "BLOCKED_API_KEY", "replaced": "INVALID_API_KEY", "expired": "EXPIRED_API_KEY"}


@pytest.mark.parametrize("how", REASONS)
async def test_a_stream_of_events_ends_with_the_reason_and_goes_on_behind_its_last_event_with_another_key(served, how):
    issued = await key_of(served)
    async with as_holder(served, issued.secret) as http:
        async with http.post("/v1/threads/t/runs", json={"input": "x", "agent": "hang"}) as response:
            run_id = (await response.json())["run_id"]
        async with http.get(f"/v1/runs/{run_id}/events?on_disconnect=cancel") as response:
            seen = await frames_of(response, until=lambda found: found[-1][1] == "message_delta")
            await ended_by(served, issued, how)
            (last,) = await frames_of(response)
    assert (last[1], last[2]["reason"], last[2]["retryable"]) == ("stream_error", REASONS[how], False)
    # The run is nobody's mistake: it goes on, and so does whoever may follow it.
    assert not served.log.newest().cancelled.is_set()
    async with as_holder(served, served.key) as http:
        async with http.get(f"/v1/runs/{run_id}/events", headers={"last-event-id": str(seen[-2][0])}) as response:
            assert await frames_of(response, until=lambda found: len(found) == 1) == seen[-1:]
    await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go of the log")


async def test_answers_that_are_streamed_end_with_the_error_of_their_surface(served):
    issued = await key_of(served)
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=issued.secret, max_retries=0)
    chat = await client.chat.completions.create(model="hang", stream=True, **SAID)
    response = await client.responses.create(model="hang", stream=True, input="x")
    await anext(aiter(chat))
    await anext(aiter(response))
    async with as_holder(served, issued.secret) as http:
        body = {**AG_UI, "messages": [{"id": "m", "role": "user", "content": "x"}]}
        async with http.post("/ag-ui/hang", json=body) as ag_ui:
            assert ag_ui.status == 200, await ag_ui.text()
            await ended_by(served, issued, "deleted")
            told = (await ag_ui.text()).strip().rpartition("data: ")[2]
    assert (orjson.loads(told)["type"], orjson.loads(told)["code"]) == ("RUN_ERROR", "INVALID_API_KEY")
    for stream in (chat, response):
        with pytest.raises(openai.APIError, match="the API key is not valid") as told:
            async for _ in stream:
                pass
        assert told.value.code == "invalid_api_key"
    await client.close()


async def test_a_websocket_ends_with_the_cursors_of_its_watches_and_an_idle_one_too(served):
    issued = await key_of(served)
    async with talk(served, key=issued.secret) as ws, talk(served, key=issued.secret) as idle, talk(served) as other:
        run_id, watch = await watched(ws, "hang")
        await ws.until(lambda: any(event["type"] == "message_delta" for event in ws.events.get(watch, ())))
        seen = ws.events[watch][-1]["seq"]
        await ended_by(served, issued, "deleted")
        for one in (ws, idle):
            assert await one.rest() == 3000
            assert (one.closing["reason"], one.closing["reconnect_ms"]) == ("unauthenticated", None)
        cursors = ws.closing["watches"] or [ws.ended[watch]]
        assert [(one["run_id"], one["after"]) for one in cursors] == [(run_id, seen)]
        assert not served.log.newest().cancelled.is_set()
        assert (await other.ask("cancel", run_id=run_id))["type"] == "ack"


async def test_a_token_of_an_issuer_ends_its_streams_at_its_end(identities, state_url, tmp_path, soon):
    async with idp() as issuer:
        config = write(tmp_path, entry(issuer, clock_skew_s=1))
        async with fakes.gateway(identities, state_url, config_dir=config) as served:
            token, lasting = issuer.token(exp=int(time.time()) + 1), issuer.token()
            async with as_holder(served, token) as http, as_holder(served, lasting) as others:
                async with http.post("/v1/threads/t/runs", json={"input": "x", "agent": "hang"}) as response:
                    run_id = (await response.json())["run_id"]
                async with others.get(f"/v1/runs/{run_id}/events") as kept, http.get(f"/v1/runs/{run_id}/events") as response:
                    *_, last = await frames_of(response)
                    assert (last[1], last[2]["reason"]) == ("stream_error", "EXPIRED_TOKEN")
                    found = await frames_of(kept, until=lambda found: found[-1][1] == "message_delta")
                    assert not kept.content.at_eof()
                    assert "stream_error" not in [one[1] for one in found]


async def test_two_hundred_streams_of_a_key_are_looked_up_as_one_and_only_while_they_are_open(served, monkeypatch):
    looked = []
    resolve = Accounts.resolve

    async def counted(self, secret):
        looked.append(secret)
        return await resolve(self, secret)

    issued = await key_of(served)
    async with as_holder(served, issued.secret) as http:
        async with http.post("/v1/threads/t/runs", json={"input": "x", "agent": "hang"}) as response:
            run_id = (await response.json())["run_id"]
    headers = {"authorization": f"Bearer {issued.secret}"}
    async with aiohttp.ClientSession(served.url, headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http:
        opened = await asyncio.gather(*(http.get(f"/v1/runs/{run_id}/events") for _ in range(200)))
        monkeypatch.setattr(Accounts, "resolve", counted)
        begun = time.monotonic()
        await testing.eventually_async(lambda: len(looked) >= 5, "it is looked up again and again")
        assert len(looked) <= (time.monotonic() - begun) / standing.LOOK_EVERY_S + 2
        await ended_by(served, issued, "deleted")
        ends = await asyncio.gather(*(frames_of(one) for one in opened))
    assert {frames[-1][2]["reason"] for frames in ends} == {"INVALID_API_KEY"}
    looked.clear()
    await asyncio.sleep(3 * standing.LOOK_EVERY_S)  # what must not happen needs time not to happen
    assert looked == []


async def test_what_cannot_be_looked_up_stays_open_and_a_key_that_is_good_again_is_watched_anew(monkeypatch):
    monkeypatch.setattr(standing, "LOOK_EVERY_S", 0.01)
    answers = [Overloaded("away"), Overloaded("away"), Unauthenticated("ended"), None, None, Unauthenticated("again")]
    looked = []

    async def look(credential):
        looked.append(credential)
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    watching = Standing(look)
    with watching.watch("k") as first, watching.watch("k") as second:
        assert first is second
        assert (await asyncio.wait_for(first, 5)).message == "ended"
        assert len(looked) == 3
        with watching.watch("k") as third:
            assert (await asyncio.wait_for(third, 5)).message == "again"
    assert (len(looked), answers) == (6, [])


async def test_a_client_that_reads_nothing_is_let_go_of_when_its_key_ends(identities, state_url, monkeypatch):
    async with fakes.gateway(identities, state_url, slow_reader_s=3.0, sse_heartbeat_s=0.2) as served:
        issued = await key_of(served)
        async with as_holder(served, issued.secret) as http:
            async with http.post("/v1/threads/t/runs", json={"input": "x", "agent": "flood"}) as response:
                run_id = (await response.json())["run_id"]
        monkeypatch.setattr(standing, "LOOK_EVERY_S", 0.3)
        _, writer = await asyncio.open_connection("127.0.0.1", served.settings.http_port)
        head = f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {issued.secret}\r\n\r\n"
        writer.write(head.encode())
        await testing.eventually_async(lambda: served.replicas[0].open_streams, "the stream is open")
        await ended_by(served, issued, "deleted")
        with structlog.testing.capture_logs() as lines:
            await testing.eventually_async(lambda: said(lines)[-1:] == ["slow_reader_closed"], "it is let go of", 20)
        assert said(lines) == ["credential_ended", "slow_reader_closed"]
        writer.close()


def said(lines):
    return [line["event"] for line in lines if line["event"] in ("credential_ended", "slow_reader_closed")]
