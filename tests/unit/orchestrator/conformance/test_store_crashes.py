"""A run is given up for owners that were lost since its last checkpoint; who may be to blame for it is claimed by one process at a time."""

import asyncio

import pytest

from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.records import Draft, Park
from services.orchestrator.testing.runs import CANCELLED, accept, log_of, new_ref
from services.orchestrator.testing.stores import Site

LEASE_S, BUDGET = 10, 3
TEXT = [Draft("message_delta", b"{}", True)]


async def lost(backend, store, ref, times):
    """Has so many owners of the run lost, of which none has written anything."""
    for _ in range(times):
        assert (await store.claim(ref, LEASE_S, BUDGET)).verdict == "claimed"
        await backend.advance(LEASE_S * 2)


async def accepted(store):
    ref = new_ref()
    assert await accept(store, ref) == "new"
    return ref


@pytest.mark.parametrize("mode", ["c", "p"])
async def test_a_checkpoint_begins_the_count_anew(backend, store, mode):
    ref = await accepted(store)
    for _ in range(3):
        await lost(backend, store, ref, 1)
        claim = await store.claim(ref, LEASE_S, BUDGET)
        park = {"park": Park(0, 0)} if mode == "p" else {}
        await store.write(ref, claim.record.epoch, 1, "", [], mode=mode, state=b"{}", **park)
        if mode == "p":
            await store.post(ref, "decision", b"{}")
            await store.enter(ref)
        else:
            await backend.advance(LEASE_S * 2)
    claim = await store.claim(ref, LEASE_S, BUDGET)
    in_a_row, in_all = (1, 6) if mode == "c" else (0, 3)
    assert (claim.verdict, claim.record.crashes, claim.record.losses) == ("claimed", in_a_row, in_all)
    await backend.advance(LEASE_S * 2)
    await lost(backend, store, ref, BUDGET - 1 - in_a_row)
    assert (await store.claim(ref, LEASE_S, BUDGET)).verdict == "failed"
    record = await store.run(ref)
    message = "The run was given up after its worker was lost 3 times in a row."
    assert (record.status, record.result["error"]["message"]) == ("failed", message)
    assert (record.crashes, record.losses) == (BUDGET, in_all + BUDGET - in_a_row)


@pytest.mark.parametrize("mode", ["e", "s", "r"])
async def test_what_is_no_checkpoint_leaves_the_count(backend, store, mode):
    ref = await accepted(store)
    await lost(backend, store, ref, 1)
    claim = await store.claim(ref, LEASE_S, BUDGET)
    await store.write(ref, claim.record.epoch, 1, "", TEXT)
    await store.write(ref, claim.record.epoch, 2, "", TEXT, mode=mode, state=b"{}" if mode == "r" else b"")
    assert (await store.run(ref)).crashes == 1
    await backend.advance(LEASE_S * 2)
    # Handed over, it is not lost.
    assert (await store.claim(ref, LEASE_S, BUDGET)).record.crashes == (1 if mode == "r" else 2)


async def test_a_suspect_is_left_as_it_is_by_who_has_one_and_taken_by_the_next(backend, store, other):
    first, second = await accepted(store), await accepted(store)
    await lost(backend, store, first, BUDGET - 1)
    await lost(backend, store, second, 1)
    before = await store.run(first), await log_of(store, first), await store.inspect(first)
    assert (await store.claim(first, LEASE_S, BUDGET, suspect=False)).verdict == "suspect"
    assert (await store.run(first), await log_of(store, first), await store.inspect(first)) == before
    assert (await store.claim(second, LEASE_S, BUDGET, suspect=False)).verdict == "claimed", "lost once, it waits for nobody"
    assert (await other.claim(first, LEASE_S, BUDGET)).verdict == "claimed"


async def test_a_suspect_that_is_handed_over_stays_one_and_a_checkpoint_clears_it(backend, store):
    ref = await accepted(store)
    await lost(backend, store, ref, BUDGET - 1)
    for _ in range(BUDGET):
        assert (await store.claim(ref, LEASE_S, BUDGET, suspect=False)).verdict == "suspect"
        claim = await store.claim(ref, LEASE_S, BUDGET)
        await store.write(ref, claim.record.epoch, 1, "", [], mode="r", state=b"{}")
    claim = await store.claim(ref, LEASE_S, BUDGET)
    await store.write(ref, claim.record.epoch, 1, "", [], mode="c", state=b"{}")
    await store.write(ref, claim.record.epoch, 2, "", [], mode="r", state=b"{}")
    assert (await store.claim(ref, LEASE_S, BUDGET, suspect=False)).verdict == "claimed"


async def test_a_suspect_that_is_to_end_waits_for_nobody(backend, store):
    ref = await accepted(store)
    await lost(backend, store, ref, BUDGET - 1)
    await store.cancel(ref, "", CANCELLED, "")
    assert (await store.claim(ref, LEASE_S, BUDGET, suspect=False)).record.cancel_requested


async def test_without_a_second_try_there_are_no_suspects(backend, store):
    ref = await accepted(store)
    assert (await store.claim(ref, LEASE_S, 1, suspect=False)).verdict == "claimed"
    await backend.advance(LEASE_S * 2)
    assert (await store.claim(ref, LEASE_S, 1, suspect=False)).verdict == "failed"


def test_a_run_of_the_version_before_goes_on_with_what_it_lost(_state_server, _stepped_lua):
    async def scenario():
        async with Site("valkey", _state_server, _stepped_lua).open() as backend:
            store = backend.process("one")
            ref = await accepted(store)
            await lost(backend, store, ref, 1)
            # As it writes them: one count, which nothing begins anew.
            run = thread_keys(ref)[2]
            await backend.client.hdel(run, "losses")
            await backend.client.hset(run, "crashes", 1)
            record = await store.run(ref)
            assert (record.crashes, record.losses) == (1, 1)
            claim = await store.claim(ref, LEASE_S, BUDGET)
            assert (claim.record.crashes, claim.record.losses) == (2, 2)
            await store.write(ref, claim.record.epoch, 1, "", [], mode="c", state=b"{}")
            record = await store.run(ref)
            assert (record.crashes, record.losses) == (0, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("checkpoint", [True, False])
async def test_the_time_that_a_lost_owner_worked_since_its_last_checkpoint_is_kept_up_to_its_last_heartbeat(backend, store, checkpoint):
    ref = await accepted(store)
    for epoch in (1, 2):
        claim = await store.claim(ref, LEASE_S, BUDGET)
        await backend.advance(4)
        if checkpoint:
            await store.write(ref, claim.record.epoch, 1, "", [], mode="c", state=b"{}")
        await backend.advance(3)
        await store.beat(ref, epoch, LEASE_S)
        await backend.advance(LEASE_S * 2)
    if not checkpoint:
        assert (await store.claim(ref, LEASE_S, BUDGET, suspect=False)).verdict == "suspect"
    record = (await store.claim(ref, LEASE_S, BUDGET)).record
    assert record.lost_ms // 100 == 2 * (30 if checkpoint else 70)


async def test_who_hands_a_run_over_loses_no_time(backend, store):
    ref = await accepted(store)
    claim = await store.claim(ref, LEASE_S, BUDGET)
    await backend.advance(4)
    await store.write(ref, claim.record.epoch, 1, "", [], mode="r", state=b"{}")
    await backend.advance(LEASE_S * 2)
    assert (await store.claim(ref, LEASE_S, BUDGET)).record.lost_ms == 0
