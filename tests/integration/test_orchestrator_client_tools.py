"""Tools that a run's client calls itself: how a run ends with their calls, and how the next one of its thread goes on from the results."""

import asyncio
import json

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput
from services.orchestrator import segments_moving
from services.orchestrator.adapters import store as adapter
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.records import RunRef
from services.orchestrator.said_check import SaidCheck
from services.orchestrator.testing.harness import data_of, root_keys, served, settings_for, types, write_config
from services.orchestrator.testing.whole_threads import fork, roll_back
from tests.integration.client_calls import ASK, MIXED, PLAN, SUM, TOOLS, ended, given, hold, made, results, user


@pytest.fixture
def settings(identities, behind, state_url, tmp_path):
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"), envelope_keys_file=root_keys(tmp_path))


@pytest.fixture
async def client(settings, identities):
    async with served(settings, identities) as made:
        yield made


@pytest.mark.parametrize("agent", ["quick", "helper", "planner"])
async def test_a_step_with_both_does_its_own_first_and_ends_the_run_and_the_next_goes_on(client, behind, agent):
    said = f"{PLAN}\n{ASK}" if agent == "planner" else MIXED
    first = await ended(client, user(said), agent=agent, thread_id="t", client_tools=TOOLS, append_only_output=True)
    assert (first.status, first.finish_reason) == (pb.RUN_STATUS_SUCCEEDED, "tool_calls")
    names = ["ask_user"] if agent == "planner" else ["ask_user", "show"]
    assert [call.name for call in first.client_tool_calls] == names
    assert json.loads(first.client_tool_calls[0].arguments_json) == {"question": "which one?"}
    log = await client.log(first.run_id)
    assert types(log)[-2:] == ["interrupt_raised", "run_finished"]
    raised, finished = data_of(log[-2]), data_of(log[-1])
    assert (raised["kind"], finished["finish_reason"]) == ("client_tools", "tool_calls")
    assert (
        raised["calls"]
        == finished["client_tool_calls"]
        == [{"tool_call_id": c.tool_call_id, "name": c.name, "arguments": c.arguments_json.decode()} for c in first.client_tool_calls]
    )
    assert types(log).count("step_started") == types(log).count("step_completed")
    texts = ["the red one"] if agent == "planner" else ["the red one", ""]
    second = await ended(client, *results(first, *texts), agent=agent, thread_id="t", client_tools=TOOLS)
    assert second.finish_reason == "stop"
    if agent != "planner":
        assert second.output_text == 'Results: {"result": 5} ; the red one ; '
        assert [call.executions for call in behind.tools.calls.values()] == [1]
    seen = given(behind)
    assert seen[0][:2] == ("user", said)
    answered = {call_id: text for role, text, call_id in seen if role == "tool"}
    assert [answered[call.tool_call_id] for call in first.client_tool_calls] == texts
    assert "gave no result" not in str(seen)
    if agent == "helper":
        await testing.eventually_async(lambda: behind.sessions.turns["acme", "t"], "the turn is in memory")
        (turn,) = behind.sessions.turns["acme", "t"].values()
        assert (turn.user_text, turn.assistant_text) == (said, second.output_text)
        assert [call["name"] for call in json.loads(turn.tool_calls_json)] == ["calculator", "ask_user", "show"]


async def test_a_user_who_says_something_else_has_the_model_told_that_nothing_came(client, behind):
    first = await ended(client, user(MIXED), thread_id="t", client_tools=TOOLS)
    await ended(client, user("never mind"), thread_id="t")
    seen = given(behind)
    assert (seen[0][1], seen[-1][1]) == (MIXED, "never mind")
    told = {call_id: text for role, text, call_id in seen if role == "tool"}
    assert all("gave no result" in told[call.tool_call_id] for call in first.client_tool_calls)
    assert '{"result": 5}' in told.values()
    with pytest.raises(InvalidInput) as caught:
        await made(client, *results(first, "a", "b"), thread_id="t")
    assert caught.value.reason == "TOOL_CALL_UNKNOWN"


async def test_calls_are_answered_once(client, behind):
    first = await ended(client, user(ASK), thread_id="t", client_tools=TOOLS)
    hold(behind)
    answer = {"thread_id": "t", "idempotency_key": "k"}
    second = await made(client, *results(first, "blue"), **answer)
    # While the first answer is worked on.
    with pytest.raises(Conflict) as caught:
        await made(client, *results(first, "red"), thread_id="t")
    assert caught.value.reason == "TOOL_CALLS_ANSWERED"
    again = await made(client, *results(first, "blue"), **answer)
    assert (again.created, again.run.run_id) == (False, second.run.run_id)
    behind.models.gate.open()
    assert (await client.wait(second.run.run_id)).output_text == "Results: blue"
    # And behind it.
    again = await made(client, *results(first, "blue"), **answer)
    assert (again.created, again.run.run_id) == (False, second.run.run_id)
    with pytest.raises(IdempotencyMismatch):
        await made(client, *results(first, "red"), **answer)
    with pytest.raises(InvalidInput) as caught:
        await made(client, *results(first, "red"), thread_id="t")
    assert caught.value.reason == "TOOL_CALL_UNKNOWN"
    assert "red" not in str([m.text for call in behind.models.calls for m in call.request.messages])


async def test_an_answer_that_failed_can_be_given_again(client, behind):
    first = await ended(client, user(ASK), thread_id="t", client_tools=TOOLS)
    hold(behind)
    second = await made(client, *results(first, "blue"), thread_id="t")
    await client.cancel(second.run.run_id)
    behind.models.gate.open()
    await client.wait(second.run.run_id)
    third = await ended(client, *results(first, "green"), thread_id="t")
    assert third.output_text == "Results: green"


async def test_two_answers_at_once_make_one_run(client):
    first = await ended(client, user(ASK), thread_id="t", client_tools=TOOLS)
    tried = await asyncio.gather(*(made(client, *results(first, str(i)), thread_id="t") for i in range(5)), return_exceptions=True)
    assert sum(isinstance(found, pb.CreateRunResponse) for found in tried) == 1
    assert {found.reason for found in tried if isinstance(found, Exception)} <= {"TOOL_CALLS_ANSWERED", "TOOL_CALL_UNKNOWN"}


async def test_a_user_who_was_faster_leaves_an_answer_in_the_queue_without_calls(client, behind):
    """Both were accepted while the calls waited: whoever comes second in the thread finds them answered."""
    first = await ended(client, user(ASK), thread_id="t", client_tools=TOOLS)
    hold(behind)
    other = await made(client, user("say never mind"), thread_id="t")
    second = await made(client, *results(first, "blue"), thread_id="t")
    behind.models.gate.open()
    assert (await client.wait(other.run.run_id)).output_text == "never mind"
    failed = await client.wait(second.run.run_id)
    assert failed.error.reason == "TOOL_CALLS_NOT_WAITING"


async def test_a_user_who_is_faster_by_a_moment_leaves_nothing_to_answer(client, monkeypatch):
    """Between the look at the calls and the write that accepts."""
    first = await ended(client, user(ASK), thread_id="t", client_tools=TOOLS)
    look = SaidCheck._waiting

    async def looked(*args):
        found = await look(*args)
        await ended(client, user("say never mind"), thread_id="t")
        return found

    monkeypatch.setattr(SaidCheck, "_waiting", looked)
    with pytest.raises(Conflict) as caught:
        await made(client, *results(first, "blue"), thread_id="t", run_id="late")
    assert caught.value.reason == "TOOL_CALLS_ANSWERED"
    # It holds no slot, and its id is free.
    monkeypatch.undo()
    with client.calling():
        listed = (await client.runs.ListRuns(pb.ListRunsRequest(thread_id="t"))).runs
    assert len(listed) == 2


async def test_calls_wait_behind_an_approval_as_behind_any_call(client):
    said = 'tools\ntool send_mail {"to": "bob"}\n' + ASK
    run = (await made(client, user(said), agent="careful", thread_id="t", client_tools=TOOLS)).run

    async def parked():
        return await client.asked(run.run_id)

    (question,) = await testing.eventually_async(parked, "a person is asked")
    await client.decide(question.approval_id, approve=approvals_pb.Approve())
    run = await client.wait(run.run_id)
    assert (run.finish_reason, [call.name for call in run.client_tool_calls]) == ("tool_calls", ["ask_user"])
    after = await ended(client, *results(run, "red"), agent="careful", thread_id="t")
    assert after.output_text == 'Results: {"sent":true} ; red'


async def test_round_after_round_all_of_it_stays_in_the_conversation(client, behind):
    run = await ended(client, user(f"{ASK}\n{SUM}\n{ASK}"), thread_id="t", client_tools=TOOLS)
    ids = [run.client_tool_calls[0].tool_call_id]
    run = await ended(client, *results(run, "one"), thread_id="t", client_tools=TOOLS)
    ids.append(run.client_tool_calls[0].tool_call_id)
    run = await ended(client, *results(run, "two"), thread_id="t", client_tools=TOOLS)
    assert run.output_text == 'Results: one ; {"result": 5} ; two'
    assert len(set(ids)) == 2
    assert [role for role, _, _ in given(behind)] == ["user", "assistant", "tool", "assistant", "tool", "assistant", "tool"]


@pytest.mark.parametrize("moved", [False, True])
async def test_a_fork_and_a_rollback_to_the_end_of_such_a_run_can_be_answered(
    identities, behind, state_url, tmp_path, valkey, monkeypatch, moved
):
    monkeypatch.setattr(segments_moving, "TURN_S", 0.05)
    config = write_config(tmp_path / "config")
    fields = {"segments_dir": tmp_path / "segments", "segments_after_s": 0.2} if moved else {}
    async with served(settings_for(identities, behind, state_url, config, **fields), identities) as client:
        first = await ended(client, user(MIXED), thread_id="t", client_tools=TOOLS)

        async def gone():
            return not moved or not await valkey.exists(thread_keys(RunRef("acme", "t", first.run_id))[1])

        await testing.eventually_async(gone, "the log left the state store")
        before = (await fork(client, "t")).thread.thread_id
        second = await ended(client, *results(first, "one", "two"), thread_id="t")
        seen = given(behind)
        # Of a thread that has gone on since, and asks for something else now: out of the log.
        assert (await ended(client, user(ASK), thread_id="t", client_tools=TOOLS)).client_tool_calls
        later = (await fork(client, "t", pb.Checkpoint(run_id=first.run_id))).thread.thread_id
        for thread_id in (before, later):
            run = await ended(client, *results(first, "one", "two"), thread_id=thread_id)
            assert (run.output_text, given(behind)) == (second.output_text, seen)
            with pytest.raises(InvalidInput):
                await made(client, *results(first, "one", "two"), thread_id=thread_id)
        # The end of its last step is the end of the run.
        step = (await fork(client, "t", pb.Checkpoint(run_id=first.run_id, step=1))).thread.thread_id
        assert (await ended(client, *results(first, "one", "two"), thread_id=step)).output_text == second.output_text
        await roll_back(client, "t", pb.Checkpoint(run_id=first.run_id))
        run = await ended(client, *results(first, "three", "four"), thread_id="t")
        assert run.output_text == 'Results: {"result": 5} ; three ; four'
        # Out of the thread that has answered: within the run that did.
        answering = await ended(client, user(f"{ASK}\n{SUM}"), thread_id="u", client_tools=TOOLS)
        run = await ended(client, *results(answering, "one"), thread_id="u", client_tools=TOOLS)
        # A step that says nothing and has no call of the agent's own.
        asking = await ended(client, user(f"{SUM}\n{ASK}"), thread_id="v", client_tools=TOOLS)
        run_of = await ended(client, *results(asking, "one"), thread_id="v")
        seen = given(behind)
        assert (await ended(client, user(ASK), thread_id="v", client_tools=TOOLS)).client_tool_calls
        later = (await fork(client, "v", pb.Checkpoint(run_id=asking.run_id))).thread.thread_id
        assert (await ended(client, *results(asking, "one"), thread_id=later)).output_text == run_of.output_text
        assert given(behind) == seen
        within = (await fork(client, "u", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True)).run
        assert (await client.wait(within.run_id)).output_text == run.output_text == 'Results: one ; {"result": 5}'


async def test_the_whole_conversation_may_stand_in_an_input(client, behind):
    call = pb.ClientToolCall(tool_call_id="a", name="ask_user", arguments_json=b'{"question": "?"}')
    said = [
        user(ASK), pb.InputMessage(role="assistant", tool_calls=[call]), pb.InputMessage(role="tool", text="red", tool_call_id="a"),
    ]  # fmt: skip
    run = await ended(client, *said, client_tools=TOOLS)
    assert run.output_text == "Results: red"
    (asked,) = [m for m in behind.models.calls[-1].request.messages if m.tool_calls]
    assert [(c.tool_call_id, c.name, c.arguments_json) for c in asked.tool_calls] == [("a", "ask_user", b'{"question": "?"}')]


async def test_the_choice_holds_for_the_first_call_and_tools_go_as_they_were_given(client, behind):
    choice = b'{"type":"function","function":{"name":"show"}}'
    run = await ended(client, user(f"{SUM}\n{SUM}"), client_tools=TOOLS, tool_choice_json=choice)
    asked = [call.request for call in behind.models.calls]
    assert [request.tool_choice_json for request in asked] == [choice, b"", b""]
    told = data_of((await client.log(run.run_id))[0])
    assert (told["tool_choice"]["function"]["name"], [tool["name"] for tool in told["client_tools"]]) == ("show", ["ask_user", "show"])
    tools = {tool.name: tool for tool in asked[0].tools}
    assert set(tools) == {"calculator", "send_mail", "ask_user", "show"}
    assert json.loads(tools["show"].tool_json)["function"]["strict"] is True
    assert json.loads(tools["ask_user"].parameters_json)["properties"]["question"] == {"type": "string"}


async def test_labels_of_a_run_are_told_but_not_in_lists(client):
    created = (await made(client, user("say hi"), thread_id="t", metadata={"team": "blue"})).run
    waited = await client.wait(created.run_id)
    got = await client.get(created.run_id)
    assert [dict(run.metadata) for run in (created, waited, got)] == [{"team": "blue"}] * 3
    with client.calling():
        (listed,) = (await client.runs.ListRuns(pb.ListRunsRequest(thread_id="t"))).runs
    assert not listed.metadata


async def test_the_version_before_leaves_what_it_does_not_know_alone(client, behind, settings, valkey, monkeypatch):
    hold(behind)
    await made(client, user("say hi"), thread_id="t")
    for run_id, fields in {
        "tools": {"client_tools": TOOLS},
        "form": {"response_format_json": b'{"type":"json_object"}'},
        "plain": {},
    }.items():
        await made(client, user("say hi"), thread_id="t", run_id=run_id, **fields)
    keys = {run_id: thread_keys(RunRef("acme", "t", run_id))[2] for run_id in ("tools", "form", "plain")}
    assert {run_id: int(await valkey.hget(key, "schema_version")) for run_id, key in keys.items()} == {"tools": 4, "form": 4, "plain": 1}
    store = Store(valkey, "other")
    await store.load()
    monkeypatch.setattr(adapter, "SCHEMA_VERSION", 3)
    # As if it were its turn.
    await valkey.lpush(thread_keys(RunRef("acme", "t", "tools"))[3], "tools")
    assert (await store.claim(RunRef("acme", "t", "tools"), 1.0, 3)).verdict == "waiting"
    await valkey.lpop(thread_keys(RunRef("acme", "t", "tools"))[3])
    monkeypatch.undo()
    behind.models.gate.open()
    for run_id in keys:
        await client.wait(run_id)


async def test_an_answer_that_steers_or_interrupts_cuts_nothing_off_that_it_cannot_answer(client, behind):
    first = await ended(client, user(ASK), thread_id="t", client_tools=TOOLS)
    hold(behind)
    second = await made(client, *results(first, "blue"), thread_id="t")
    for on_busy in (pb.ON_BUSY_INTERRUPT, pb.ON_BUSY_ROLLBACK):
        with pytest.raises(Conflict) as caught:
            await made(client, *results(first, "red"), thread_id="t", on_busy=on_busy)
        assert caught.value.reason == "TOOL_CALLS_ANSWERED"
    behind.models.gate.open()
    assert (await client.wait(second.run.run_id)).output_text == "Results: blue"


async def test_an_answer_of_a_form_goes_to_the_gateway_as_it_was_asked_for(client, behind):
    form = b'{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object","required":["a"]}}}'
    behind.models.reply = lambda request: type(request.messages[0])(
        role="assistant", text='{"a": 1}' if len(behind.models.calls) > 1 else "not yet"
    )
    run = await ended(client, user("go"), response_format_json=form, append_only_output=True)
    assert (run.output_text, run.usage.model_calls) == ('{"a": 1}', 2)
    assert [call.request.response_format_json for call in behind.models.calls] == [form, form]
    deltas = [data_of(event)["text"] for event in await client.log(run.run_id) if event.type == "message_delta"]
    assert deltas == ['{"a": 1}']
