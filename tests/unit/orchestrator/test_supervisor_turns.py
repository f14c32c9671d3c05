"""A supervisor's turn whose owners are lost at any write: children made once, their answers taken once, and no owner that waits idly."""

import asyncio
from contextlib import aclosing

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.common.errors import BudgetExceeded, Overloaded
from services.orchestrator.agents import ChildAgent
from services.orchestrator.records import Fenced, Limits, Park
from services.orchestrator.testing.turn_world import Journal, World, agent
from services.orchestrator.turn import patience

LEAD = agent(strategy="supervisor", agents=(ChildAgent(name="other", mode="both"),))
LOSSES = st.dictionaries(st.integers(1, 12), st.booleans(), max_size=4)
TASK = {"task": "do it"}


class Others:
    """ports.Children: each child ends `after_s` after it was asked for first, unless it is deleted; nobody hears of it unless `telling`."""

    def __init__(self, world, after_s, away=0, deleted=False, active=(0, 0, 0), telling=True):
        self.world, self.after_s, self.away, self.deleted, self.active, self.telling = world, after_s, away, deleted, active, telling
        self.asked, self.cancelled, self.over = [], [], {}

    async def create(self, run, principal):
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise Overloaded("the store is away", reason="STORE_UNAVAILABLE")
        if run.run_id not in self.asked and not self.deleted:
            asyncio.get_running_loop().call_later(self.after_s, self._end, run.run_id)
        self.asked.append(run.run_id)

    def _end(self, run_id):
        active_ms, started_ms, ended_ms = self.active
        self.over[run_id] = {
            "run_id": run_id, "thread_id": "t", "status": "succeeded", "output_text": "from the other",
            "usage": {"output_tokens": 3, "cost_microusd": 7},
            "active_ms": active_ms, "started_ms": started_ms, "ended_ms": ended_ms,
        }  # fmt: skip
        if self.telling:
            self.world.post("child", **self.over[run_id])

    async def cancel(self, run_id, principal):
        self.cancelled.append(run_id)

    async def ended(self, run_id, thread_id, principal):
        await asyncio.sleep(0)
        return None if self.deleted else self.over.get(run_id, {})


class Supervised(World):
    def turn(self, on_lost=lambda: None):
        turn = super().turn(on_lost)
        turn.services.children = self.others
        return turn

    async def _park(self, turn, parked):
        self.parked.append(parked.until_ms)
        try:
            await turn.writer.park(turn.snapshot(parked=True), turn.unstored(), Park(parked.until_ms, turn.state.inbox))
        except (Fenced, asyncio.CancelledError):
            asyncio.current_task().uncancel()
            return
        while len(self.inbox) <= turn.state.inbox and not self.others.deleted:
            await asyncio.sleep(0.001)
            if self.others.over and not self.others.telling:
                # It looks after its children from time to time.
                return


def lead(reply, lost_at=None, after_s=0.0, limits=Limits(), **others):
    world = Supervised(reply, LEAD, limits, Journal(lost_at or {}))
    world.others = Others(world, after_s, **others)
    return world


def first(*calls, then="done"):
    return lambda call: then if call.messages[-1].role == "tool" else list(calls)


@settings(max_examples=40, deadline=None)
@given(lost_at=LOSSES, after_s=st.sampled_from([0.0, 0.01]))
def test_the_answer_of_whom_a_conversation_was_handed_to_is_the_runs_whoever_is_lost(lost_at, after_s):
    world = lead(first(("hand_over_to_other", TASK), then="of my own"), lost_at, after_s)
    assert world.run()["output_text"] == "from the other"
    assert {call.key for call in world.asked} == {"r/1"}
    assert set(world.others.asked) == {"r.1.0"}


@settings(max_examples=40, deadline=None)
@given(lost_at=LOSSES, after_s=st.sampled_from([0.0, 0.01]), telling=st.booleans())
def test_what_a_child_used_is_counted_once_whoever_is_lost_and_whoever_hears_of_it(lost_at, after_s, telling):
    world = lead(first(("delegate_to_other", TASK), ("delegate_to_other", TASK)), lost_at, after_s, telling=telling)
    ended = world.run()
    assert ended["output_text"] == "done"
    assert ended["usage"]["output_tokens"] == 2 * 3 + 2 * 2
    assert len(world.journal.of("child_run_finished")) == 2


def test_what_children_took_of_the_money_is_not_there_for_the_runs_own_calls():
    world = lead(first(("delegate_to_other", TASK), ("delegate_to_other", TASK)), limits=Limits(max_cost_microusd=100))
    world.run()
    assert [call.budget_microusd for call in world.asked] == [100, 100 - 2 * 7]
    world = lead(first(("delegate_to_other", TASK)))
    world.run()
    assert {call.budget_microusd for call in world.asked} == {None}


def test_a_run_is_parked_while_a_child_works_and_an_effect_waits_behind_it():
    world = lead(first(("delegate_to_other", TASK), ("mail", {})), after_s=0.05)
    assert world.run()["output_text"] == "done"
    assert world.parked
    assert world.sent == ["r/1/1"]


def test_a_child_that_was_deleted_is_told_to_the_model():
    world = lead(first(("delegate_to_other", TASK)), deleted=True)
    assert world.run()["output_text"] == "done"
    (failed,) = world.journal.of("tool_call_failed")
    assert failed["error"]["code"] == "agent.run_not_found"
    assert all(until_ms for until_ms in world.parked)


def test_a_store_that_is_away_for_a_moment_costs_no_owner(monkeypatch):
    monkeypatch.setattr(patience, "AWAY_WAIT_S", 0.01)
    world = lead(first(("delegate_to_other", TASK)), away=3)
    assert world.run()["output_text"] == "done"
    assert world.owners - len(world.parked) == 1


def test_time_that_children_spend_side_by_side_passes_once():
    begun = 1_800_000_000_000
    world = lead(
        first(("delegate_to_other", TASK), ("delegate_to_other", TASK)), limits=Limits(deadline_s=60),
        active=(40_000, begun, begun + 40_000),
    )  # fmt: skip
    assert world.run()["output_text"] == "done"
    assert 40_000 <= orjson.loads(world.journal.state)["active_ms"] < 50_000


class Greedy(Others):
    """Children that use all that they are given, and more tokens by one."""

    async def create(self, run, principal):
        if run.run_id not in self.asked:
            self.given = {**getattr(self, "given", {}), run.run_id: run.limits}
        return await super().create(run, principal)

    def _end(self, run_id):
        limits = self.given[run_id]
        usage = {
            "tool_calls": limits.max_tool_calls,
            "cost_microusd": limits.max_cost_microusd,
            "input_tokens": limits.max_total_tokens + 1,
        }
        self.over[run_id] = {"run_id": run_id, "thread_id": "t", "status": "succeeded", "output_text": "all of it", "usage": usage}
        self.world.post("child", **self.over[run_id])


class Billed(Supervised):
    """Its model refuses what the money of the run does not cover, as the LLM gateway does."""

    async def stream(self, call):
        if call.budget_microusd is not None and self.billed + self.usage(0)[2] > call.budget_microusd:
            raise BudgetExceeded("the run's money is used up", reason="BUDGET_EXCEEDED")
        async with aclosing(super().stream(call)) as stream:
            async for item in stream:
                yield item


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=2),
    most=st.integers(2, 30),
    at_once=st.sampled_from([None, 1, 2]),
    answers=st.lists(st.lists(st.sampled_from(["delegate_to_a", "delegate_to_b", "look", "mail"]), min_size=1, max_size=9), max_size=4),
    lost_at=LOSSES,
)
# The last call of the run is refused where its children have left it less than that costs.
@example([0.78125, 0.75], 20, None, [["delegate_to_b", "delegate_to_a", "delegate_to_a"], ["delegate_to_a"]], {})
def test_a_run_and_its_children_never_pass_its_limits_of_tool_calls_and_money_together(shares, most, at_once, answers, lost_at):
    def reply(call):
        at = sum(bool(message.tool_calls) for message in call.messages)
        if at >= len(answers) or not call.tools:
            return "done"
        return [
            (name, {**(TASK if "_to_" in name else {}), **({} if "_to_" in name else {"n": [at, i]})}) for i, name in enumerate(answers[at])
        ]

    agents = tuple(ChildAgent(name=name, share=share) for name, share in zip("ab", shares, strict=True))
    limits = Limits(max_tool_calls=most, max_cost_microusd=1000, max_total_tokens=5000)
    world = Billed(reply, agent(strategy="supervisor", agents=agents, tool_concurrency=at_once), limits, Journal(lost_at))
    world.others = Greedy(world, 0.0)
    used = world.run()["usage"]
    made = len(world.executed) + len({data["run_id"] for data in world.journal.of("child_run_started")})
    assert made <= used["tool_calls"] <= most
    assert used["cost_microusd"] <= 1000
    others = len(world.journal.of("child_run_finished"))
    assert used["input_tokens"] + used["output_tokens"] <= 5000 + others + 12
