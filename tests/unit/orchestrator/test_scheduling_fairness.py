"""Who is next: tenants share the claimers of a track by weight, whatever they offer, and by priority and age within a tenant."""

import asyncio
import time
import uuid
from collections import Counter

import pytest

from services.common import testing
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import RunRef, Schedule

PATIENCE_S = testing.PATIENCE_S
OTHERS = [f"tenant {number}" for number in range(10)]


@pytest.fixture
def store(valkey):
    return Store(valkey, "one")


def ref_of(tenant):
    return RunRef(tenant, uuid.uuid4().hex, uuid.uuid4().hex)


async def offer(store, tenant, count=1, weight=1, priority=0, since_ms=0, track="stable"):
    refs = [ref_of(tenant) for _ in range(count)]
    schedule = Schedule(priority, weight)
    await asyncio.gather(*(store.wake(ref, track, since_ms or time.time() * 1000, schedule=schedule) for ref in refs))
    return refs


async def served_by(stores, count):
    found = []
    while len(found) < count:
        found += await asyncio.gather(*(store.next_waiting("stable") for store in stores[: count - len(found)]))
    return found


def jain(shares):
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


async def test_a_tenant_that_offers_fifty_times_as_much_takes_no_more_than_its_share(valkey):
    claimers = [Store(valkey, f"claimer {number}") for number in range(4)]
    service = Counter()
    steps, capacity = 40, 8
    for _ in range(steps):
        await offer(claimers[0], "greedy", 50)
        for tenant in OTHERS:
            await offer(claimers[0], tenant)
        service.update(ref.tenant for ref in await served_by(claimers, capacity))
    fair = steps * capacity / (len(OTHERS) + 1)
    assert jain([service[tenant] for tenant in OTHERS]) >= 0.95
    assert min(service[tenant] for tenant in OTHERS) >= 0.9 * fair
    assert service["greedy"] <= 1.2 * fair


async def test_tenants_are_served_by_the_weight_of_their_tier(store):
    for tenant, weight in (("free", 1), ("pro", 4), ("enterprise", 16)):
        await offer(store, tenant, 200, weight)
    service = Counter(ref.tenant for ref in await served_by([store], 210))
    assert service["enterprise"] == pytest.approx(160, abs=4)
    assert service["pro"] == pytest.approx(40, abs=3)
    assert service["free"] == pytest.approx(10, abs=2)


async def test_a_low_tier_is_served_within_a_round_of_a_flood_of_high_ones(store):
    for number in range(3):
        await offer(store, f"enterprise {number}", 40, 16)
    await served_by([store], 30)
    (low,) = await offer(store, "free", 1, 1)
    first = []
    while low not in first:
        assert len(first) < 3 * 16 + 4, "the run of the low tier starves"
        for number in range(3):
            await offer(store, f"enterprise {number}", 1, 16)
        first += await served_by([store], 1)
    assert len(first) > 16, "a low tier is no high one"


async def test_a_tenant_that_was_idle_has_saved_nothing_up_and_owes_nothing(store):
    await offer(store, "busy", 30)
    await served_by([store], 30)
    await offer(store, "busy", 5)
    await offer(store, "idle", 5)
    first = Counter(ref.tenant for ref in await served_by([store], 4))
    assert first == {"busy": 2, "idle": 2}


async def test_within_a_tenant_priority_goes_first_and_then_age(store):
    (old,) = await offer(store, "acme", since_ms=1_000)
    (low,) = await offer(store, "acme", priority=-5, since_ms=1)
    (young,) = await offer(store, "acme", since_ms=2_000)
    (urgent,) = await offer(store, "acme", priority=10, since_ms=3_000)
    assert await served_by([store], 4) == [urgent, old, young, low]


async def test_the_priority_of_one_tenant_takes_no_turn_from_another(store):
    (theirs,) = await offer(store, "other", since_ms=5_000)
    await offer(store, "acme", 3, priority=10, since_ms=1_000)
    first = await served_by([store], 2)
    assert theirs in first


async def test_a_wake_up_that_is_sent_twice_is_one_and_keeps_its_turn(store):
    (first,) = await offer(store, "acme", since_ms=1_000)
    (second,) = await offer(store, "globex", since_ms=2_000)
    for _ in range(3):
        await store.wake(first, "stable", 1_000)
        await store.wake(first, "stable", 0)
    assert await served_by([store], 2) == [first, second]
    assert await store.next_waiting("stable") is None
    assert await store.depth("stable") == 0


async def test_who_waits_for_work_gets_it_at_once(valkey):
    waiting, offering = Store(valkey, "waiting"), Store(valkey, "offering")
    await waiting.load()
    took = []
    for _ in range(5):
        claimer = asyncio.create_task(waiting.next_ready("stable", PATIENCE_S))
        await testing.eventually_async(lambda: blocked(valkey), "the claimer waits in the store")
        since = time.monotonic()
        (ref,) = await offer(offering, "acme")
        assert await claimer == ref
        took.append(time.monotonic() - since)
    assert min(took) < 0.1, "a claimer is woken by the push and does not look again and again"


async def blocked(valkey):
    return (await valkey.info("clients"))["blocked_clients"] > 0


# --- beside the version before, which knows one set with dates as scores ---


async def old_wake(valkey, ref, created_ms):
    await valkey.zadd("work:{w0}:ready:stable", {ref.encode(): created_ms})


async def old_next(valkey):
    popped = await valkey.zpopmin("work:{w0}:ready:stable")
    return RunRef.decode(popped[0][0].decode()) if popped else None


async def test_both_versions_find_what_the_other_offers(store, valkey):
    created_ms = int(time.time() * 1000)
    expected = {ref_of(tenant) for tenant in OTHERS for _ in range(4)}
    for number, ref in enumerate(expected):
        if number % 2:
            await old_wake(valkey, ref, created_ms + number)
        else:
            await store.wake(ref, "stable", created_ms + number)
    found = []
    for number in range(len(expected)):
        found.append(await (old_next(valkey) if number % 3 == 0 else store.next_waiting("stable")))
    assert set(found) == expected
    assert len(found) == len(set(found))
    assert await old_next(valkey) is None
    assert await store.next_waiting("stable") is None


async def test_runs_of_the_version_before_wait_behind_no_flood(store, valkey):
    await offer(store, "greedy", 100)
    await served_by([store], 10)
    theirs = ref_of("acme")
    await old_wake(valkey, theirs, int(time.time() * 1000))
    assert theirs in await served_by([store], 4)
    again = ref_of("acme")
    await old_wake(valkey, again, int(time.time() * 1000))
    await offer(store, "greedy", 20)
    assert again in await served_by([store], 4)


async def test_what_the_version_before_writes_again_starves_nobody(store, valkey):
    """Its sweeper writes the date of a run anew each second that it waits."""
    (waiting,) = await offer(store, "acme")
    greedy = await offer(store, "zeta", 30)
    created_ms = int(time.time() * 1000)
    for turn in range(6):
        for ref in (waiting, *greedy):
            await valkey.zadd("work:{w0}:ready:stable", {ref.encode(): created_ms}, xx=True)
        if waiting in await served_by([store], 2):
            return
        assert turn < 5, "a run is written anew for ever and never served"


async def test_tracks_do_not_mix(store):
    (canary,) = await offer(store, "acme", track="canary")
    (stable,) = await offer(store, "acme")
    assert await store.next_waiting("stable") == stable
    assert await store.next_waiting("stable") is None
    assert await store.next_waiting("canary") == canary


async def test_an_empty_queue_leaves_nothing_behind(store, valkey):
    for tenant in OTHERS:
        await offer(store, tenant, 3)
    await served_by([store], 30)
    (last,) = await offer(store, "acme")
    assert await store.next_ready("stable", 1.0) == last
    left = {key.decode() async for key in valkey.scan_iter("work:*")} - {"work:{w0}:live", "work:{w0}:clock:stable"}
    assert left <= {"work:{w0}:turns:stable", "work:{w0}:order:stable"}
    assert await valkey.zcard("work:{w0}:turns:stable") <= 1
