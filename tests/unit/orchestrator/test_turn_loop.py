"""The agent loop: order of tools, limits and what is told of them, circles, plans, and owners that are lost at any write."""

import asyncio

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.agents import LoopGuard
from services.orchestrator.ports import Message, ToolOutcome
from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import Journal, World, agent, notes, steps_before
from services.orchestrator.turn.execute_tools import report_unfinished
from services.orchestrator.turn.model_step import Asked, model_step
from services.orchestrator.turn.plan_tools import startable
from services.orchestrator.turn.state import PendingCall, RunStopped, TurnState

LOOK, MAIL = ("look", {}), ("mail", {})


def new_calls(call, names):
    """Calls that were never made before."""
    return [(name, {"n": f"{steps_before(call)}.{i}"}) for i, name in enumerate(names)]


def endless(names, heeds=True):
    """A model that calls tools for as long as it may."""
    return lambda call: "enough" if heeds and not call.tools else new_calls(call, names)


names_of_a_step = st.lists(st.sampled_from(["look", "mail"]), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(names_of_a_step, max_size=5),
    lost_at=st.dictionaries(st.integers(1, 30), st.booleans(), max_size=6),
    most=st.none() | st.integers(1, 3),
)
def test_whoever_is_lost_and_when_every_call_is_made_once_in_its_order(steps, lost_at, most):
    def reply(call):
        return new_calls(call, steps[steps_before(call)]) if steps_before(call) < len(steps) else "done"

    world = World(reply, agent(tool_concurrency=most), journal=Journal(lost_at))
    result = world.run()
    assert result["output_text"] == "done"
    assert not world.faults
    assert world.most_running <= (most or 4)
    keys = [f"r/{step}/{i}" for step, names in enumerate(steps, 1) for i in range(len(names))]
    names = {f"r/{step}/{i}": name for step, each in enumerate(steps, 1) for i, name in enumerate(each)}
    assert set(world.executed) == set(keys)
    mails = [key for key in keys if names[key] == "mail"]
    assert [key for key in world.sent if names[key] == "mail"] == mails
    # Told once each, and its end after its start.
    told = [(kind.split("_")[-1] == "started", data["call_id"]) for kind, data in world.journal.events if kind.startswith("tool_call_")]
    ids = {"s{}c{}".format(*key.split("/")[1:]) for key in keys}
    assert sorted(told) == sorted((start, name) for name in ids for start in (True, False))
    assert all(told.index((True, name)) < told.index((False, name)) for name in ids)
    # A9: what was spent is what the steps took that are checkpointed, whoever made them.
    assert (result["usage"]["model_calls"], result["usage"]["tool_calls"]) == (len(steps) + 1, len(keys))
    assert result["usage"]["input_tokens"] == 10 * (len(steps) + 1)


limits = st.builds(Limits, st.just(0.0), *[st.integers(0, most) for most in (6, 9, 60, 120)])


@settings(max_examples=150, deadline=None)
@given(
    bounds=limits.filter(lambda each: any((each.max_steps, each.max_tool_calls, each.max_cost_microusd, each.max_total_tokens))),
    names=names_of_a_step, heeds=st.booleans(), used=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    lost_at=st.dictionaries(st.integers(1, 40), st.booleans(), max_size=5),
)  # fmt: skip
def test_no_limit_is_exceeded_by_more_than_one_step(bounds, names, heeds, used, lost_at):
    def usage(step):
        return (used[step % len(used)], 1, used[step % len(used)])

    world = World(endless(names, heeds), agent(loop_guard=LoopGuard(repeats=1_000)), bounds, Journal(lost_at), usage)
    result = world.run()
    spent = result["usage"]
    steps = spent["model_calls"]
    last = usage(steps)
    assert not bounds.max_steps or steps <= bounds.max_steps
    assert not bounds.max_tool_calls or len(world.executed) == spent["tool_calls"] <= bounds.max_tool_calls
    assert not bounds.max_cost_microusd or spent["cost_microusd"] - last[2] < bounds.max_cost_microusd
    assert not bounds.max_total_tokens or spent["input_tokens"] + spent["output_tokens"] - last[0] - last[1] < bounds.max_total_tokens
    if heeds and not bounds.max_cost_microusd and not bounds.max_total_tokens:
        assert result["output_text"] == "enough"
    if not heeds:
        assert result["error"]["reason"] in ("STEP_LIMIT", "TOOL_LIMIT", "COST_LIMIT", "TOKEN_LIMIT")
    # With tokens left, no answer may be longer than they are.
    if bounds.max_total_tokens:
        assert all(0 < call.max_tokens <= bounds.max_total_tokens for call in world.asked)


def test_the_model_is_told_what_is_left_and_its_last_step_has_no_tools():
    world = World(endless(["look"]), agent(), Limits(max_steps=12, max_tool_calls=12))
    assert world.run()["output_text"] == "enough"
    told = [notes(call) for call in world.asked]
    assert told[:10] == [""] * 10
    assert "2 steps (this one included), 2 tool calls" in told[10]
    assert "last step" in told[11]
    assert [bool(call.tools) for call in world.asked] == [True] * 11 + [False]
    # The key says that another question was asked.
    assert [call.key for call in world.asked[9:]] == ["r/10", "r/11/noted", "r/12/noted"]


def test_an_agent_without_tools_is_told_nothing_and_answers_within_one_step():
    world = World(lambda call: "at once", agent(tools=()), Limits(max_steps=1, max_total_tokens=9))
    assert world.run()["output_text"] == "at once"
    assert (notes(world.asked[0]), world.asked[0].max_tokens) == ("", 9)


def test_the_rest_of_an_answer_is_asked_for_under_a_key_of_its_own():
    world = World(lambda call: " three", agent(continues_prefix=True))

    async def taken_over():
        turn = world.turn()
        turn.messages[:], turn.delivered = [Message("user", "go")], "one two"
        return await model_step(turn, Asked([], []))

    assert asyncio.run(taken_over()).message.text == "one two three"
    assert (world.asked[0].key, world.asked[0].messages[-1].text) == ("r/1/7", "one two")


def test_time_that_runs_short_is_told():
    world = World(endless(["look"]), agent(), Limits(deadline_s=1_000.0, max_steps=3))
    world.journal.state = TurnState(phase="prepare", active_ms=900_000).encode()
    world.run()
    assert "less than a fifth of the time" in notes(world.asked[0])


def test_calls_beyond_the_limit_are_refused_and_the_run_answers():
    world = World(endless(["look"] * 3), agent(), Limits(max_tool_calls=4))
    result = world.run()
    assert (result["output_text"], result["usage"]["tool_calls"], len(world.executed)) == ("enough", 4, 4)
    assert [data["error"]["code"] for data in world.journal.of("tool_call_failed")] == ["limit.tool_calls"] * 2


def test_a_run_that_ends_between_two_calls_has_used_those_that_were_started():
    def stops(name, arguments):
        raise RunStopped("DEADLINE_EXCEEDED", "no time left")

    world = World(lambda call: new_calls(call, ["look", "look", "mail", "mail"]), agent(), tool=stops)
    used = world.run()["usage"]["tool_calls"]
    assert used == len(world.journal.of("tool_call_started")) == 2


def test_the_same_call_again_and_again_is_warned_of_once_and_then_ends_the_run():
    world = World(lambda call: [("look", {"a": 1, "b": 2} if steps_before(call) % 2 else {"b": 2, "a": 1})], agent())
    result = world.run()
    assert (result["error"]["reason"], result["usage"]["model_calls"], len(world.executed)) == ("ABNORMAL_USAGE", 4, 3)
    assert [data["code"] for data in world.journal.of("warning")] == ["abnormal_usage"]
    assert ["again and again" in notes(call) for call in world.asked] == [False, False, False, True]
    heeding = World(lambda call: "I see" if notes(call) else [LOOK], agent(loop_guard=LoopGuard(repeats=5)))
    assert (heeding.run()["output_text"], len(heeding.executed)) == ("I see", 5)


def test_steps_that_bring_nothing_new_end_the_run():
    guard = LoopGuard(idle_steps=3)
    failing = World(endless(["look"]), agent(loop_guard=guard), tool=lambda name, arguments: ToolOutcome("failed", code="no"))
    result = failing.run()
    assert (result["error"]["reason"], result["usage"]["model_calls"]) == ("ABNORMAL_USAGE", 4)
    assert ["nothing new" in notes(call) for call in failing.asked] == [False, False, False, True]
    # Every other call fails, so there is progress.
    mixed = World(
        lambda call: new_calls(call, ["look"]) if steps_before(call) < 12 else "done", agent(loop_guard=guard),
        tool=lambda name, arguments: ToolOutcome("failed" if int(arguments["n"][:-2]) % 2 else "done", b"{}"),
    )  # fmt: skip
    assert mixed.run()["output_text"] == "done"


@pytest.mark.parametrize("lost", range(1, 9))
def test_the_warning_survives_its_owner(lost):
    world = World(lambda call: [LOOK], agent(), journal=Journal({lost: bool(lost % 2)}))
    assert world.run()["error"]["reason"] == "ABNORMAL_USAGE"
    assert len(world.journal.of("warning")) == 1
    assert len(world.executed) == 3


def test_a_process_that_goes_away_starts_no_further_call_and_the_next_owner_does():
    world = World(lambda call: "done" if steps_before(call) else new_calls(call, ["mail", "mail", "look"]), agent())
    # Asked at the top of the loop twice, for the preparation and the model, then by the loop and after the first mail.
    asked = iter([False] * 3 + [True] * 2)
    world.leaving = lambda: next(asked, False)
    assert world.run()["output_text"] == "done"
    assert world.owners == 2
    assert (list(world.executed.values()), world.faults) == ([1, 1, 1], [])
    assert world.sent == ["r/1/0", "r/1/1", "r/1/2"]


def test_a_cancel_tells_of_what_another_owner_had_at_work_and_not_of_what_waits():
    world = World(lambda call: "", agent())
    pending = [
        PendingCall(0, "a", "mail", "1", "{}", False, 1.0), PendingCall(1, "b", "mail", "1", "{}", False, 1.0, started=False),
        # Announced and never sent, so that it is known what became of them.
        PendingCall(2, "c", "mail", "1", "{}", False, 1.0, over=True), PendingCall(3, "d", "fax", "", "{}", False, 0.0),
    ]  # fmt: skip
    world.journal.state = TurnState(phase="tools", step=1, pending=pending).encode()

    async def cancelled():
        turn = world.turn()
        report_unfinished(turn, "cancelled")
        await turn.writer.flush()

    asyncio.run(cancelled())
    told = {data["call_id"]: data["error"]["code"] for data in world.journal.of("tool_call_failed")}
    assert told == {"a": "tool_outcome_unknown", "c": "limit.tool_calls", "d": "input.unknown_tool"}


@pytest.mark.parametrize(
    ("calls", "most", "numbers"),
    [
        ("www", None, [0, 1, 2]),
        ("www", 2, [0, 1]),
        ("sww", 2, [1]),
        ("ssw", 2, []),
        ("wWw", None, [0]),
        ("Www", None, [0]),
        ("Sww", None, []),
        ("sWw", None, []),
        ("Ww", 1, [0]),
        ("", None, []),
    ],
)
def test_which_calls_may_start(calls, most, numbers):
    """s: started, w: waiting, upper case: alone."""
    pending = [
        PendingCall(i, "", "", "1", "", True, 1.0, started=kind.lower() == "s", alone=kind.isupper()) for i, kind in enumerate(calls)
    ]
    assert [call.number for call in startable(pending, most)] == numbers


def test_an_agents_own_order_holds():
    one_by_one = World(lambda call: "done" if steps_before(call) else [LOOK] * 3, agent(parallel_tool_calls=False))
    one_by_one.run()
    assert one_by_one.most_running == 1
    alone = World(lambda call: "done" if steps_before(call) else [LOOK] * 3, agent(sequential_tools=("look",)))
    alone.run()
    assert (alone.most_running, alone.sent) == (1, ["r/1/0", "r/1/1", "r/1/2"])


def test_a_checkpoint_of_the_version_before_is_gone_on_with():
    old = orjson.loads(TurnState(phase="tools", step=1, started_step=1).encode())
    for name in ("spent", "guard"):
        del old[name]
    old["pending"] = [[0, "x", "mail", "1", "{}", False, 1.0]]
    assert "marks" not in old
    state = TurnState.decode(old)
    assert state.pending == [PendingCall(0, "x", "mail", "1", "{}", False, 1.0, started=True, alone=False, over=False)]
    assert (state.spent, state.asked, state.warned_step) == ((0, 0), {}, 0)


def test_what_the_version_before_reads_of_a_checkpoint_is_as_it_was():
    call = PendingCall(0, "x", "mail", "1", "{}", False, 1.0, started=False, alone=True, over=True)
    stored = orjson.loads(TurnState(phase="tools", pending=[call]).encode())
    assert stored["pending"] == [[0, "x", "mail", "1", "{}", False, 1.0]]
    assert TurnState.decode(stored).pending == [call]


# --- plan_execute ---


def plan_of(*steps):
    return ("update_plan", {"steps": [{"title": title, "status": status} for title, status in steps]})


def planning(call):
    if not steps_before(call):
        return [plan_of(("look", "pending"), ("tell", "pending"))]
    return [[("look", {})], [plan_of(("look", "done"), ("tell", "in_progress"))], "told"][steps_before(call) - 1]


@pytest.mark.parametrize("lost", range(13))
def test_a_plan_is_written_worked_off_and_survives_its_owner(lost):
    world = World(planning, agent(strategy="plan_execute"), journal=Journal({lost: bool(lost % 2)}))
    assert world.run()["output_text"] == "told"
    assert list(world.executed) == ["r/2/0"]
    plans = world.journal.of("plan_updated")
    assert [(plan["version"], [step["status"] for step in plan["steps"]]) for plan in plans] == [
        (1, ["pending", "pending"]), (2, ["done", "in_progress"]),
    ]  # fmt: skip
    offered = {steps_before(call): [tool.name for tool in call.tools] for call in world.asked}
    assert offered == {0: ["update_plan"], **{step: ["update_plan", "look", "mail"] for step in (1, 2, 3)}}
    told = {steps_before(call): notes(call) for call in world.asked}
    assert "write a plan" in told[0]
    assert "[pending] look" in told[2]
    assert "[in_progress] tell" in told[3]


@pytest.mark.parametrize(
    "arguments", [{}, {"steps": []}, {"steps": [{"title": "x", "status": "soon"}]}, {"steps": [{"title": ""}]}, {"x": 1}]
)
def test_a_plan_that_is_none_is_told_to_the_model(arguments):
    world = World(lambda call: "sorry" if steps_before(call) else [("update_plan", arguments)], agent(strategy="plan_execute"))
    assert world.run()["output_text"] == "sorry"
    assert [data["error"]["code"] for data in world.journal.of("tool_call_failed")] == ["input.invalid"]
    assert not world.journal.of("plan_updated")


def test_a_task_that_needs_no_plan_is_answered_at_once():
    world = World(lambda call: "42", agent(strategy="plan_execute"))
    assert (world.run()["output_text"], len(world.asked)) == ("42", 1)
