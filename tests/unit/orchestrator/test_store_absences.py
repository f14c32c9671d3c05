"""A store that is away for longer than a lease ends every lease. Owners that live are not lost by that, and their runs are not charged."""

from types import SimpleNamespace

import pytest

from services.orchestrator.reach import Reach
from services.orchestrator.records import Fenced
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.testing.runs import accept, new_ref

BUDGET, LEASE_S, AWAY_S, SOON_S = 3, 3.0, 10.0, 0.5
SETTINGS = SimpleNamespace(track="stable", other_track_after_s=60.0)


class Offered:
    """A worker that owns nothing and gives up nothing."""

    def owns(self, ref):
        return False

    def has_room(self):
        return False


@pytest.fixture
def sweeper(backend, other):
    reach = Reach(LEASE_S - 1.0, LEASE_S, clock=lambda: backend.clock.now_ms / 1000)
    return Sweeper(SETTINGS, other, Offered(), SimpleNamespace(), reach)


async def offered(sweeper, store):
    """What the queue has after one turn of the sweeper."""
    await sweeper.turn()
    return await store.next_waiting("stable")


@pytest.fixture
async def at_work(backend, store, sweeper):
    """A run with an owner, of which the sweeper knows; and its epoch."""
    ref = new_ref()
    assert await accept(store, ref) == "new"
    claim = await store.claim(ref, LEASE_S, BUDGET)
    await store.note(ref, 0.0)
    await backend.advance(SOON_S)
    assert await offered(sweeper, store) is None
    return ref, claim.record.epoch


async def test_absences_longer_than_a_lease_cost_a_run_whose_owner_lives_nothing(backend, store, other, sweeper, at_work):
    ref, epoch = at_work
    for _ in range(2 * BUDGET):
        await backend.advance(AWAY_S)
        assert await offered(sweeper, other) is None, "its owner has not had the time to tell of itself"
        await backend.advance(SOON_S)
        await store.beat(ref, epoch, LEASE_S)
        await backend.advance(SOON_S)
        assert await offered(sweeper, other) is None
    record = await store.run(ref)
    assert (record.epoch, record.crashes) == (epoch, 0)


async def test_a_run_whose_owners_are_lost_in_absences_is_taken_over_and_given_up_all_the_same(backend, store, other, sweeper, at_work):
    ref, _ = at_work
    for verdict in ["claimed"] * (BUDGET - 1) + ["failed"]:
        await backend.advance(AWAY_S)
        assert await offered(sweeper, other) is None
        # Nobody has told of itself in the time of a lease.
        for _ in range(3):
            await backend.advance(LEASE_S / 3 + 0.1)
            found = await offered(sweeper, other)
        assert found == ref
        assert (await other.claim(ref, LEASE_S, BUDGET)).verdict == verdict
        await store.note(ref, 0.0)


async def test_an_owner_that_was_lost_while_the_store_was_there_is_taken_over_at_once(backend, store, other, sweeper, at_work):
    ref, epoch = at_work
    for _ in range(int(LEASE_S / SOON_S)):
        assert await offered(sweeper, other) is None
        await backend.advance(SOON_S)
    assert await offered(sweeper, other) == ref
    assert (await other.claim(ref, LEASE_S, BUDGET)).verdict == "claimed"
    with pytest.raises(Fenced):
        await store.beat(ref, epoch, LEASE_S)


async def test_a_run_that_waits_for_its_first_owner_waits_for_no_lease(backend, store, other, sweeper, at_work):
    ref = new_ref()
    assert await accept(store, ref) == "new"
    await store.note(ref, 0.0)
    await backend.advance(AWAY_S)
    assert await offered(sweeper, other) == ref
