"""Who may open `/ws`, and how a connection ends: floods, slow and dead clients, idleness, age, drains."""

import asyncio
from contextlib import AsyncExitStack

import pytest
import yaml

from services.common import testing
from services.gateway import fakes
from services.gateway.surfaces.websocket import wire
from tests.integration.oidc_issuer import idp
from tests.integration.websocket_client import frame, raw, refused, talk, watched

MODULE = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _short_goodbyes(monkeypatch):
    """Clients of these tests that were thrown out wait for the end of the connection, and answer nothing."""
    monkeypatch.setattr(wire, "CUT_S", 0.1)


@pytest.fixture
async def serve(identities, state_url):
    """Starts gateways over fakes with the given settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings):
            return await stack.enter_async_context(fakes.gateway(identities, state_url, **settings))

        yield start


async def test_pages_of_other_origins_may_not_connect(serve):
    served = await serve(websocket_origins="https://app.example.com, https://other.example.com")
    own = served.url.removeprefix("http://")
    for origin in (f"http://{own}", f"https://{own}", "https://app.example.com"):
        async with talk(served, headers={"origin": origin}):
            pass
    for origin in ("https://evil.example.com", "null", "http://127.0.0.1:1", f"http://{own}.evil.example.com", "http://[", ""):
        assert await refused(served, headers={"origin": origin}) == (403, "ORIGIN_NOT_ALLOWED"), origin
    anyone = await serve(websocket_origins="*")
    async with talk(anyone, headers={"origin": "https://evil.example.com"}):
        pass


async def test_the_connection_and_each_command_count_against_the_limits_of_the_tier(serve):
    served = await serve(policy_set="prod")
    key = await served.issue(user="poor", tier="free")
    async with talk(served, key=key) as ws:
        left = ws.connection.response.headers["ratelimit"]
        assert left.startswith('"requests_per_minute";r=19'), left
        for number in range(19):
            assert (await ws.ask("cancel", run_id=f"r{number}"))["type"] == "ack"
        problem = (await ws.ask("cancel", run_id="r19"))["problem"]
        assert (problem["status"], problem["policy"]) == (429, "requests_per_minute")
        assert await refused(served, key=key) == (429, "QUOTA_EXCEEDED")


async def test_commands_beyond_the_pace_are_refused_with_a_time_and_a_flood_ends_the_connection(serve):
    served = await serve(websocket_commands_per_s=5.0)
    async with talk(served) as ws:
        ids = [await ws.send("cancel", run_id=f"r{number}") for number in range(12)]
        answers = [await ws.answer(one) for one in ids]
        assert [answer["type"] for answer in answers[:10]] == ["ack"] * 10
        problem = answers[-1]["problem"]
        assert (problem["status"], problem["reason"], problem["policy"]) == (429, "QUOTA_EXCEEDED", "websocket_commands_per_s")
        assert problem["retry_after_ms"] > 0
        for _ in range(60):
            await ws.connection.send("no command")
        assert await ws.rest() == 1008
        assert ws.closing["reason"] == "flood"
    assert len(served.calls("CancelRun")) < 20


async def test_a_large_command_counts_as_several_whatever_is_in_it(serve):
    served = await serve(websocket_commands_per_s=5.0)
    async with talk(served) as ws:
        # Of the ten that may come at once each of these is seven.
        for _ in range(4):
            await ws.connection.send("x" * 450_000)
        for _ in range(4):
            assert (await ws.answer(None))["problem"]["reason"] == "INVALID_JSON"
        problem = (await ws.ask("cancel", run_id="r"))["problem"]
        assert (problem["status"], problem["policy"]) == (429, "websocket_commands_per_s")
        assert problem["retry_after_ms"] > 0


async def test_a_message_that_is_too_large_ends_the_connection_and_a_large_one_is_taken(serve):
    served = await serve(websocket_message_bytes=64 * 1024)
    async with talk(served) as ws:
        ack = await ws.ask("start", thread_id="t", agent="tools", input="x" * 60_000)
        assert ack["type"] == "ack"
        await ws.connection.send("x" * 65_537)
        assert await ws.rest() == 1009


async def test_a_connection_has_no_more_watches_than_it_may(serve):
    served = await serve(websocket_watches=2)
    async with talk(served) as ws:
        (run_id, watch), _ = await watched(ws, "hang"), await watched(ws, "hang", "t2")
        problem = (await ws.ask("watch", run_id=run_id))["problem"]
        assert (problem["status"], problem["policy"], problem["limit"]) == (429, "websocket_watches", "2")
        assert (await ws.ask("start", thread_id="t3", input="x", watch=True))["problem"]["status"] == 429
        assert ("acme", "t3") not in served.log.threads
        await ws.ask("unwatch", watch=watch)
        assert (await ws.ask("watch", run_id=run_id))["type"] == "ack"


async def test_a_drain_says_where_to_go_on_and_to_come_back_at_once(serve):
    served = await serve(drain_grace_s=30)
    async with talk(served) as ws:
        run_id, watch = await watched(ws, "hang")
        cancels = (await ws.ask("watch", run_id=run_id, on_disconnect="cancel"))["id"]
        await ws.until(lambda: len(ws.events.get(watch, ())) == len(ws.events.get(cancels, ())) == 3)
        served.stops[-1].set()
        assert await ws.rest() == 1012
    assert (ws.closing["reason"], ws.closing["reconnect_ms"]) == ("draining", 100)
    # Each watch says its cursor once: with its own end, or with that of the connection.
    told = {one["watch"]: one for one in (*ws.closing["watches"], *ws.ended.values())}
    assert {name: (one["run_id"], one["after"]) for name, one in told.items()} == {watch: (run_id, 3), cancels: (run_id, 3)}
    # The gateway's own going is no client's leaving.
    assert not served.log.runs[("acme", run_id)].cancelled.is_set()


async def test_idle_and_old_connections_are_closed_and_those_that_watch_are_not_idle(serve):
    served = await serve(websocket_idle_s=0.3, stream_max_age_s=1.5)
    async with talk(served) as ws:
        assert await ws.rest() == 3008
        assert (ws.closing["reason"], ws.closing["reconnect_ms"]) == ("idle", None)
    async with talk(served) as ws:
        run_id, watch = await watched(ws, "hang", on_disconnect="cancel")
        assert await ws.rest() == 1001
        assert ws.closing["reason"] == "too_old"
        told = {one["watch"]: one for one in (*ws.closing["watches"], *ws.ended.values())}
        assert told[watch]["after"] == 3
    await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go of the log")
    async with talk(served) as ws:
        # What was sent to the orchestrator before is there when this is answered.
        await ws.ask("cancel", run_id="run-other")
    assert not served.log.runs[("acme", run_id)].cancelled.is_set()


async def test_a_client_that_reads_no_more_is_let_go_and_one_that_wakes_reads_where_to_go_on(serve, monkeypatch):
    monkeypatch.setattr(wire, "CUT_S", 20.0)
    served = await serve(slow_reader_s=0.3)
    # So little is buffered by the client that the server is behind at once; then it reads on.
    async with talk(served, max_queue=1) as ws:
        _, watch = await watched(ws, "flood")
        await testing.eventually_async(lambda: served.replicas[0].open_streams == 1, "the log is read")
        await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go", 20)
        assert await ws.rest() == 3008
        assert ws.closing["reason"] == "slow_reader"
        told = {one["watch"]: one for one in (*ws.closing["watches"], *ws.ended.values())}
        assert told[watch]["after"] == ws.events[watch][-1]["seq"]
        assert not served.log.newest().cancelled.is_set()


async def test_a_client_that_never_reads_again_is_cut_off(serve, monkeypatch):
    served, lost, end = await serve(slow_reader_s=0.3), asyncio.Event(), wire.WebSocketWire.connection_lost
    monkeypatch.setattr(wire.WebSocketWire, "connection_lost", lambda connection, error: (end(connection, error), lost.set()))
    async with raw(served) as (_, writer):
        writer.write(frame(1, b'{"id":"a","type":"start","thread_id":"t","agent":"flood","input":"x","watch":true}'))
        await testing.eventually_async(lambda: served.calls("StreamEvents"), "the stream is open")
        await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go", 20)
        # What was written for the client is given up: it need not take it first.
        await asyncio.wait_for(lost.wait(), 10)


async def test_a_half_open_connection_ends_when_its_pings_are_not_answered(serve):
    served = await serve(websocket_ping_s=0.2)
    async with talk(served) as ws:
        _, watch = await watched(ws, "hang")
        async with raw(served) as (_, writer):
            writer.write(frame(1, b'{"id":"a","type":"watch","thread_id":"t"}'))
            await testing.eventually_async(lambda: served.replicas[0].open_streams == 2, "both are watched")
            await testing.eventually_async(lambda: served.replicas[0].open_streams == 1, "the dead one is let go")
        # The library answers pings by itself.
        assert (await ws.ask("unwatch", watch=watch))["type"] == "ack"


async def test_when_nobody_serves_the_log_the_watch_says_so_and_the_connection_stays(serve):
    served = await serve(stream_reconnect_s=0.3)
    async with talk(served) as ws:
        _, watch = await watched(ws, "hang")
        await ws.until(lambda: len(ws.events.get(watch, ())) == 3)
        served.stops[0].set()
        await ws.until(lambda: watch in ws.ended)
        told = ws.ended[watch]
        assert (told["reason"], told["after"], told["error"]["retryable"]) == ("failed", 3, True)
        assert (await ws.ask("cancel", run_id="r"))["problem"]["status"] == 503


async def test_a_page_connects_with_the_token_of_an_issuer_and_each_command_asks_for_its_scopes(serve, tmp_path):
    (tmp_path / "policies.yaml").write_text("sets: {test: {free: {requests_per_minute: 1000}}}")
    async with idp() as issuer:
        who = {
            "issuer": issuer.url,
            "jwks_url": issuer.jwks_url,
            "audiences": ["bulkhead"],
            "tenant": "acme",
            "scopes": {"chat": ["runs:write"]},
        }
        (tmp_path / "oidc.yaml").write_text(yaml.safe_dump({"issuers": [who]}))
        served = await serve(config_dir=tmp_path)
        token = f"bulkhead.bearer.{issuer.token(scope='chat')}"
        async with talk(served, key="", subprotocols=["bulkhead.v1", token]) as ws:
            assert (await ws.ask("cancel", run_id="r"))["type"] == "ack"
            assert (await ws.ask("watch", run_id="r"))["problem"]["missing_scopes"] == "runs:read"
        assert (await refused(served, key="", subprotocols=["bulkhead.v1", token[:-4]]))[0] == 401
