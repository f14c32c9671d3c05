"""A process that goes hands over all that it owns, what was on its way to it when it was told so included."""

import asyncio
from types import SimpleNamespace

import pytest

from services.common import testing
from services.orchestrator import worker
from services.orchestrator.driving import Left
from services.orchestrator.records import Claim
from services.orchestrator.testing.memory_store import MemoryStore
from services.orchestrator.testing.memory_store_state import MemoryState
from services.orchestrator.testing.runs import accept, new_ref
from services.orchestrator.worker import Worker

SETTINGS = SimpleNamespace(track="stable", lease_s=3.0, crash_budget=3, max_active_runs=20, drain_grace_s=testing.PATIENCE_S)
SILENT = SimpleNamespace(watched=lambda ref: False, left=lambda ref: None)


class SlowStore(MemoryStore):
    """Answers a claim when `answered` is set."""

    async def claim(self, *args, **fields):
        """As RunStore.claim."""
        claim = await super().claim(*args, **fields)
        await self.answered.wait()
        return claim


class Process:
    """A worker that is given runs, and what its driver did with them: work ends where it is told to go."""

    def __init__(self):
        self.store, self.handed_over = SlowStore(MemoryState(), "one"), []
        self.store.answered = asyncio.Event()
        self.worker = Worker(SETTINGS, self.store, SILENT, None, SimpleNamespace(children=None), None, None)
        self.worker._driver = self

    async def drive(self, owned, claim):
        """As Driver.drive."""
        await testing.eventually_async(lambda: self.worker.draining, "it is to go")
        self.handed_over.append(owned.ref)
        return Left("released")

    async def accepted(self):
        """A run that waits for somebody."""
        ref = new_ref()
        assert await accept(self.store, ref) == "new"
        return ref


@pytest.fixture
async def process(monkeypatch):
    # What takes longer than a moment to come must not be left behind.
    monkeypatch.setattr(worker, "HAND_OVER_S", 0.0)
    made = Process()
    yield made
    await made.worker.close()


async def goes(process):
    """The drain of a process, which had the time to end if it had nothing to wait for."""
    draining = asyncio.create_task(process.worker.drain())
    idle = asyncio.create_task(Process().worker.drain())
    await idle
    return draining


async def test_a_run_whose_claim_is_on_its_way_is_handed_over(process):
    ref = await process.accepted()
    assert process.worker.take(ref)
    draining = await goes(process)
    assert not draining.done()
    process.store.answered.set()
    await draining
    assert process.handed_over == [ref]


async def test_a_run_that_is_being_accepted_is_handed_over(process):
    assert process.worker.hold_room()
    draining = await goes(process)
    assert not draining.done()
    ref = await process.accepted()
    process.store.answered.set()
    claim = await process.store.claim(ref, 3.0, 3)
    # As whoever accepts does: between the two nobody else has a turn.
    process.worker.free_room()
    process.worker.adopt(ref, Claim("claimed", claim.record))
    await draining
    assert process.handed_over == [ref]


async def test_room_that_was_held_for_nothing_is_not_waited_for_any_more(process):
    assert process.worker.hold_room()
    draining = await goes(process)
    process.worker.free_room()
    await draining
    assert not process.handed_over
