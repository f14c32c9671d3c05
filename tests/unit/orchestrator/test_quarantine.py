"""A process works on one run at a time that the next loss ends: whoever is to blame for its end ends alone."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import testing
from services.orchestrator.driving import Left
from services.orchestrator.records import Fenced, RunRef
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.testing.memory_store import MemoryStore
from services.orchestrator.testing.memory_store_state import MemoryState
from services.orchestrator.testing.runs import accept, done, new_ref
from services.orchestrator.worker import Worker

LEASE_S, BUDGET = 3.0, 3
SETTINGS = SimpleNamespace(track="stable", lease_s=LEASE_S, crash_budget=BUDGET, max_active_runs=20, other_track_after_s=60.0)


class Silent:
    """A hub and an outbox that nobody looks at."""

    def __init__(self, store=None):
        self._store = store

    def watched(self, ref):
        return False

    def noticed(self, ref, last_seq):
        pass

    def left(self, ref):
        pass

    async def settle(self, ref):
        await self._store.settle(ref)


class Process:
    """A real worker and a real sweeper; its driver works on a run as the test says."""

    def __init__(self, state, name, work):
        self.store, self._work = MemoryStore(state, name), work
        outbox = Silent(self.store)
        self.worker = Worker(SETTINGS, self.store, Silent(), None, SimpleNamespace(children=None), outbox, None)
        self.worker._driver = self
        self.sweeper = Sweeper(SETTINGS, self.store, self.worker, outbox)

    async def drive(self, owned, claim):
        """As Driver.drive."""
        return await self._work(self, owned)

    async def sweep(self):
        """One round of what the process does forever."""
        for ref in await self.store.due(100, 1.0):
            await self.sweeper._look(ref)
        while (ref := await self.store.next_waiting("stable")) is not None:
            self.worker.take(ref)

    async def kill(self):
        """Nothing of it goes on."""
        self.worker.draining = True
        await self.worker.close()

    @property
    def at_work(self):
        return set(self.worker.owned)


async def suspects(state, count):
    """Runs that have lost all owners but the last."""
    store, refs = MemoryStore(state, "lost"), [new_ref() for _ in range(count)]
    for ref in refs:
        assert await accept(store, ref) == "new"
        for _ in range(BUDGET - 1):
            await store.claim(ref, LEASE_S, BUDGET)
            state.clock.advance(LEASE_S * 2)
    return refs


async def forever(process, owned):
    await asyncio.Event().wait()


@pytest.fixture
def state():
    return MemoryState()


async def test_who_comes_on_or_ends_makes_room_for_the_next(state):
    ended = asyncio.Event()

    async def until_told(process, owned):
        await ended.wait()
        ended.clear()
        return Left("lost")

    first, second, third = await suspects(state, 3)
    process = Process(state, "one", until_told)
    for ref in (first, second, third):
        assert process.worker.take(ref)
    await testing.eventually_async(lambda: process.worker._claiming == 0, "all are asked for")
    assert process.at_work == {first}
    process.worker.owned[first].on_progress()
    await testing.eventually_async(lambda: process.at_work == {first, second}, "the second is taken")
    process.worker.owned[first].on_progress()
    await testing.eventually_async(lambda: process.worker._claiming == 0, "nobody is asked for")
    assert process.at_work == {first, second}, "a run that came on long ago makes no room a second time"
    ended.set()
    await testing.eventually_async(lambda: not ended.is_set() and len(process.at_work) == 1, "the first has left")
    ended.set()
    await testing.eventually_async(lambda: process.at_work == {third}, "the third is taken")
    await process.kill()


async def test_each_process_has_a_place_and_the_sweeper_offers_who_is_left(state):
    first, second = await suspects(state, 2)
    one, two = (Process(state, name, forever) for name in ("one", "two"))
    assert one.worker.take(first)
    await testing.eventually_async(lambda: one.at_work == {first}, "the first is taken")
    assert one.worker.take(second)
    await testing.eventually_async(lambda: one.worker._claiming == 0, "the second is turned away")
    await two.sweep()
    assert two.at_work == set(), "it was put off, and nobody turns in circles"
    state.clock.advance(2.5)
    await two.sweep()
    await testing.eventually_async(lambda: two.at_work == {second}, "another process takes it")
    assert one.at_work == {first}
    await asyncio.gather(one.kill(), two.kill())


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    needs=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=5, max_size=8),
    fatal_after=st.integers(1, 8),
    processes=st.integers(1, 3),
    first=st.booleans(),
)
def test_one_run_that_kills_ends_alone(needs, fatal_after, processes, first):
    """`needs`: rounds that each step of each innocent run takes; the poisonous one kills its process `fatal_after` rounds after its
    claim."""

    async def scenario():
        state, rounds, dead = MemoryState(), [0], []
        poison, innocent = RunRef("acme", "t", "poison"), {new_ref(): steps for steps in needs}
        left = {ref: list(steps) for ref, steps in innocent.items()}

        async def pass_(count):
            until = rounds[0] + count
            while rounds[0] < until:
                await asyncio.sleep(0)

        async def work(process, owned):
            ref, epoch, number = owned.ref, owned.record.epoch, 0
            if ref == poison:
                await pass_(fatal_after)
                dead.append(process)
                await asyncio.Event().wait()
            while left[ref]:
                await pass_(left[ref][0])
                number += 1
                await process.store.write(ref, epoch, number, "", [], mode="c", state=b"{}")
                owned.on_progress()
                left[ref].pop(0)
            return Left("succeeded", await process.store.write(ref, epoch, number + 1, "", [], mode="f", terminal=done()))

        made = [Process(state, f"p{n}", work) for n in range(processes)]
        watcher = MemoryStore(state, "watcher")
        for ref in [poison, *innocent] if first else [*innocent, poison]:
            assert await accept(watcher, ref) == "new"
            await watcher.wake(ref, "stable", 0)
        while not all([(await watcher.run(ref)).ended for ref in (poison, *innocent)]):
            assert rounds[0] < 2000, "all end"
            rounds[0] += 1
            # Nothing that is at work here is taken for lost.
            for process in made:
                for owned in list(process.worker.owned.values()):
                    if owned.task is not None and not owned.released:
                        await _beat(process, owned)
            state.clock.advance(0.5)
            for place, process in enumerate(made):
                await process.sweep()
                for _ in range(8):
                    await asyncio.sleep(0)
                if process in dead:
                    await process.kill()
                    made[place] = Process(state, f"{process.store._instance}'", work)
        killed = await watcher.run(poison)
        assert (killed.status, killed.crashes, len(dead)) == ("failed", BUDGET, BUDGET)
        assert {(await watcher.run(ref)).status for ref in innocent} == {"succeeded"}
        await asyncio.gather(*(process.kill() for process in made))

    asyncio.run(scenario())


async def _beat(process, owned):
    with suppress(Fenced):
        await process.store.beat(owned.ref, owned.record.epoch, LEASE_S)
