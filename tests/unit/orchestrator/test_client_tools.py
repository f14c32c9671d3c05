"""Tools of a run's client in the agent loop: whatever is asked for and whoever is lost, each call is made by one of both, once."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.agents import Recall
from services.orchestrator.ports import Recalled, RecalledPart, ToolDefinition, ToolRequest
from services.orchestrator.records import CLIENT_SCHEMA, SCHEMA_VERSION, Limits, RunSpec
from services.orchestrator.testing.turn_world import Journal, World, agent, notes
from services.orchestrator.turn.client_tools import FINISH_REASON, NO_RESULT, divided
from services.orchestrator.turn.guardrails import AllowAll, Verdict

CLIENTS = ({"name": "pick", "description": "", "parameters": "{}"}, {"name": "show", "description": "", "parameters": "{}"})
MINE = {tool["name"] for tool in CLIENTS}
names_of_a_step = st.lists(st.sampled_from(["look", "mail", "pick", "show"]), min_size=1, max_size=4)


def told(call):
    """What a model call was given of calls: (id, name) of those asked for, and results by id."""
    asked = [(each.call_id, each.name) for message in call.messages for each in message.tool_calls]
    return asked, [(message.tool_call_id, message.text) for message in call.messages if message.role == "tool"]


def scripted(steps):
    """A model that asks for these calls, step after step, over all runs of a thread."""

    def reply(call):
        done = sum(bool(message.tool_calls) for message in call.messages)
        return [(name, {"n": f"{done}.{i}"}) for i, name in enumerate(steps[done])] if done < len(steps) else "done"

    return reply


@settings(max_examples=120, deadline=None)
@given(
    steps=st.lists(names_of_a_step, min_size=1, max_size=5),
    losses=st.lists(st.dictionaries(st.integers(1, 20), st.booleans(), max_size=4), min_size=6, max_size=6),
)
def test_whatever_is_asked_for_and_whoever_is_lost_each_call_is_made_and_answered_once(steps, losses):
    reply, carried, said, answers, made, answered = scripted(steps), {}, None, 0, [], {}
    for number in range(len(steps) + 1):
        more = {"client_tools": CLIENTS, "input": said, "answers": answers}
        world = World(reply, agent(), journal=Journal(losses[number]), asked_for=more, carried=carried)
        result = world.run()
        assert not world.faults
        made += [world.known[key].outcome for key in world.executed]
        ours = [data for kind, data in world.journal.events if kind == "tool_call_started"]
        assert not MINE & {data["tool"] for data in ours}
        assert sorted(world.executed) == sorted({data["idempotency_key"] for data in ours})
        asked, results = told(world.asked[-1])
        # Nothing is lost, doubled or mixed up on the way from one run to the next.
        assert [call_id for call_id, _ in asked] == list(dict.fromkeys(call_id for call_id, _ in asked))
        assert sorted(call_id for call_id, _ in results) == sorted(call_id for call_id, _ in asked)
        assert {call_id: text for call_id, text in results if call_id in answered} == answered
        if result["finish_reason"] != FINISH_REASON:
            break
        terminal = world.journal.terminals[0]
        (raised,) = world.journal.of("interrupt_raised")
        calls = result["client_tool_calls"]
        assert raised == {"kind": "client_tools", "calls": calls}
        assert [kind for kind, _ in world.journal.events][-2:] == ["interrupt_raised", "run_finished"]
        carried, answers = orjson.loads(terminal.carry), number + 1
        answered |= {call["tool_call_id"]: f"result of {call['tool_call_id']}" for call in calls}
        said = [{"role": "tool", "text": answered[call["tool_call_id"]], "tool_call_id": call["tool_call_id"]} for call in calls]
    assert result["output_text"] == "done"
    every = [name for names in steps for name in names]
    assert len(answered) == sum(name in MINE for name in every)
    assert made == ["done"] * sum(name not in MINE for name in every)
    assert [name for _, name in asked] == every


@pytest.mark.parametrize("lost", [{}, *({n: survives} for n in range(1, 8) for survives in (True, False))])
def test_an_owner_lost_anywhere_gives_the_same_calls_under_the_same_ids(lost):
    world = World(scripted([["look", "pick", "mail", "show"]]), agent(), journal=Journal(lost), asked_for={"client_tools": CLIENTS})
    result = world.run()
    assert [(call["tool_call_id"], call["name"]) for call in result["client_tool_calls"]] == [("s1c1", "pick"), ("s1c3", "show")]
    assert sorted(world.executed) == ["r/1/0", "r/1/1"]
    assert len(world.journal.of("interrupt_raised")) == len(world.journal.of("step_completed")) == 1
    assert [data["step"] for data in world.journal.of("step_started")][-1] == 1


def test_an_id_that_stands_in_the_conversation_already_is_given_to_no_other_call():
    ids, carried, said = [], {}, None
    for _ in range(4):
        more = {"client_tools": CLIENTS, "input": said, "answers": len(ids)}
        # Whose ids count from anew in each run.
        world = World(scripted([["pick"]] * 4), agent(), asked_for=more, carried=carried)
        (call,) = world.run()["client_tool_calls"]
        ids.append(call["tool_call_id"])
        carried, said = orjson.loads(world.journal.terminals[0].carry), [{"role": "tool", "text": "x", "tool_call_id": ids[-1]}]
    assert ids == ["s1c0", "call_1_0", "call_1_0_", "call_1_0__"]


def test_in_the_last_step_the_clients_tools_are_left():
    def reply(call):
        return [("pick", {})] if not any(tool.name == "look" for tool in call.tools) else [("look", {"n": len(call.messages)})]

    world = World(reply, agent(), Limits(max_steps=2), asked_for={"client_tools": CLIENTS})
    assert world.run()["finish_reason"] == FINISH_REASON
    assert [[tool.name for tool in call.tools] for call in world.asked][-1] == ["pick", "show"]
    assert "last step" in notes(world.asked[-1])


class _NoArguments(AllowAll):
    stages = frozenset({"arguments", "result"})

    async def check(self, what):
        return Verdict("refuse", "bad") if "bad" in what.text else Verdict()


def test_a_guardrail_holds_back_calls_and_results_of_the_clients():
    steps = iter([[("pick", {"n": "bad"}), ("show", {})], "done"])
    world = World(lambda call: next(steps), agent(), asked_for={"client_tools": CLIENTS}, guardrails=_NoArguments())
    result = world.run()
    assert [call["name"] for call in result["client_tool_calls"]] == ["show"]
    (failed,) = world.journal.of("tool_call_failed")
    assert failed["error"]["code"] == "guard.bad"
    said = [{"role": "tool", "text": "bad news", "tool_call_id": result["client_tool_calls"][0]["tool_call_id"]}]
    carried = orjson.loads(world.journal.terminals[0].carry)
    after = World(lambda call: "done", agent(), asked_for={"input": said, "answers": 1}, carried=carried, guardrails=_NoArguments())
    after.run()
    assert "bad news" not in str(told(after.asked[0])[1])


def test_calls_that_do_not_wait_any_more_end_the_run_before_a_model_is_asked():
    said = [{"role": "tool", "text": "x", "tool_call_id": "a"}]
    for carried in ({}, {"messages": [], "said": "", "asks": [{"tool_call_id": "b", "name": "pick", "arguments": ""}]}):
        world = World(lambda call: "done", agent(), asked_for={"input": said, "answers": 7}, carried=carried)
        assert world.run()["error"]["reason"] == "TOOL_CALLS_NOT_WAITING"
        assert not world.asked


def test_a_new_start_forgets_calls_that_wait():
    first = World(scripted([["pick"]]), agent(), asked_for={"client_tools": CLIENTS})
    first.run()
    carried = orjson.loads(first.journal.terminals[0].carry)
    world = World(lambda call: "done", agent(), asked_for={"reset_memory": True}, carried=carried)
    world.memory = None

    async def reset(*_):
        return True

    world.reset_session = reset
    world.run()
    assert [message.role for message in world.asked[0].messages] == ["system", "user"]


def test_what_the_version_before_cannot_work_on_says_so_and_all_else_is_as_it_was():
    text = [{"role": "user", "text": "a"}]
    plain = RunSpec("t", "a", "1", "d", text, Limits(), {})
    assert plain.schema == 1
    assert not {"client_tools", "tool_choice", "response_format", "answers"} & plain.as_dict().keys()
    for more in ({"client_tools": CLIENTS}, {"tool_choice": '"none"'}, {"response_format": "{}"}, {"answers": 3}):
        spec = RunSpec("t", "a", "1", "d", text, Limits(), {}, **more)
        assert (spec.schema, SCHEMA_VERSION) == (CLIENT_SCHEMA, CLIENT_SCHEMA)
        again = RunSpec.from_dict(orjson.loads(orjson.dumps(spec.as_dict())))
        assert [getattr(again, name) for name in more] == [list(v) if isinstance(v, tuple) else v for v in more.values()]
    for said in ({"images": [{"blob_id": "b", "detail": ""}]}, {"tool_call_id": "c"}, {"tool_calls": []}):
        assert RunSpec("t", "a", "1", "d", [{**text[0], **said}], Limits(), {}).schema == CLIENT_SCHEMA


def test_what_the_version_before_makes_of_calls_that_wait_is_a_conversation_that_says_so():
    """It puts the messages that it is given before its own input, as they are."""
    world = World(scripted([["look", "pick"]]), agent(), asked_for={"client_tools": CLIENTS})
    world.run()
    messages = [orjson.loads(raw) for raw in orjson.loads(world.journal.terminals[0].carry)["messages"]]
    asked = [call_id for message in messages for call_id, _, _ in message.get("tool_calls", ())]
    results = {message["tool_call_id"]: message["text"] for message in messages if message["role"] == "tool"}
    assert set(asked) == set(results)
    assert results["s1c1"] == NO_RESULT


def test_a_refused_call_of_the_clients_is_answered_here():
    offered = [ToolDefinition("look", "1", "", b"{}"), ToolDefinition("pick", "client", "", b"{}", client=True)]
    requests = [ToolRequest(str(i), name, b"{}") for i, name in enumerate(["pick", "look", "pick", "look"])]
    here, refused, waiting = divided(requests, offered, {2: ["guard.x", "no"], 3: ["guard.y", "no"]})
    assert [request.call_id for request in here] == ["1", "2", "3"]
    assert {here[place].call_id: why[0] for place, why in refused.items()} == {"2": "guard.x", "3": "guard.y"}
    assert [call["tool_call_id"] for call in waiting] == ["0"]


def remembering(world):
    """The world with a memory; what is asked of it."""
    queries = []

    async def recall(session_id, query, *_):
        queries.append(query)
        return Recalled([RecalledPart("turn", "before", "long ago")], [])

    world.recall = recall
    return queries


def test_memory_is_asked_for_what_the_user_said_and_hears_of_it_with_the_answer():
    text = "Please remember that I like tea"
    first = World(scripted([["look", "pick"]]), agent(recall=Recall()), asked_for={"client_tools": CLIENTS}, text=text)
    remembering(first)
    call = first.run()["client_tool_calls"][0]
    (left,) = first.journal.terminals
    assert left.outbox == b""
    # What memory gave is asked for again, and is not a part of what is left.
    assert "long ago" not in left.carry.decode()
    said = [{"role": "tool", "text": "green", "tool_call_id": call["tool_call_id"]}]
    second = World(scripted([["pick"]]), agent(recall=Recall()), asked_for={"input": said, "answers": 1}, carried=orjson.loads(left.carry))
    queries = remembering(second)
    second.run()
    entry = orjson.loads(second.journal.terminals[0].outbox)
    assert (queries, entry["user_text"], entry["remember"]) == ([text], text, "I like tea")
    assert [(logged["name"], logged["output"]) for logged in entry["tool_calls"]] == [("look", "{}"), ("pick", "green")]
    assert [message.text for message in second.asked[0].messages].count("long ago") == 1
    # Of a fork within the run that answers, nobody says anything new.
    cut = {name: value for name, value in orjson.loads(left.carry).items() if name != "asks"}
    third = World(lambda call: "done", agent(recall=Recall()), asked_for={"input": said, "continues": True}, carried=cut)
    queries = remembering(third)
    third.run()
    assert queries == [text]
