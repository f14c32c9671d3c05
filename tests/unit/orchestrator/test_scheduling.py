"""Runs that wait: for a slot of their tenant, for their time, for a claimer; and whatever crashes in between, each starts once."""

import asyncio
import random
import time
from types import SimpleNamespace

import pytest

from services.common import testing
from services.orchestrator.adapters import store_queue
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import Fenced, Limits, RunRef, RunSpec, Schedule
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.testing.runs import CANCELLED, LEASE_S, QUEUED, done, log_of, new_ref, spec
from services.orchestrator.worker import Worker

CRASHES = 1_000
NAMES = ("slots", "queue", "queue:limits", "delayed")


@pytest.fixture
def store(valkey):
    return Store(valkey, "one")


def in_turn(count):
    """References that have their turns in this order also where they are accepted within a millisecond: then their names decide."""
    return sorted(new_ref() for _ in range(count))


async def accept(store, ref, slots, queued=100, priority=0, start_ms=0, delayed=100, weight=1):
    schedule = Schedule(priority, weight, start_ms, slots)
    reservation = await store.reserve(ref, "ana", slots, "", "", queued=queued, delayed=delayed, schedule=schedule)
    if reservation.verdict != "new":
        return reservation, None
    made = spec(ref.thread_id)
    made = RunSpec(made.thread_id, "a", "1", "d", made.input, Limits(), made.principal, schedule=schedule)
    accepted = await store.accept(ref, "ana", made, "stable", reservation, "", (QUEUED, CANCELLED))
    return reservation, accepted.record


async def started(store, *refs):
    """As a replica does with what got a slot."""
    replica = SimpleNamespace(store=store, settle_ended=store.settle)

    async def wake(ref, track, created_ms, schedule):
        await store.wake(ref, track, created_ms, schedule=schedule)

    replica.wake = wake
    for ref in refs:
        await Worker.start(replica, ref)


async def finish(store, ref):
    claim = await store.claim(ref, 60, CRASHES)
    assert claim.verdict == "claimed"
    await store.write(ref, claim.record.epoch, 1, "", [], mode="f", terminal=done())
    await store.settle(ref)


async def left_of(valkey, tenant="acme"):
    return {name: await valkey.exists(f"tn:{{{tenant}}}:{name}") for name in NAMES}


async def test_a_run_beyond_the_limit_waits_and_starts_when_a_slot_is_free(store, valkey):
    admitted = []
    store.on_admitted = admitted.extend
    refs = in_turn(3)
    verdicts = [(await accept(store, ref, 1))[0] for ref in refs]
    assert [(v.verdict, v.held, v.place) for v in verdicts] == [("new", False, 0), ("new", True, 1), ("new", True, 2)]
    assert (await store.claim(refs[1], 60, CRASHES)).verdict == "waiting", "no replica of any version takes a run without a slot"
    assert (await store.inspect(refs[1]))[0] == "held"
    for ref, following in zip(refs, [*refs[1:], None], strict=True):
        await finish(store, ref)
        assert admitted == ([following] if following else [])
        await started(store, *admitted)
        admitted.clear()
        if following:
            assert await store.next_ready("stable", 1.0) == following
    assert not any((await left_of(valkey)).values())


async def test_a_full_queue_and_a_tier_without_one_refuse(store, valkey):
    assert (await accept(store, new_ref(), 1))[0].verdict == "new"
    assert (await accept(store, new_ref(), 1, queued=0))[0].verdict == "quota"
    assert (await accept(store, new_ref(), 1, queued=1))[0].held
    refused = new_ref()
    assert (await accept(store, refused, 1, queued=1))[0].verdict == "full"
    assert await store.run(refused) is None
    ahead = int(time.time() * 1000) + 60_000
    assert (await accept(store, new_ref(), 1, start_ms=ahead, delayed=1))[0].held
    assert (await accept(store, new_ref(), 1, start_ms=ahead, delayed=1))[0].verdict == "delayed"
    assert await valkey.zcard("tn:{acme}:queue") == await valkey.zcard("tn:{acme}:delayed") == 1


async def test_nobody_overtakes_the_queue_but_by_priority(store):
    admitted = []
    store.on_admitted = admitted.extend
    first, waiting, urgent, late = in_turn(4)
    await accept(store, first, 1)
    await accept(store, waiting, 1)
    assert (await accept(store, urgent, 1, priority=1))[0].place == 1
    await store.settle(first)
    assert (await accept(store, late, 1))[0].place == 2
    assert admitted == [urgent]
    await store.settle(urgent)
    await store.settle(waiting)
    assert admitted == [urgent, waiting, late]


async def test_places_go_down_one_after_the_other_and_say_how_long(store):
    admitted = []
    store.on_admitted = admitted.extend
    refs = in_turn(7)
    records = [(await accept(store, ref, 2))[1] for ref in refs]
    for ref, record in list(zip(refs, records, strict=True))[:2]:
        await store.wake(ref, "stable", record.created_ms, schedule=record.spec.schedule)
    seen = {ref: [] for ref in refs}
    waits = []
    for ref in refs:
        for other, record in zip(refs, records, strict=True):
            place = await store.place(record, "acme")
            seen[other].append(place.position)
            waits.append(place.wait_ms)
        assert await store.next_waiting("stable") == ref
        await asyncio.sleep(0.002)
        await finish(store, ref)
        await started(store, *admitted)
        admitted.clear()
    for number, ref in enumerate(refs):
        assert seen[ref] == [max(0, number + 1 - step) for step in range(len(refs))]
    assert max(waits) > 0


async def test_a_delayed_run_takes_no_slot_and_is_cancelled_at_once(store, valkey):
    ref = new_ref()
    reservation, record = await accept(store, ref, 1, start_ms=int(time.time() * 1000) + 60_000)
    assert (reservation.held, reservation.place, record.status) == (True, 0, "queued")
    assert (await accept(store, new_ref(), 1))[0].held is False, "a run that sleeps is no run at work"
    assert (await store.place(record, "acme")).position == 0
    status, written = await store.cancel(ref, "", CANCELLED, "")
    assert (status, written.first_seq > 0) == ("cancelled", True)
    await store.settle(ref)
    assert not (await left_of(valkey))["delayed"]
    assert [event.type for event in await log_of(store, ref)] == ["run_queued", "run_cancelled"]


async def test_a_delayed_run_does_not_hold_up_its_thread(store):
    later = new_ref()
    await accept(store, later, 0, start_ms=int(time.time() * 1000) + 60_000)
    now = RunRef(later.tenant, later.thread_id, new_ref().run_id)
    await accept(store, now, 0)
    await finish(store, now)
    await started(store, later)
    assert await store.next_ready("stable", 1.0) == later
    await finish(store, later)


async def nothing_left(ref):
    return False


def sweeper_of(store, start):
    settings = SimpleNamespace(track="stable", sweep_s=0.01, other_track_after_s=60.0)
    worker = SimpleNamespace(owns=lambda ref: False, has_room=lambda: False, start=start, wind_up=nothing_left)
    return Sweeper(settings, store, worker, SimpleNamespace(settle=store.settle, deliver=store.settle))


async def test_a_run_whose_time_comes_starts_and_so_does_one_whose_slot_nobody_heard_of(store, valkey):
    delayed, first, second = new_ref(), new_ref(), new_ref()
    at_ms = int(time.time() * 1000) + 200
    await accept(store, delayed, 0, start_ms=at_ms)
    await store.note(delayed, 0.2)
    await accept(store, first, 1)
    await accept(store, second, 1)
    # Whoever released the slot is lost before it told anybody.
    await store.settle(first)
    sweeping = asyncio.create_task(sweeper_of(store, lambda ref: started(store, ref)).run())
    try:
        found = {await store.next_ready("stable", testing.PATIENCE_S), await store.next_ready("stable", testing.PATIENCE_S)}
    finally:
        sweeping.cancel()
        await asyncio.wait([sweeping])
    assert found == {delayed, second}
    assert time.time() * 1000 >= at_ms
    assert await valkey.zscore("tn:{acme}:slots", delayed.run_id) is not None


async def test_a_slot_that_the_version_before_gave_back_goes_to_who_waits(store, valkey):
    admitted = []
    store.on_admitted = admitted.extend
    first, second, third, late = in_turn(4)
    for ref in (first, second, third):
        await accept(store, ref, 1)
    # It knows of slots alone.
    await valkey.zrem("tn:{acme}:slots", first.run_id)
    assert not await store.admit(third, Schedule(slots=1)), "its turn is later"
    assert admitted == [second]
    await valkey.zrem("tn:{acme}:slots", second.run_id)
    assert (await accept(store, late, 1))[0].place == 1
    assert admitted == [second, third]
    assert await store.admit(third, Schedule(slots=1)), "it has its slot, however often it is asked"


class Simulation:
    """Replicas that are lost at any point between two calls of the store, and a caller. All of one tenant, with two slots."""

    SLOTS = 2

    def __init__(self, valkey, seed):
        self.valkey, self.random = valkey, random.Random(seed)
        self.store = Store(valkey, "one")
        self.store.on_admitted = self.told
        self.sweeper = sweeper_of(self.store, self.start)
        self.accepted, self.first_claims, self.crashing = [], [], True

    def lost(self, chance=0.25):
        return self.crashing and self.random.random() < chance

    def told(self, refs):
        self.heard = [] if self.lost() else [*getattr(self, "heard", ()), *refs]

    async def start(self, ref):
        if not self.lost():
            await started(self.store, ref)

    async def create(self):
        ref = new_ref(self.random.choice(["a", "b", None]))
        start_ms = int(time.time() * 1000) + 5 if self.random.random() < 0.2 else 0
        schedule = Schedule(self.random.randint(-1, 1), 1, start_ms, self.SLOTS)
        reservation = await self.store.reserve(ref, "ana", self.SLOTS, "", "", queued=6, delayed=4, schedule=schedule)
        if reservation.verdict != "new" or self.lost(0.1):
            return
        made = spec(ref.thread_id)
        made = RunSpec(made.thread_id, "a", "1", "d", made.input, Limits(), made.principal, schedule=schedule)
        record = (await self.store.accept(ref, "ana", made, "stable", reservation, "", (QUEUED, CANCELLED))).record
        self.accepted.append(ref)
        if not self.lost() and not reservation.held:
            await self.store.wake(ref, "stable", record.created_ms, schedule=schedule)

    async def work(self):
        ref = await self.store.next_waiting("stable")
        if ref is None or self.lost():
            return
        claim = await self.store.claim(ref, LEASE_S if self.crashing else 60, CRASHES)
        if claim.verdict != "claimed":
            return
        if claim.record.attempt == 1:
            self.first_claims.append(ref)
        if self.lost():
            return
        try:
            written = await self.store.write(ref, claim.record.epoch, 1, "", [], mode="f", terminal=done())
        except Fenced:
            return
        if not self.lost():
            await self.store.settle(ref)
        if written.next_run and not self.lost():
            await self.start(ref._replace(run_id=written.next_run))

    async def cancel(self):
        if not self.accepted:
            return
        ref = self.random.choice(self.accepted)
        _, written = await self.store.cancel(ref, "", CANCELLED, "")
        if written.first_seq and not self.lost():
            await self.store.settle(ref)

    async def hear(self):
        heard, self.heard = getattr(self, "heard", []), []
        for ref in heard:
            await self.start(ref)

    async def sweep(self):
        live = "work:{w0}:live"
        for member in await self.valkey.zrange(live, 0, -1):
            await self.valkey.zadd(live, {member: 0}, xx=True)
        for ref in await self.store.due(1_000, 1.0):
            await self.sweeper._look(ref)

    async def check(self):
        slots = {member.decode() for member in await self.valkey.zrange("tn:{acme}:slots", 0, -1)}
        assert len(slots) <= self.SLOTS
        for record in await self.store.runs(self.accepted):
            assert record.status != "running" or record.run_id in slots, "a run is at work without a slot"

    async def settle_down(self):
        self.crashing = False
        async with asyncio.timeout(testing.PATIENCE_S):
            while await self.valkey.exists("work:{w0}:live"):
                for step in (self.sweep, self.hear, self.work, self.work):
                    await step()


@pytest.mark.parametrize("seed", range(8))
async def test_every_accepted_run_starts_once_and_no_slot_leaks_whoever_is_lost(valkey, monkeypatch, seed):
    monkeypatch.setattr(store_queue, "FORGET_AFTER_MS", 0)
    simulation = Simulation(valkey, seed)
    steps = [simulation.create] * 4 + [simulation.work] * 4 + [simulation.hear] * 3 + [simulation.sweep, simulation.cancel]
    for _ in range(80):
        await simulation.random.choice(steps)()
        await simulation.check()
    await simulation.settle_down()
    for ref in simulation.accepted:
        types = [event.type for event in await log_of(simulation.store, ref) if event.run_id == ref.run_id]
        assert types[0] == "run_queued"
        assert types[-1] in ("run_finished", "run_cancelled")
        assert (
            types.count("run_started")
            == simulation.first_claims.count(ref)
            == (0 if types[-1] == "run_cancelled" and len(types) == 2 else 1)
        )
        assert types.count("run_finished") + types.count("run_cancelled") == 1
    assert not any((await left_of(valkey)).values())
    assert len(simulation.first_claims) > 5
