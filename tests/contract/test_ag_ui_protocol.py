"""The AG-UI surface before an orchestrator in memory: every event held to the protocol's types and rules."""

import asyncio
from functools import partial

import orjson
import pytest

from services.common import testing
from tests.contract.ag_ui_client import Client, checked, parsed

pytestmark = pytest.mark.asyncio(loop_scope="module")
# More than a double holds.
DIGITS = b'{"n":12345678901234567890123,"to":"bob"}'
PLAN = {"version": 1, "steps": [{"title": "look", "status": "in_progress"}, {"title": "tell", "status": "pending"}]}
LATER = {"version": 2, "steps": [{"title": "look", "status": "done"}, {"title": "tell/~all", "status": "in_progress"}]}
CITED = {"citation_id": "c1", "document_id": "d", "title": "README.md", "heading": "Sums", "char_start": 0, "char_end": 9}


async def everything(run):
    """All that the log of a run may tell, twice superseded."""
    own, first = run.run.run_id, run.run.first_seq
    yield "step_started", {"step": 1, "idempotency_key": f"{own}/1", "request_digest": "0"}, False
    yield "message_delta", {"text": "Let me", "message_id": f"{own}/1"}, True
    yield "message_delta", {"text": " guess", "message_id": f"{own}/1"}, True
    yield "attempt_superseded", {"from_seq": first + 4}, False
    yield "step_started", {"step": 1, "idempotency_key": f"{own}/1", "request_digest": "0"}, False
    yield "message_delta", {"text": " see.", "message_id": f"{own}/1"}, True
    yield "message_completed", {"text": "Let me see.", "message_id": f"{own}/1"}, False
    call = {"call_id": "c1", "tool": "calculator", "version": "1.0.0", "arguments": orjson.Fragment(DIGITS)}
    yield "tool_call_started", call, False
    yield "tool_call_started", {"call_id": "c2", "tool": "ask_writer", "version": "1", "arguments": {"task": "write"}}, False
    yield "tool_call_progress", {"call_id": "c1", "percent": 10}, False
    yield "tool_call_progress", {"call_id": "c1", "percent": 90, "note": "soon"}, False
    yield "child_run_started", {"call_id": "c2", "run_id": f"{own}-child", "thread_id": "t-child", "agent": "writer"}, False
    yield "tool_call_completed", {"call_id": "c1", "tool": "calculator", "output": {"value": 42}, "duration_ms": 3}, False
    yield "child_run_finished", {"run_id": f"{own}-child", "agent": "writer", "status": "succeeded", "usage": {}}, False
    yield "tool_call_failed", {"call_id": "c2", "tool": "ask_writer", "error": {"code": "failed", "message": "no"}}, False
    yield "usage", {"step": 1, "model": "m", "provider": "p", "input_tokens": 7, "output_tokens": 5}, False
    yield "step_completed", {"step": 1, "usage": {}}, False
    yield "plan_updated", PLAN, False
    yield "warning", {"code": "memory_unavailable", "capability_lost": "long_term_memory", "user_message": "I cannot remember."}, False
    yield "steer_applied", {"number": 1, "step": 2, "text": "And be brief."}, False
    yield "plan_updated", LATER, False
    yield "guard_triggered", {"stage": "output", "action": "flag", "reason": "r"}, False
    yield "step_started", {"step": 2, "name": "tell"}, False
    yield "message_delta", {"text": "It is forty", "message_id": f"{own}/2"}, True
    yield "attempt_superseded", {"from_seq": first + 25}, False
    yield "message_delta", {"text": "It is 42", "message_id": f"{own}/2"}, True
    yield "message_delta", {"text": " [c1].", "message_id": f"{own}/2"}, True
    yield "message_completed", {"text": "It is 42 [c1].", "message_id": f"{own}/2"}, False
    yield "citation", CITED, False
    yield "usage", {"step": 2, "model": "m", "provider": "p", "input_tokens": 1, "output_tokens": 2}, False
    yield "step_completed", {"step": 2, "name": "tell", "usage": {}}, False
    yield "run_finished", {"output_text": "It is 42 [c1].", "finish_reason": "stop", "usage": {}, "citations": [CITED]}, False


async def withheld(run):
    """What was shown of an answer is taken away by what it says in the end, and a step and another agent are not at their end."""
    yield "step_started", {"step": 1}, False
    yield "child_run_started", {"call_id": "c", "run_id": f"{run.run.run_id}-child", "thread_id": "t-child", "agent": "writer"}, False
    yield "message_delta", {"text": "The secret is", "message_id": f"{run.run.run_id}/1"}, True
    yield "message_completed", {"text": "I cannot say.", "message_id": f"{run.run.run_id}/1"}, False
    await run.cancelled.wait()
    yield "run_cancelled", {"output_text": "I cannot say.", "usage": {}}, False


@pytest.fixture(scope="module")
def agents():
    return everything, withheld


def asked(run_id, text="hello", **more):
    """A RunAgentInput."""
    return {"threadId": f"t-{run_id}", "runId": run_id, "messages": [{"id": "u1", "role": "user", "content": text}], **more}


async def events_of(http, agent, body, **headers):
    """All events of one answer, checked."""
    async with http.post(
        f"/ag-ui/{agent}", json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    ) as response:
        assert response.status == 200, await response.text()
        assert response.headers["content-type"].startswith("text/event-stream")
        return checked(parsed(await response.read()))


async def events_around(http, agent, body, mark, act):
    """As `events_of`; does something when `mark` has come."""
    async with http.post(f"/ag-ui/{agent}", json=body) as response:
        before = await response.content.readuntil(mark)
        act()
        return checked(parsed(before + await response.read()))


async def _is_set(event):
    return event.is_set()


def kinds(events):
    return [event["type"] for event in events]


async def test_a_run_from_its_start_to_its_answer(http, served):
    events = await events_of(http, "assistant", asked("r-echo"))
    assert kinds(events) == [
        "RUN_STARTED", "STATE_SNAPSHOT", "TEXT_MESSAGE_START", *["TEXT_MESSAGE_CONTENT"] * 3, "TEXT_MESSAGE_END", "RUN_FINISHED",
    ]  # fmt: skip
    started = {"type": "RUN_STARTED", "threadId": "t-r-echo", "runId": "r-echo", "protocolVersion": "1.0"}
    assert {name: events[0][name] for name in started} == started
    assert all(event["timestamp"] > 1_700_000_000_000 for event in events)
    client = Client(asked("r-echo")["messages"]).take(events)
    assert [(m["role"], m["content"]) for m in client.messages] == [("user", "hello"), ("assistant", "You said: hello")]
    assert client.outcome == "success"
    assert events[-1]["result"] == {"text": "You said: hello", "finishReason": "stop", "citations": []}
    made = served.log.runs[("acme", "r-echo")].request
    assert (made.thread_id, [(m.role, m.text) for m in made.input]) == ("t-r-echo", [("user", "hello")])


async def test_everything_that_a_log_tells_becomes_an_event(http):
    body = asked("r-all")
    events = await events_of(http, "everything", body)
    client = Client(body["messages"]).take(events)
    assert {
        "STEP_STARTED", "STEP_FINISHED", "TOOL_CALL_START", "TOOL_CALL_RESULT", "STATE_DELTA", "MESSAGES_SNAPSHOT", "ACTIVITY_SNAPSHOT",
        "ACTIVITY_DELTA", "SUBAGENT_STARTED", "SUBAGENT_FINISHED", "CUSTOM",
    } <= set(kinds(events))  # fmt: skip
    roles = [message["role"] for message in client.messages]
    assert roles == ["user", "assistant", "tool", "tool", "user", "assistant"]
    assert [m.get("content") for m in client.messages] == [
        "hello", "Let me see.", '{"value":42}', '{"error":{"code":"failed","message":"no"}}', "And be brief.", "It is 42 [c1].",
    ]  # fmt: skip
    # The very digits that were approved, or would be.
    assert client.messages[1]["toolCalls"][0]["function"]["arguments"] == DIGITS.decode()
    warning = {"code": "memory_unavailable", "capability_lost": "long_term_memory", "user_message": "I cannot remember."}
    assert client.state == {"plan": LATER, "citations": [CITED], "warnings": [warning]}
    assert [name for name, _ in client.customs] == ["bulkhead.warning", "bulkhead.guard_triggered"]
    assert client.customs[0][1] == warning
    assert client.activities["r-all/c1/progress"]["percent"] == 90
    assert events[-1]["usage"] == [{"provider": "p", "model": "m", "inputTokens": 8, "outputTokens": 7, "totalTokens": 15}]
    moved = [event["delta"] for event in events if event["type"] == "STATE_DELTA"]
    assert [len(delta) for delta in moved] == [1, 1, 4, 1]


def conversation(client):
    return client.messages, client.state, client.activities, client.outcome


async def test_a_stream_that_is_cut_at_any_event_is_taken_up_where_the_run_stands(http):
    """What came before the cut, the prelude and the tail together are the uncut stream, whatever was missed meanwhile."""
    body = asked("r-cut")
    async with http.post("/ag-ui/everything", json=body) as response:
        whole = parsed(await response.read())
    final = conversation(Client(body["messages"]).take(checked(whole)))
    for cut in range(len(whole) + 1):
        client = Client(body["messages"]).take(whole[:cut])
        # As a front end does it: with what it holds of the conversation by now.
        again = {**body, "messages": client.messages}
        headers = {"last-event-id": str(whole[cut - 1]["_id"])} if cut and whole[cut - 1]["_id"] else {}
        async with http.post("/ag-ui/everything", json=again, headers=headers) as response:
            back = checked(parsed(await response.read()))
        assert kinds(back)[:3] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "STATE_SNAPSHOT"]
        assert conversation(client.take(back)) == final, cut
    assert cut > 35


async def test_a_run_at_work_is_taken_up_with_what_is_begun(http, served):
    body = asked("r-begun")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10), http.post("/ag-ui/withheld", json=body) as response:
            held = b""
            async for chunk in response.content.iter_any():
                held += chunk
                if b"I cannot say." in held:
                    raise TimeoutError
    before = checked(parsed(held[: held.rindex(b"\n\n")] + b"\n\n"), whole=False)
    assert kinds(before)[-2:] == ["TEXT_MESSAGE_END", "MESSAGES_SNAPSHOT"]
    events = await events_around(
        http, "withheld", {**body, "messages": []}, b"STEP_STARTED", served.log.runs[("acme", "r-begun")].cancelled.set
    )
    assert kinds(events) == [
        "RUN_STARTED", "MESSAGES_SNAPSHOT", "STATE_SNAPSHOT", "SUBAGENT_STARTED", "STEP_STARTED", "SUBAGENT_ERROR", "STEP_FINISHED",
        "RUN_FINISHED",
    ]  # fmt: skip
    assert events[-1]["outcome"] == {"type": "cancelled"}
    assert Client().take(events).answer == "I cannot say."


async def test_text_in_the_making_is_opened_again_and_goes_on(http, served):
    body = asked("r-hang")
    async with http.post("/ag-ui/hang", json=body) as response:
        assert response.headers["x-bulkhead-run-id"] == "r-hang"
        await response.content.readuntil(b"Working")
    events = await events_around(http, "hang", body, b"TEXT_MESSAGE_START", served.log.runs[("acme", "r-hang")].cancelled.set)
    assert kinds(events) == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "STATE_SNAPSHOT", "TEXT_MESSAGE_START", "TEXT_MESSAGE_END", "RUN_FINISHED"]
    assert Client(body["messages"]).take(events).answer == "Working"


async def test_a_run_that_fails_says_why_and_what_it_used(http):
    events = await events_of(http, "fail", asked("r-fail", "OVERLOADED"))
    assert (events[-1]["type"], events[-1]["code"], events[-1]["message"]) == ("RUN_ERROR", "OVERLOADED", "It failed.")
    assert events[-1]["metadata"] == {"bulkhead": {"retryable": True}}
    late = await events_of(http, "fail_late", asked("r-late"))
    assert kinds(late)[-2:] == ["TEXT_MESSAGE_END", "RUN_ERROR"]


async def test_a_client_that_leaves_ends_the_run_only_where_it_said_so(http, served):
    ours = {"forwardedProps": {"bulkhead": {"onDisconnect": "cancel"}}}
    for run_id, more, headers, ends in (
        ("r-stay", {}, {}, False), ("r-leave", ours, {}, True), ("r-leave-2", {}, {"x-bulkhead-on-disconnect": "cancel"}, True),
    ):  # fmt: skip
        async with http.post("/ag-ui/silent", json=asked(run_id, **more), headers=headers) as response:
            await response.content.readuntil(b"STATE_SNAPSHOT")
        run = served.log.runs[("acme", run_id)]
        if ends:
            await testing.eventually_async(partial(_is_set, run.cancelled), f"{run_id} is cancelled")
    assert not served.log.runs[("acme", "r-stay")].cancelled.is_set()


async def test_what_a_client_says_goes_to_the_run_and_only_what_is_new_on_a_thread_that_is_there(http, served):
    calls = [{"id": "c", "type": "function", "function": {"name": "n", "arguments": "{}"}}]
    picture = {"type": "image", "source": {"type": "url", "value": "https://example.com/x.png"}}
    said = [
        {"id": "s", "role": "system", "content": "Be kind."},
        {"id": "d", "role": "developer", "content": "Be brief."},
        {"id": "u1", "role": "user", "content": "One?"},
        {"id": "a1", "role": "assistant", "content": "One.", "toolCalls": calls},
        {"id": "x1", "role": "tool", "content": [{"type": "text", "text": "1"}], "toolCallId": "c"},
        {"id": "v1", "role": "activity", "activityType": "t", "content": {}},
        {"id": "q1", "role": "reasoning", "content": "hm"},
        {"id": "u2", "role": "user", "content": [{"type": "text", "text": "Two"}, picture, {"type": "text", "text": "?"}]},
    ]
    context = [{"description": "the page", "value": "/sums"}]
    first = await events_of(http, "assistant", {"threadId": "t-hist", "runId": "r-h1", "messages": said, "context": context, "surprise": 1})
    told = [(m.role, m.text) for m in served.log.runs[("acme", "r-h1")].request.input]
    instructions = [("system", "Be kind."), ("system", "Be brief."), ("system", "Context that the application gives:\n- the page: /sums")]
    assert told == [*instructions, ("user", "One?"), ("assistant", "One."), ("tool", "1"), ("user", "Two?")]
    # Named, and not passed over in silence.
    assert [value["capability_lost"] for name, value in Client().take(first).customs if name == "bulkhead.warning"] == ["surprise", "image"]
    client = Client(said).take(first)
    client.messages.append({"id": "u3", "role": "user", "content": "Three?"})
    second = {"threadId": "t-hist", "runId": "r-h2", "messages": client.messages, "state": client.state, "parentRunId": "r-h1"}
    events = await events_of(http, "assistant", second)
    assert events[0]["parentRunId"] == "r-h1"
    told = [(m.role, m.text) for m in served.log.runs[("acme", "r-h2")].request.input]
    assert told == [*instructions[:2], ("user", "Three?")]
