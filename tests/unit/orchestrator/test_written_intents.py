"""What is written of a model call and of a tool call before they are made."""

import hashlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.approval import canonical, digest
from services.common.errors import BudgetExceeded
from services.orchestrator.agents import Degradation
from services.orchestrator.ports import Message, ToolOutcome
from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import Journal, World, agent, steps_before
from services.orchestrator.turn import intent, plan_tools
from services.orchestrator.turn.state import PendingCall, TurnState

CALL = [("look", {"b": 2, "a": 1})]


def asked_of(call):
    """All that a model is asked, however it is digested."""
    tools = [tool.name for tool in call.tools]
    return orjson.dumps([call.model, call.temperature, call.max_tokens, tools, [message.encode().decode() for message in call.messages]])


def steps(count, names=("look",)):
    return lambda call: "done" if steps_before(call) >= count else [(name, {"n": steps_before(call)}) for name in names]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 4),
    lost_at=st.dictionaries(st.integers(1, 14), st.booleans(), max_size=4),
    strategy=st.sampled_from(["react", "plan_execute"]),
    bounds=st.sampled_from([Limits(), Limits(max_steps=4), Limits(max_tool_calls=2)]),
)
def test_the_call_that_is_made_is_the_one_that_the_log_tells_of(count, lost_at, strategy, bounds):
    def reply(call):
        if strategy == "plan_execute" and not steps_before(call):
            return [("update_plan", {"steps": [{"title": "look", "status": "in_progress"}]})]
        return "done" if steps_before(call) > count or not call.tools else [("look", {"n": steps_before(call)})]

    world = World(reply, agent(strategy=strategy), bounds, Journal(lost_at))
    world.run()
    announced = world.journal.of("step_started")
    by_key = {}
    for data in announced:
        assert data["idempotency_key"].split("/")[1] == str(data["step"])
        # Whoever makes a call again asks the same.
        assert by_key.setdefault(data["idempotency_key"], data["request_digest"]) == data["request_digest"]
    made = {call.key: asked_of(call) for call in world.asked}
    # Of an owner that was lost before it wrote anything, nothing stands anywhere.
    ended = {data["step"] for data in world.journal.of("usage")}
    assert ended <= {data["step"] for data in announced}
    told = [data for data in announced if data["idempotency_key"] in made]
    assert {data["step"] for data in told} >= ended
    # One digest for what is asked, and another one for something else.
    pairs = {(data["request_digest"], made[data["idempotency_key"]]) for data in told}
    assert len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)
    assert not any("request_digest" in data for data in world.journal.of("usage"))


def test_a_step_is_announced_with_the_write_that_ends_the_one_before_and_costs_none_of_its_own():
    world = World(steps(2), agent(), journal=Journal())
    behind = []
    before = world.stream

    async def stream(call):
        behind.append([data["step"] for data in world.journal.of("step_started")])
        async for item in before(call):
            yield item

    world.stream = stream
    world.run()
    # The first one has no write before it; of each other the log tells when it is asked.
    assert behind == [[], [1, 2], [1, 2, 3]]
    # Two steps of two writes each; at most the text of the third, and its end.
    assert world.journal.writes <= 2 * 2 + 2


def test_each_owner_announces_the_call_that_it_makes():
    world = World(steps(1), agent(), journal=Journal({2: True}))
    world.run()
    announced = world.journal.of("step_started")
    assert [data["step"] for data in announced] == [1, 2, 2]
    assert announced[1] == announced[2]


@pytest.mark.parametrize("change", ["steered", "ladder"])
def test_usage_names_the_call_that_was_made_where_another_one_was_announced(change):
    world = World(steps(1), agent(degradation=Degradation(cheaper_model="small")), journal=Journal())
    before = world.stream

    async def stream(call):
        if change == "ladder" and steps_before(call) and call.model == "m":
            raise BudgetExceeded("too dear", reason="MAX_COST_EXCEEDED")
        async for item in before(call):
            yield item

    def tool(name, arguments):
        if change == "steered":
            world.post("steer", text="more")
        return ToolOutcome("done", b"{}")

    world.stream, world.tool = stream, tool
    world.run()
    _, second = world.journal.of("step_started")
    usages = world.journal.of("usage")
    assert "idempotency_key" not in usages[0]
    mark = {"steered": "/steered", "ladder": "/model"}[change]
    assert usages[1]["idempotency_key"] == second["idempotency_key"] + mark == world.asked[-1].key
    assert usages[1]["request_digest"] != second["request_digest"]


def test_why_an_answer_ended_is_told_also_where_it_asks_for_tools():
    world = World(steps(1), agent())
    world.run()
    assert [data["finish_reason"] for data in world.journal.of("usage")] == ["tool_calls", "stop"]


def test_a_tool_call_is_told_with_all_that_its_start_has_to_say():
    world = World(lambda call: "done" if steps_before(call) else [*CALL, ("mail", {})], agent(), Limits(deadline_s=5.0))
    world.run()
    look, mail = world.journal.of("tool_call_started")
    assert (look["tool"], look["version"], look["arguments"]) == ("look", "1", {"b": 2, "a": 1})
    assert look["arguments_digest"] == hashlib.sha256(b'{"a":1,"b":2}').hexdigest() == digest(canonical(look["arguments"]))
    assert (look["idempotency_key"], mail["idempotency_key"]) == ("r/1/0", "r/1/1")
    assert world.sent == ["r/1/0", "r/1/1"]
    assert (look["side_effects"], mail["side_effects"]) == ("idempotent", "once")
    # The tool has 30 s, the run less.
    assert 0 < look["timeout_ms"] <= 5_000


def test_what_the_turn_brings_itself_has_the_time_of_the_run():
    plan = [("update_plan", {"steps": [{"title": "x", "status": "done"}]})]
    world = World(lambda call: "done" if steps_before(call) else plan, agent(strategy="plan_execute"))
    world.run()
    assert "timeout_ms" not in world.journal.of("tool_call_started")[0]


def test_arguments_that_are_no_json_are_digested_as_they_are():
    told = {}
    turn = World(steps(0), agent()).turn()
    turn.writer.emit = lambda kind, data: told.update(data)
    for arguments, final in (("", b"{}"), ("{nonsense", b"{nonsense")):
        plan_tools.announce(turn, PendingCall(0, "c", "look", "1", arguments, True, 1.0, read_only=True))
        assert (told["arguments_digest"], told["side_effects"]) == (digest(final), "none")


def test_that_a_call_changes_nothing_outlives_its_owner_and_a_version_that_knows_nothing_of_it():
    state = TurnState(phase="tools", pending=[PendingCall(0, "c", "look", "1", "{}", True, 1.0, started=False, read_only=True)])
    stored = orjson.loads(state.encode())
    assert TurnState.decode(stored) == state
    del stored["marks"]["read_only"]
    assert not TurnState.decode(stored).pending[0].read_only


def test_messages_are_digested_once_and_anew_where_they_are_others():
    turn = World(steps(0), agent()).turn()

    def told():
        return intent.of_call(turn, "k", "m", (), (), "", ())["request_digest"]

    turn.messages[:] = [Message("system", "p"), Message("user", "a")]
    first = told()
    turn.messages.append(Message("assistant", "b"))
    assert told() != first
    turn.messages[:] = [Message("system", "p"), Message("user", "a")]
    assert told() == first
    turn.messages[:] = [Message("system", "p"), Message("user", "c")]
    assert told() != first
