"""`agent_status` says at each moment of a run's log what its agent does: told before it begins, and once."""

import asyncio
import itertools

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.agent_status import SEARCHING, STATUSES, THINKING, AgentStatus
from services.orchestrator.records import Park, RunRef, Terminal, Written
from services.orchestrator.testing.turn_world import Journal, World, agent, steps_before
from services.orchestrator.writer import RunWriter


def shown(events):
    """Statuses and what they announce, in order."""
    kinds = ("agent_status", "step_started", "tool_call_started", "message_delta")
    return [(kind, *data.values()) if kind == "agent_status" else kind for kind, data in events if kind in kinds]


def test_a_run_tells_what_it_does_before_it_does_it_and_only_what_changes():
    world = World(lambda call: "done" if steps_before(call) else [("look", {}), ("look", {"n": 1}), ("mail", {})], agent())
    world.run()
    assert shown(world.journal.events) == [
        ("agent_status", "thinking"), "step_started",
        ("agent_status", "calling_tool", "look"), "tool_call_started", "tool_call_started",
        ("agent_status", "calling_tool", "mail"), "tool_call_started",
        ("agent_status", "thinking"), "step_started",
        ("agent_status", "writing"), "message_delta",
    ]  # fmt: skip


names_of_a_step = st.lists(st.sampled_from(["look", "mail"]), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(names_of_a_step, max_size=4),
    lost_at=st.dictionaries(st.integers(1, 20), st.booleans(), max_size=5),
    strategy=st.sampled_from(["react", "plan_execute"]),
)
def test_whoever_owns_a_run_its_last_status_is_what_it_does(steps, lost_at, strategy):
    def reply(call):
        before = steps_before(call)
        if strategy == "plan_execute" and not before:
            return [("update_plan", {"steps": [{"title": "look", "status": "in_progress"}]})]
        return [(name, {"n": f"{before}.{i}"}) for i, name in enumerate(steps[before])] if before < len(steps) else "done"

    world = World(reply, agent(strategy=strategy), journal=Journal(lost_at))
    world.run()
    last, told = None, []
    for kind, data in world.journal.events:
        if kind == "agent_status":
            assert data["status"] in STATUSES
            last = (data["status"], data.get("detail", ""))
            told.append(last)
        elif kind == "step_started":
            assert last == ("thinking", "")
        elif kind == "tool_call_started":
            assert last == ("calling_tool", data["tool"])
        elif kind == "message_delta":
            assert last == ("writing", "")
    # Only another owner says again what the one before it said.
    assert sum(a == b for a, b in itertools.pairwise(told)) < world.owners


def test_what_has_no_model_call_is_no_thinking():
    status = AgentStatus()
    assert status.before("step_started", {"step": 1, "name": "send"}) is None
    assert status.before("usage", {"step": 1}) is None
    told = status.before("step_started", {"step": 2, "name": "judge", "idempotency_key": "r/2"})
    assert (told.type, orjson.loads(told.data), told.provisional) == ("agent_status", {"status": "thinking", "detail": "judge"}, False)
    assert status.before("step_started", {"step": 3, "name": "judge", "idempotency_key": "r/3"}) is None


class Log:
    """A store that takes what is written."""

    def __init__(self):
        self.writes = []

    async def write(self, ref, epoch, number, trace_id, drafts, *, mode, **parts):
        self.writes.append((mode, [(draft.type, orjson.loads(draft.data).get("status", "")) for draft in drafts]))
        return Written(number * 100, number * 100 + len(drafts), 0, "")


class Hub:
    def watched(self, ref):
        return False


@pytest.fixture
def made():
    log = Log()
    return log, RunWriter(log, Hub(), RunRef("acme", "t", "r"), 1, 1, trace_id="", batch_s=0.002, patience_s=9.0, on_lost=lambda: None)


async def test_a_search_is_told_at_once_and_takes_nothing_along_that_waits_for_its_state(made):
    log, writer = made
    writer.emit("guard_triggered", {})
    writer.tell_soon(SEARCHING)
    await asyncio.sleep(0.05)
    assert log.writes == [("e", [("agent_status", "searching")])]
    writer.tell_soon(SEARCHING)
    await writer.checkpoint(b"{}")
    assert log.writes[1:] == [("c", [("guard_triggered", "")])]


async def test_who_takes_text_back_thinks_anew(made):
    log, writer = made
    writer.delta("m", "some")
    await asyncio.sleep(0.05)
    await writer.supersede()
    writer.delta("m", "other")
    await writer.finish(Terminal("succeeded", b"{}", "run_finished", b"{}"))
    assert [drafts for _, drafts in log.writes] == [
        [("agent_status", "writing"), ("message_delta", "")],
        [("agent_status", THINKING), ("attempt_superseded", "")],
        [("agent_status", "writing"), ("message_delta", "")],
    ]


def test_who_waits_says_so_once_however_often_somebody_looks_after_it():
    world = World(lambda call: "done", agent())

    async def rest(*before):
        turn = world.turn()
        for status in before:
            turn.writer.tell(*status)
            await turn.writer.checkpoint(turn.snapshot())
        turn.tell_rest("waiting_approval")
        await turn.writer.park(turn.snapshot(parked=True), turn.unstored(), Park(0, 0))

    async def run():
        await rest(("thinking",))
        await rest()
        await rest()
        # What it was asked has led to something, and it waits once more.
        await rest(("calling_tool", "look"))
        await rest()

    asyncio.run(run())
    assert [tuple(data.values()) for data in world.journal.of("agent_status")] == [
        ("thinking",), ("waiting_approval",), ("calling_tool", "look"), ("waiting_approval",),
    ]  # fmt: skip
