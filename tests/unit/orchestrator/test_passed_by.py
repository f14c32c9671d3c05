"""A run that only the newer version reads, among many replicas of the version before: those take its wake-ups and leave it, and look at it
when it is due and leave it as well. A newer replica with room finds it all the same, within seconds."""

import asyncio
import random
from types import SimpleNamespace

from services.orchestrator.records import SCHEMA_VERSION, Inspected, Park, RunRef, Schedule
from services.orchestrator.sweeper import AHEAD_EVERY, PASSED_BY_S, Sweeper
from services.orchestrator.testing.memory_store import MemoryStore
from services.orchestrator.testing.memory_store_state import MemoryState
from services.orchestrator.testing.runs import accept, new_ref

OLD = 19
TURN_S = 0.5
SEEDS = range(20)
# As long as it is left to the queue, and until the next look at what others have looked at.
BOUND_S = PASSED_BY_S + (AHEAD_EVERY + 1) * TURN_S


class Newer:
    """The worker of the newer version, with room from a date on."""

    def __init__(self, state, room_from_ms):
        self.state, self.room_from_ms, self.taken_ms = state, room_from_ms, 0

    def owns(self, ref):
        return False

    def has_room(self):
        return self.state.clock.now_ms >= self.room_from_ms

    def take(self, ref):
        if not self.has_room():
            return False
        self.taken_ms = self.taken_ms or self.state.clock.now_ms
        return True


class Crowded(MemoryStore):
    """A store with many runs at work, whose leases end all the time and are renewed."""

    def __init__(self, state, chance, others):
        super().__init__(state, "new")
        self._chance, self._others = chance, {RunRef("acme", f"t{n}", f"r{n}") for n in range(others)}
        state.live.update({ref.encode(): state.clock.now_ms + chance.randrange(2_000) for ref in self._others})

    async def inspect(self, ref):
        if ref in self._others:
            return Inspected("owned", self._chance.randrange(1, 2_000), "stable", 0, SCHEMA_VERSION, 0, "r", 1)
        return await super().inspect(ref)


async def waited_s(seed, room_after_s=0.0, others=0):
    """How long a run that rested waits from when it may go on to when it is taken; no time is given to those who would wait longer."""
    chance, state = random.Random(seed), MemoryState()
    store = Crowded(state, chance, others)
    ref = new_ref()
    await accept(store, ref)
    claim = await store.claim(ref, 10.0, 100)
    await store.write(ref, claim.record.epoch, 1, "", [], mode="p", park=Park(0, 0))
    await store.post(ref, "decision", b"{}")
    await store.admit(ref, Schedule(), claim.record.epoch)
    await store.enter(ref)
    began_ms = state.clock.now_ms
    worker = Newer(state, began_ms + room_after_s * 1000)
    sweeper = Sweeper(SimpleNamespace(track="stable", other_track_after_s=60.0), store, worker, SimpleNamespace())
    await store.wake(ref, "stable", 0)
    while not worker.taken_ms and state.clock.now_ms - began_ms < 3_600_000:
        state.clock.advance(TURN_S)
        order = ["new"] + ["old"] * OLD
        chance.shuffle(order)
        for who in order:
            if who == "new":
                await sweeper.turn()
                # One of all who wait for a wake-up is the newer one.
                if await store.depth("stable") and chance.random() < 1 / (OLD + 1):
                    worker.take(await store.next_waiting("stable"))
            else:
                await store.due(200, 1.0)
                await store.next_waiting("stable")
    return (worker.taken_ms - began_ms) / 1000 if worker.taken_ms else 3_600.0


def test_a_run_that_the_version_before_passes_by_is_taken_within_seconds():
    for seed in SEEDS:
        assert asyncio.run(waited_s(seed)) <= BOUND_S


def test_it_is_found_among_a_thousand_others():
    for seed in SEEDS[:6]:
        assert asyncio.run(waited_s(seed, others=1_000)) <= BOUND_S


def test_one_for_which_there_was_no_room_is_taken_as_soon_as_there_is():
    for seed in SEEDS[:8]:
        assert asyncio.run(waited_s(seed, 30.0)) <= 30.0 + BOUND_S


async def test_what_others_own_or_read_is_left_to_them():
    """A run that is not there for the taking, of the other track, or of a schema that is newer still."""
    taken, left = [], Inspected("free", 0, "stable", 60_000, SCHEMA_VERSION, 0, "r", 1)
    cases = {
        "ours": left, "owned": left._replace(state="owned"), "other track": left._replace(track="canary"),
        "read by all": left._replace(schema=1), "newer still": left._replace(schema=SCHEMA_VERSION + 1),
        "just now": left._replace(alone_ms=100),
    }  # fmt: skip

    class OneRun:
        async def inspect(self, ref):
            return cases[ref.run_id]

    worker = SimpleNamespace(owns=lambda ref: False, take=lambda ref: taken.append(ref.run_id) or True)
    sweeper = Sweeper(SimpleNamespace(track="stable", other_track_after_s=60.0), OneRun(), worker, SimpleNamespace())
    for name in cases:
        await sweeper._rescue(RunRef("acme", "t", name))
    assert taken == ["ours"]
