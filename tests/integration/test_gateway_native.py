"""The native API over real HTTP and real gRPC, with an orchestrator in memory."""

import asyncio

import pytest
import pytest_asyncio

from services.common import testing
from services.gateway import fakes
from services.gateway.fakes import frames_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server):
    async with fakes.gateway(identities, _state_server, sse_heartbeat_s=0.2) as gateway:
        yield gateway


async def start(http, thread, text="hello", **body):
    async with http.post(f"/v1/threads/{thread}/runs", json={"input": text, **body}) as response:
        assert response.status == 202, await response.text()
        return await response.json()


async def test_a_run_is_accepted_followed_and_read_again(ana):
    async with ana.post("/v1/threads/t-first/runs", json={"input": "hello there"}) as response:
        assert response.status == 202, await response.text()
        run = await response.json()
        assert response.headers["location"] == f"/v1/runs/{run['run_id']}"
    async with ana.get(f"/v1/runs/{run['run_id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
        events = await frames_of(response)
    assert events[-1][1] == "run_finished"
    assert [e[0] for e in events] == list(range(1, len(events) + 1))
    for seq, kind, data in events:
        assert (data["seq"], data["type"], data["thread_id"], data["run_id"]) == (seq, kind, "t-first", run["run_id"])
        assert data["provisional"] is (kind == "message_delta")
    async with ana.get(f"/v1/runs/{run['run_id']}") as response:
        found = await response.json()
    assert (found["status"], found["output_text"]) == ("succeeded", "You said: hello there")


@pytest.mark.parametrize("how", ["body", "accept"])
async def test_a_run_can_be_streamed_by_the_request_that_starts_it(ana, how):
    body = {"input": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]}
    asked = {"json": {**body, "stream": True}} if how == "body" else {"json": body, "headers": {"accept": "text/event-stream"}}
    async with ana.post(f"/v1/threads/t-stream-{how}/runs", **asked) as response:
        assert response.status == 200
        events = await frames_of(response)
        assert response.headers["location"] == f"/v1/runs/{events[0][2]['run_id']}"
    assert [e[1] for e in events[:2]] == ["run_queued", "run_started"]
    assert events[-1][2]["data"]["output_text"] == "You said: hi"


async def test_limits_and_labels_reach_the_orchestrator(ana, front):
    limits = {"deadline_ms": 1500, "max_steps": 3, "max_tool_calls": 4, "max_cost_microusd": 5}
    await start(ana, "t-limits", limits=limits, metadata={"a": "b"}, run_id="run-mine", agent="assistant", temperature=0, max_tokens=9)
    request = front.log.runs[("acme", "run-mine")].request
    assert (request.limits.deadline.ToMilliseconds(), request.limits.max_steps) == (1500, 3)
    assert (request.limits.max_tool_calls, request.limits.max_cost_microusd) == (4, 5)
    assert (dict(request.metadata), request.temperature, request.HasField("temperature"), request.max_tokens) == ({"a": "b"}, 0, True, 9)
    await start(ana, "t-limits")
    assert not front.log.newest().request.HasField("temperature")


async def test_prefer_wait_answers_the_end_or_what_is_known(ana):
    async with ana.post("/v1/threads/t-wait/runs", json={"input": "x"}, headers={"prefer": "wait=20"}) as response:
        assert (response.status, response.headers["preference-applied"]) == (200, "wait=20")
        assert (await response.json())["output_text"] == "You said: x"
    async with ana.post("/v1/threads/t-wait/runs", json={"input": "x", "agent": "hang"}, headers={"prefer": "wait=1"}) as response:
        assert response.status == 202
        run = await response.json()
    assert run["status"] == "running"
    async with ana.post(f"/v1/runs/{run['run_id']}/cancel?wait=true", json={"reason": "enough"}) as response:
        assert response.status == 200
        cancelled = await response.json()
    assert (cancelled["cancel_requested"], cancelled["run"]["status"]) == (True, "cancelled")


async def test_a_cancel_before_the_start_holds(ana, front):
    async with ana.post("/v1/runs/run-later/cancel") as response:
        assert response.status == 202
        assert await response.json() == {"run_id": "run-later", "cancel_requested": True, "run": None}
    await start(ana, "t-tomb", agent="hang", run_id="run-later")
    await testing.eventually_async(lambda: front.log.runs[("acme", "run-later")].run.terminal_seq, "cancelled")


async def test_the_same_idempotency_key_answers_the_same_run(ana):
    async def once():
        headers = {"idempotency-key": "key-1"}
        async with ana.post("/v1/threads/t-idem/runs", json={"input": "once"}, headers=headers) as response:
            return (await response.json())["run_id"], response.headers.get("idempotent-replayed")

    first, second = await once(), await once()
    assert first[0] == second[0]
    assert (first[1], second[1]) == (None, "true")


async def test_lists_are_paged_with_opaque_cursors_and_links(ana):
    for number in range(5):
        await start(ana, "t-pages", f"n{number}")
    seen, path = [], "/v1/threads/t-pages/runs?limit=2"
    while path:
        async with ana.get(path) as response:
            page = await response.json()
            seen += [run["run_id"] for run in page["data"]]
            link = response.links.get("next")
            assert bool(link) is bool(page["next_after"])
            path = str(link["url"].relative()) if link else None
    assert len(seen) == len(set(seen)) == 5


async def test_threads_are_made_read_and_listed(ana):
    async with ana.post("/v1/threads", json={"thread_id": "t-made", "metadata": {"k": "v"}}) as response:
        assert (response.status, response.headers["location"]) == (201, "/v1/threads/t-made")
    async with ana.post("/v1/threads") as response:
        assert response.status == 201
        assert (await response.json())["thread_id"]
    async with ana.get("/v1/threads/t-made") as response:
        assert (await response.json())["metadata"] == {"k": "v"}
    async with ana.get("/v1/threads?limit=1000") as response:
        assert "t-made" in [thread["thread_id"] for thread in (await response.json())["data"]]


async def test_a_silent_stream_shows_life_at_once_and_then_by_heartbeats(ana):
    run = await start(ana, "t-silent", agent="silent")
    async with ana.get(f"/v1/runs/{run['run_id']}/events") as response:
        text = ""
        while text.count(": heartbeat") < 2:
            text += (await response.content.readany()).decode()
    assert text.startswith("retry: ")


async def test_a_thread_is_followed_across_its_runs(ana):
    await start(ana, "t-follow", "one")
    async with ana.get("/v1/threads/t-follow/events") as response:
        await start(ana, "t-follow", "two")
        events = await frames_of(response, until=lambda found: sum(e[1] == "run_finished" for e in found) == 2)
    assert [e[0] for e in events] == list(range(1, len(events) + 1))


async def test_replay_is_the_whole_log_as_json_and_as_events(ana):
    run = await start(ana, "t-replay", "again")
    async with ana.get(f"/v1/runs/{run['run_id']}/events") as response:
        live = [e[2] for e in await frames_of(response)]
    async with ana.get("/replay/t-replay") as response:
        assert response.headers["content-type"] == "application/json"
        assert await response.json() == {"thread_id": "t-replay", "events": live}
    async with ana.get("/replay/t-replay?after=2") as response:
        assert (await response.json())["events"] == live[2:]
    async with ana.get("/replay/t-replay", headers={"accept": "text/event-stream"}) as response:
        assert [e[2] for e in await frames_of(response)] == live


async def test_a_replay_keeps_the_pace_of_the_log(ana, front):
    run = await start(ana, "t-pace", agent="slow")
    await testing.eventually_async(lambda: front.log.runs[("acme", run["run_id"])].run.terminal_seq, "ended")
    events = front.log.events[("acme", "t-pace")]
    lasted = (events[-1].occurred_at.ToNanoseconds() - events[0].occurred_at.ToNanoseconds()) / 1e9
    clock = asyncio.get_running_loop().time
    for speed in (2, 1000):
        begun = clock()
        async with ana.get(f"/replay/t-pace?speed={speed}", headers={"accept": "text/event-stream"}) as response:
            assert len(await frames_of(response)) == len(events)
        took = clock() - begun
        assert took >= lasted / speed
        if speed == 2:
            slow = took
    assert took < slow


async def test_a_chat_keeps_its_session(ana, front):
    async with ana.post("/v1/agents/tools/chat", json={"user_input": "how much?"}) as response:
        assert response.status == 200
        first = await response.json()
    assert (first["result"], first["status"]) == ("It is 42 [c1].", "succeeded")
    assert first["citations"][0]["citation_id"] == "c1"
    assert first["warnings"][0]["code"] == "memory_unavailable"
    assert first["usage"]["input_tokens"] == 7
    assert first["latency_ms"] >= 0
    async with ana.post("/v1/agents/tools/chat", json={"user_input": "and?", "session_id": first["session_id"]}) as response:
        second = await response.json()
    assert second["session_id"] == first["session_id"]
    assert front.log.newest().request.thread_id == first["session_id"]


async def test_a_chat_that_fails_or_takes_too_long_says_so(ana):
    async with ana.post("/v1/agents/fail/chat", json={"user_input": "OVERLOADED"}) as response:
        assert response.status == 503
        problem = await response.json()
    assert (problem["reason"], problem["retryable"]) == ("OVERLOADED", True)
    assert problem["run_id"].startswith("run_")
    headers = {"x-request-timeout-ms": "300"}
    async with ana.post("/v1/agents/hang/chat", json={"user_input": "x"}, headers=headers) as response:
        assert response.status == 202
        answer = await response.json()
        assert response.headers["location"] == f"/v1/runs/{answer['run_id']}"
    assert answer["status"] == "running"


async def test_documents_are_taken_as_json_and_as_text_found_and_deleted(ana):
    body = {"title": "Harbour", "content_type": "text/plain", "text": "The lighthouse is 42 m tall.", "document_id": "harbour"}
    for status in (201, 200):
        async with ana.post("/v1/documents", json=body) as response:
            assert response.status == status, await response.text()
    markdown = {"data": b"# Tide table\n\nHigh water at noon.", "headers": {"content-type": "text/markdown; charset=utf-8"}}
    async with ana.post("/v1/documents", **markdown) as response:
        assert (await response.json())["title"] == "Tide table"
    async with ana.get("/v1/documents") as response:
        assert {d["document_id"] for d in (await response.json())["data"]} >= {"harbour", "tide-table"}
    async with ana.post("/v1/documents/search", json={"query": "lighthouse"}) as response:
        assert (await response.json())["data"][0]["citation"]["document_id"] == "harbour"
    async with ana.delete("/v1/documents/harbour") as response:
        assert response.status == 204
    async with ana.delete("/v1/documents/harbour") as response:
        assert response.status == 404


async def test_memories_are_kept_found_and_deleted(ana):
    body = {"text": "Ana likes tea.", "importance": 0.9, "expires_at": "2099-01-01T00:00:00Z"}
    async with ana.post("/v1/memories", json=body) as response:
        assert response.status == 201, await response.text()
        memory = await response.json()
    async with ana.get(f"/v1/memories/{memory['memory_id']}") as response:
        assert (await response.json())["text"] == "Ana likes tea."
    async with ana.post("/v1/memories/search", json={"query": "tea"}) as response:
        assert (await response.json())["data"][0]["memory_id"] == memory["memory_id"]
    async with ana.get("/v1/memories") as response:
        assert len((await response.json())["data"]) == 1
    async with ana.delete(f"/v1/memories/{memory['memory_id']}") as response:
        assert response.status == 204
    async with ana.get(f"/v1/memories/{memory['memory_id']}") as response:
        assert response.status == 404


async def test_agents_and_tools_are_listed(ana):
    async with ana.get("/v1/agents") as response:
        assert (await response.json())["data"][0]["name"] == "assistant"
    async with ana.get("/v1/agents/hang") as response:
        assert (await response.json())["name"] == "hang"
    async with ana.get("/v1/tools") as response:
        assert (await response.json())["data"][0]["input_schema"] == {"type": "object"}


async def test_what_one_tenant_has_another_cannot_see(ana, front):
    run = await start(ana, "t-private", "secret")
    other = {"authorization": f"Bearer {await front.issue('globex')}"}
    paths = [
        "/v1/threads/t-private", f"/v1/runs/{run['run_id']}", f"/v1/runs/{run['run_id']}/events", "/v1/threads/t-private/events",
        "/v1/threads/t-private/runs", "/replay/t-private",
    ]  # fmt: skip
    for path in paths:
        async with ana.get(path, headers=other) as response:
            assert response.status == 404, path
            assert "secret" not in await response.text()
    async with ana.get("/v1/runs", headers=other) as response:
        assert (await response.json())["data"] == []
