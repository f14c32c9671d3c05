"""Tools that the application runs, and what tools give beside text, in AG-UI: held to the protocol's types and rules."""

import orjson
import pytest

from tests.contract.ag_ui_client import Client, checked, parsed

pytestmark = pytest.mark.asyncio(loop_scope="module")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {"name": "weather", "description": "How it is there.", "parameters": PARAMETERS},
    {"name": "clock", "description": "", "metadata": {"icon": "clock"}},
]
ARGUMENTS = '{"city":"Lisbon"}'
IMAGE = {
    "content_id": "c1/0", "call_id": "c1", "title": "", "blob_id": "blob_1", "mime_type": "image/png", "size": 9, "sha256": "0" * 64,
    "name": "x.png", "alt": "a pixel", "width": 1, "height": 1,
}  # fmt: skip
TABLE = {"content_id": "c1/1", "call_id": "c1", "title": "Sums", "columns": ["n"], "rows": [[42]], "total_rows": 1}


async def shows(run):
    """A tool that gives an image and a table, and an answer."""
    yield "step_started", {"step": 1}, False
    yield "tool_call_started", {"call_id": "c1", "tool": "draw", "version": "1.0.0", "arguments": {}}, False
    yield "tool_call_completed", {"call_id": "c1", "tool": "draw", "output": {"content": []}, "duration_ms": 3}, False
    yield "image", IMAGE, False
    yield "table", TABLE, False
    yield "message_delta", {"text": "There.", "message_id": f"{run.run.run_id}/2"}, True
    yield "run_finished", {"output_text": "There.", "finish_reason": "stop", "usage": {}, "citations": []}, False


async def steps(run):
    """Says something in the step whose calls are the application's."""
    own = run.run.run_id
    if run.request.input[-1].role == "tool":
        yield "run_finished", {"output_text": "Done.", "finish_reason": "stop", "usage": {}, "citations": []}, False
        return
    yield "step_started", {"step": 1}, False
    yield "message_delta", {"text": "Let me ask.", "message_id": f"{own}/1"}, True
    yield "message_completed", {"text": "Let me ask.", "message_id": f"{own}/1"}, False
    yield "tool_call_started", {"call_id": "s1", "tool": "calculator", "version": "1.0.0", "arguments": {}}, False
    yield "tool_call_completed", {"call_id": "s1", "tool": "calculator", "output": 42, "duration_ms": 3}, False
    yield "step_completed", {"step": 1, "usage": {}}, False
    calls = [{"tool_call_id": f"call-{own}-{at}", "name": tool["name"], "arguments": ARGUMENTS} for at, tool in enumerate(TOOLS)]
    yield "interrupt_raised", {"kind": "client_tools", "calls": calls}, False
    end = {"output_text": "Let me ask.", "finish_reason": "tool_calls", "client_tool_calls": calls, "usage": {}, "citations": []}
    yield "run_finished", end, False


@pytest.fixture(scope="module")
def agents():
    return shows, steps


def asked(run_id, messages=None, **more):
    said = messages or [{"id": "u1", "role": "user", "content": ARGUMENTS}]
    return {"threadId": f"t-{run_id}", "runId": run_id, "messages": said, "tools": TOOLS, **more}


async def events_of(http, agent, body):
    async with http.post(f"/ag-ui/{agent}", json=body) as response:
        assert response.status == 200, await response.text()
        return checked(parsed(await response.read()))


def results(client):
    """As an application does it: a message of role tool for each call that the platform has no result for."""
    told = {message["toolCallId"] for message in client.messages if message["role"] == "tool"}
    calls = [call for message in client.messages for call in message.get("toolCalls", ()) if call["id"] not in told]
    return [
        {"id": f"result-{call['id']}", "role": "tool", "toolCallId": call["id"], "content": f"{call['function']['name']}!"}
        for call in calls
    ]


async def test_the_application_is_asked_to_call_and_says_what_came_of_it(http, served):
    body = asked("r-calls")
    events = await events_of(http, "steps", body)
    client = Client(body["messages"]).take(events)
    assert (client.outcome, events[-1]["result"]["finishReason"]) == ("success", "tool_calls")
    made = served.log.runs[("acme", "r-calls")].request
    assert [(tool.name, tool.description, orjson.loads(tool.parameters_json or b"{}")) for tool in made.client_tools] == [
        ("weather", "How it is there.", PARAMETERS), ("clock", "", {}),
    ]  # fmt: skip
    # The calls of a step belong to its message, the platform's and the application's.
    said = client.messages[1]
    assert (said["content"], [call["function"]["name"] for call in said["toolCalls"]]) == (
        "Let me ask.", ["calculator", "weather", "clock"],
    )  # fmt: skip
    assert [call["id"] for call in said["toolCalls"][1:]] == ["call-r-calls-0", "call-r-calls-1"]
    assert said["toolCalls"][1]["function"]["arguments"] == ARGUMENTS
    client.messages += results(client)
    again = {**body, "runId": "r-calls-2", "messages": client.messages}
    client.take(await events_of(http, "steps", again))
    assert client.answer == "Done."
    sent = served.log.runs[("acme", "r-calls-2")].request
    assert [(m.role, m.text, m.tool_call_id) for m in sent.input] == [
        ("tool", "weather!", "call-r-calls-0"), ("tool", "clock!", "call-r-calls-1"),
    ]  # fmt: skip


async def test_what_the_user_says_beside_the_results_goes_with_them(http, served):
    body = asked("r-more")
    client = Client(body["messages"]).take(await events_of(http, "steps", body))
    client.messages += [*results(client), {"id": "u2", "role": "user", "content": "And be quick."}]
    await events_of(http, "steps", {**body, "runId": "r-more-2", "messages": client.messages})
    assert [m.role for m in served.log.runs[("acme", "r-more-2")].request.input] == ["tool", "tool", "user"]


async def test_a_thread_that_is_new_is_given_the_calls_of_the_application_and_not_the_platforms(http, served):
    body = asked("r-first")
    client = Client(body["messages"]).take(await events_of(http, "steps", body))
    client.messages += results(client)
    await events_of(http, "steps", asked("r-fresh", client.messages))
    sent = served.log.runs[("acme", "r-fresh")].request.input
    assert [(m.role, m.text, [call.name for call in m.tool_calls]) for m in sent] == [
        ("user", ARGUMENTS, []), ("assistant", "Let me ask.", ["weather", "clock"]), ("tool", "weather!", []), ("tool", "clock!", []),
    ]  # fmt: skip


@pytest.mark.parametrize("agent", ["steps", "shows", "caller"])
async def test_a_stream_that_is_cut_at_any_event_is_taken_up_where_the_run_stands(http, agent):
    body = asked(f"r-cut-{agent}")
    async with http.post(f"/ag-ui/{agent}", json=body) as response:
        whole = parsed(await response.read())
    final = Client(body["messages"]).take(checked(whole))
    shown = {value["content_id"]: value for name, value in final.customs if name == "bulkhead.content"}
    for cut in range(len(whole) + 1):
        client = Client(body["messages"]).take(whole[:cut])
        async with http.post(f"/ag-ui/{agent}", json={**body, "messages": client.messages}) as response:
            client.take(checked(parsed(await response.read())))
        assert (client.messages, client.state, client.outcome) == (final.messages, final.state, final.outcome), cut
        assert {value["content_id"]: value for name, value in client.customs if name == "bulkhead.content"} == shown
    assert cut > 8


async def test_what_tools_give_beside_text_is_one_kind_of_event(http):
    client = Client().take(await events_of(http, "shows", asked("r-content")))
    assert client.customs == [("bulkhead.content", {"type": "image", **IMAGE}), ("bulkhead.content", {"type": "table", **TABLE})]


async def test_results_of_calls_that_do_not_wait_are_refused(http, served):
    body = asked("r-late")
    client = Client(body["messages"]).take(await events_of(http, "steps", body))
    client.messages += results(client)[:1]
    async with http.post("/ag-ui/steps", json={**body, "runId": "r-late-2", "messages": client.messages}) as response:
        assert response.status == 400
        told = await response.json()
    assert (told["type"], told["code"]) == ("RUN_ERROR", "INVALID_INPUT")
    assert ("acme", "r-late-2") not in served.log.runs
