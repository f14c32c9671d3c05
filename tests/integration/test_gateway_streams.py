"""Streams that outlive what they hang on: cut clients, dying orchestrators, draining gateways, slow readers."""

import asyncio

import aiohttp
import openai
import orjson
import pytest

from services.common import testing
from services.common.rpc import channel
from services.gateway import fakes
from services.gateway.fakes import frames_of


@pytest.fixture
async def serve(identities, state_url):
    """Starts gateways over fakes with the given settings, and a client for each."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:

        async def start(**settings):
            served = await stack.enter_async_context(fakes.gateway(identities, state_url, **settings))
            http = await stack.enter_async_context(aiohttp.ClientSession(served.url, headers=served.headers()))
            return served, http

        yield start


async def run_of(http, agent, thread="t", **body):
    async with http.post(f"/v1/threads/{thread}/runs", json={"input": "one two three", "agent": agent, **body}) as response:
        assert response.status == 202, await response.text()
        return (await response.json())["run_id"]


async def test_cut_at_every_event_the_rest_is_the_rest(serve):
    _, http = await serve()
    run_id = await run_of(http, "tools")
    for path in (f"/v1/runs/{run_id}/events", "/replay/t"):
        async with http.get(path, headers={"accept": "text/event-stream"}) as response:
            whole = await frames_of(response)
        assert len(whole) > 5
        for cut in range(len(whole)):
            async with http.get(path, headers={"accept": "text/event-stream"}) as response:
                head = await frames_of(response, until=lambda found, cut=cut: len(found) > cut)
            last_id = str(head[-1][0])
            async with http.get(path, headers={"accept": "text/event-stream", "last-event-id": last_id}) as response:
                tail = await frames_of(response)
            assert head + tail == whole
            async with http.get(f"{path}?after={last_id}", headers={"accept": "text/event-stream"}) as response:
                assert await frames_of(response) == tail


async def test_a_watcher_does_not_notice_that_orchestrators_break_its_stream(serve):
    served, http = await serve(replicas=2, cut_after=3)
    run_id = await run_of(http, "slow")
    async with http.get(f"/v1/runs/{run_id}/events") as response:
        events = await frames_of(response)
    assert [e[0] for e in events] == list(range(1, 44))
    assert events[-1][1] == "run_finished"
    assert len(served.calls("StreamEvents")) > 10


async def test_a_watcher_does_not_notice_that_an_orchestrator_ends(serve):
    served, _ = await serve(replicas=2)
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
    stream = await client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "x"}], stream=True)
    text = ""
    async for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        if text == "w0 w1 w2 ":
            busy = next(n for n, replica in enumerate(served.replicas) if replica.open_streams)
            served.stops[busy].set()
    await client.close()
    assert text.split() == [f"w{n}" for n in range(40)]
    assert len(served.calls("StreamEvents")) == 2


async def test_a_watcher_does_not_notice_that_the_addresses_of_orchestrators_change(serve, monkeypatch):
    monkeypatch.setattr(channel, "RETIRE_AFTER_S", 0.1)
    served, http = await serve(replicas=2)
    run_id = await run_of(http, "hang")
    said = {"model": "hang", "messages": [{"role": "user", "content": "x"}]}
    watching = asyncio.ensure_future(http.get(f"/v1/runs/{run_id}/events"))
    answering = asyncio.ensure_future(answered(http, said))

    async def opened(times):
        # Whoever calls next is given the new channel.
        async with http.get(f"/v1/runs/{run_id}") as response:
            return response.status == 200 and len(served.calls("StreamEvents")) == times

    await testing.eventually_async(lambda: opened(2), "both follow their runs")
    behind = orjson.loads(served.settings.address_file.read_bytes())
    served.settings.address_file.write_bytes(orjson.dumps({**behind, "orchestrator": behind["orchestrator"][:1]}))
    await testing.eventually_async(lambda: opened(4), "both follow their runs on the new channel")
    for run in served.log.runs.values():
        run.cancelled.set()
    async with await watching as response:
        assert (await frames_of(response))[-1][1] == "run_cancelled"
    assert (await answering)["error"]["code"] == "run_cancelled"


async def answered(http, said):
    async with http.post("/v1/chat/completions", json=said) as response:
        return await response.json()


async def test_when_nobody_serves_the_log_the_watcher_is_told(serve):
    served, http = await serve(stream_reconnect_s=0.3)
    run_id = await run_of(http, "hang")
    async with http.get(f"/v1/runs/{run_id}/events") as response:
        await frames_of(response, until=lambda found: found[-1][1] == "message_delta")
        served.stops[0].set()
        rest = await frames_of(response)
    assert [e[1] for e in rest] == ["stream_error"]
    assert rest[0][2]["retryable"] is True


@pytest.mark.parametrize("leaving", ["continue", "cancel"])
@pytest.mark.parametrize("how", ["started", "watched"])
async def test_a_client_that_leaves_cancels_only_when_it_said_so(serve, leaving, how):
    served, http = await serve(sse_heartbeat_s=15)
    if how == "started":
        body = {"input": "x", "agent": "hang", "stream": True, "on_disconnect": leaving}
        response = await http.post("/v1/threads/t/runs", json=body)
    else:
        run_id = await run_of(http, "hang")
        response = await http.get(f"/v1/runs/{run_id}/events?on_disconnect={leaving}")
    await frames_of(response, until=lambda found: found[-1][1] == "message_delta")
    run = served.log.newest()
    response.close()
    if leaving == "cancel":
        # No event comes to write meanwhile, and the heartbeat is far away: only the closed connection tells.
        await asyncio.wait_for(run.cancelled.wait(), 5)
        assert served.calls("CancelRun")
    await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go of the log")
    assert run.cancelled.is_set() is (leaving == "cancel")


async def test_a_client_that_waits_for_the_end_and_leaves_cancels_too(serve):
    served, http = await serve()
    body = {"input": "x", "agent": "hang", "on_disconnect": "cancel"}
    waiting = asyncio.create_task(http.post("/v1/threads/t/runs", json=body, headers={"prefer": "wait=60"}))
    await testing.eventually_async(lambda: served.calls("WaitRun"), "the gateway waits")
    waiting.cancel()
    await asyncio.wait_for(served.log.newest().cancelled.wait(), 5)


async def test_a_drain_closes_resumable_streams_at_once_and_lets_answers_end(serve):
    served, http = await serve(drain_grace_s=60)
    hanging = await run_of(http, "hang", on_disconnect="cancel")
    watcher = await http.get(f"/v1/runs/{hanging}/events?on_disconnect=cancel")
    await frames_of(watcher, until=lambda found: found[-1][1] == "message_delta")
    body = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "stream": True}
    answering = await http.post("/v1/chat/completions", json=body)
    served.stops[-1].set()
    async with asyncio.timeout(20):
        rest = await watcher.text()
    assert rest.startswith("retry: ")
    assert (await answering.text()).endswith("data: [DONE]\n\n")
    # The gateway's own going is no client's leaving.
    assert not served.log.runs[("acme", hanging)].cancelled.is_set()


async def test_a_drain_tells_answers_that_cannot_end_in_time(serve):
    served, http = await serve(drain_grace_s=1.2)
    body = {"model": "hang", "messages": [{"role": "user", "content": "x"}], "stream": True}
    answering = await http.post("/v1/chat/completions", json=body)
    served.stops[-1].set()
    rest = await answering.text()
    assert '"code":"draining"' in rest
    assert "[DONE]" not in rest


async def test_streams_end_at_their_age_and_when_the_given_time_is_over(serve):
    served, http = await serve(stream_max_age_s=0.5)
    run_id = await run_of(http, "hang")
    for headers in ({}, {"x-request-timeout-ms": "200"}):
        async with http.get(f"/v1/runs/{run_id}/events", headers=headers) as response:
            assert (await response.text()).endswith("resume from the last id\n\n")
    assert not served.log.newest().cancelled.is_set()


async def test_a_reader_that_stops_reading_is_closed(serve):
    served, http = await serve(slow_reader_s=0.3, sse_heartbeat_s=0.1)
    run_id = await run_of(http, "flood")
    reader, writer = await asyncio.open_connection("127.0.0.1", served.settings.http_port, limit=1024)
    writer.write(f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await testing.eventually_async(lambda: served.calls("StreamEvents"), "the stream is open")
    await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go", 20)
    writer.close()


async def test_readiness_names_what_is_down_and_liveness_stays(serve):
    served, http = await serve()

    async def ready():
        async with http.get("/ready") as response:
            return response.status, await response.json()

    async def is_ready():
        return (await ready())[0] == 200

    await testing.eventually_async(is_ready, "ready")
    served.stops[0].set()

    async def is_down():
        status, body = await ready()
        return status == 503 and set(body["failing"]) == {"orchestrator"}

    await testing.eventually_async(is_down, "not ready, for the orchestrator")
    async with http.get("/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    async with http.get("/v1/agents") as response:
        assert response.status == 503
        assert (await response.json())["service"] == "orchestrator"
