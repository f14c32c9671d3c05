"""A supervisor's turn whose owners are lost at any write: children made once, their answers taken once, and no owner that waits idly."""

import asyncio

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import Overloaded
from services.orchestrator.agents import ChildAgent
from services.orchestrator.records import Fenced, Limits, Park
from services.orchestrator.testing.turn_world import Journal, World, agent
from services.orchestrator.turn import supervisor

LEAD = agent(strategy="supervisor", agents=(ChildAgent(name="other", mode="both"),))
LOSSES = st.dictionaries(st.integers(1, 12), st.booleans(), max_size=4)
TASK = {"task": "do it"}


class Others:
    """ports.Children: each child ends `after_s` after it was asked for first, unless it is deleted."""

    def __init__(self, world, after_s, away=0, deleted=False, active=(0, 0, 0)):
        self.world, self.after_s, self.away, self.deleted, self.active = world, after_s, away, deleted, active
        self.asked, self.cancelled = [], []

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
        self.world.post(
            "child", run_id=run_id, thread_id="t", status="succeeded", output_text="from the other", usage={"output_tokens": 3},
            active_ms=active_ms, started_ms=started_ms, ended_ms=ended_ms,
        )  # fmt: skip

    async def cancel(self, run_id, principal):
        self.cancelled.append(run_id)

    async def gone(self, run_id, thread_id, principal):
        await asyncio.sleep(0)
        return self.deleted


class Supervised(World):
    def turn(self, on_lost=lambda: None):
        turn = super().turn(on_lost)
        turn.services.children = self.others
        return turn

    async def _park(self, turn, parked):
        self.parked.append(parked.until_ms)
        try:
            await turn.writer.park(turn.snapshot(), turn.unstored(), Park(parked.until_ms, turn.state.inbox))
        except (Fenced, asyncio.CancelledError):
            asyncio.current_task().uncancel()
            return
        while len(self.inbox) <= turn.state.inbox and not self.others.deleted:
            await asyncio.sleep(0.001)


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
@given(lost_at=LOSSES, after_s=st.sampled_from([0.0, 0.01]))
def test_what_a_child_used_is_counted_once_whoever_is_lost(lost_at, after_s):
    world = lead(first(("delegate_to_other", TASK), ("delegate_to_other", TASK)), lost_at, after_s)
    ended = world.run()
    assert ended["output_text"] == "done"
    assert ended["usage"]["output_tokens"] == 2 * 3 + 2 * 2
    assert len(world.journal.of("child_run_finished")) == 2


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
    monkeypatch.setattr(supervisor, "AWAY_WAIT_S", 0.01)
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
