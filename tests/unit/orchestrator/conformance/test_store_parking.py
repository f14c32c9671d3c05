"""Parked runs: who wakes one keeps what it got, and whoever is lost in between is found within a second or two."""

import asyncio

import pytest

from services.orchestrator import parking
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.records import Park, RunRef, Schedule
from services.orchestrator.testing.runs import accept, new_ref
from services.orchestrator.testing.stores import Site

LEASE_S, CRASHES = 10, 100
LIMITED = Schedule(slots=1)


def on(site, scenario):
    async def run():
        async with site.open() as backend:
            await scenario(backend, backend.process("one"))

    asyncio.run(run())


async def parked(backend, store, slots=1) -> tuple[RunRef, int]:
    """A run that is parked, and in which of its epochs it was."""
    ref = new_ref()
    assert await accept(store, ref, slots=slots) == "new"
    claim = await store.claim(ref, LEASE_S, CRASHES)
    await backend.advance(5)
    await store.write(ref, claim.record.epoch, 1, "", [], mode="p", park=Park(0, 0))
    await store.note(ref, parking.LOOK_S)
    return ref, claim.record.epoch


@pytest.mark.parametrize("seconds", [0.001, -3])
def test_a_slot_that_was_given_since_a_run_was_parked_is_not_taken_back(site, seconds):
    async def scenario(backend, store):
        ref, epoch = await parked(backend, store)
        # Another server may answer by now, whose clock is behind.
        await backend.advance(seconds)
        assert (await store.post(ref, "decision", b"{}")).woken
        assert await store.admit(ref, LIMITED, (await store.inspect(ref)).epoch), "it has its slot still"
        await parking.rest(store, ref, epoch, parking.LOOK_S)
        assert (await store.reserve(new_ref(), "ana", 1, "", "")).verdict == "quota", "the slot is not given a second time"
        await backend.advance(1)
        assert ref in await store.due(10, 1), "its next owner is looked after"

    on(site, scenario)


def test_a_slot_goes_back_however_the_clock_is_set_between_giving_and_parking(site):
    async def scenario(backend, store):
        ref = new_ref()
        await backend.advance(60)
        assert await accept(store, ref, slots=1) == "new"
        for epoch in (1, 2, 3):
            claim = await store.claim(ref, LEASE_S, CRASHES)
            assert claim.record.epoch == epoch
            await backend.advance(-3)
            absorbed = len(await store.commands(ref, 0))
            await store.write(ref, epoch, 1, "", [], mode="p", park=Park(0, absorbed))
            await parking.rest(store, ref, epoch, parking.LOOK_S)
            other = new_ref()
            assert (await store.reserve(other, "ana", 1, "", "")).verdict == "new", f"the slot of epoch {epoch} is free"
            await store.settle(other)
            await store.post(ref, "decision", b"{}")
            assert await store.admit(ref, LIMITED, (await store.inspect(ref)).epoch)
            await store.enter(ref)

    on(site, scenario)


def test_a_slot_that_is_given_late_to_a_run_that_rests_again_goes_back_with_the_next_look(site):
    async def scenario(backend, store):
        ref, epoch = await parked(backend, store)
        await store.post(ref, "decision", b"{}")
        await store.admit(ref, LIMITED, epoch)
        await store.enter(ref)
        claim = await store.claim(ref, LEASE_S, CRASHES)
        await store.write(ref, claim.record.epoch, 1, "", [], mode="p", park=Park(0, 1))
        await parking.rest(store, ref, claim.record.epoch, parking.LOOK_S)
        # Who resumed it the first time as well comes by only now.
        assert await store.admit(ref, LIMITED, epoch)
        await parking.rest(store, ref, (await store.inspect(ref)).epoch, parking.LOOK_S)
        other = new_ref()
        assert (await store.reserve(other, "ana", 1, "", "")).verdict == "new"
        await store.settle(other)
        # And takes nothing of what it is given since.
        await store.post(ref, "decision", b"{}")
        for late in (claim.record.epoch, epoch):
            assert await store.admit(ref, LIMITED, late)
        await parking.rest(store, ref, claim.record.epoch, parking.LOOK_S)
        assert (await store.reserve(new_ref(), "ana", 1, "", "")).verdict == "quota"

    on(site, scenario)


def test_to_go_on_after_a_rest_is_no_new_attempt_and_to_take_over_is(site):
    async def scenario(backend, store):
        async def woken():
            await store.post(ref, "decision", b"{}")
            await store.admit(ref, LIMITED)
            await store.enter(ref)
            return await store.claim(ref, LEASE_S, CRASHES)

        async def rest(claim, absorbed):
            await store.write(ref, claim.record.epoch, 1, "", [], mode="p", state=b"{}", park=Park(0, absorbed))

        ref, _ = await parked(backend, store)
        claim = await woken()
        assert (claim.record.attempt, claim.record.epoch, claim.written.first_seq) == (1, 2, 0)
        await backend.advance(LEASE_S + 1)
        claim = await store.claim(ref, LEASE_S, CRASHES)
        assert (claim.record.attempt, claim.record.epoch) == (2, 3)
        # A command has come that it has not absorbed: it is queued at once.
        await rest(claim, 0)
        assert (await store.inspect(ref))[0] == "free"
        claim = await store.claim(ref, LEASE_S, CRASHES)
        assert claim.record.attempt == 2
        await rest(claim, 1)
        claim = await woken()
        assert claim.record.attempt == 2
        await store.write(ref, claim.record.epoch, 1, "", [], mode="r")
        assert (await store.claim(ref, LEASE_S, CRASHES)).record.attempt == 3
        events = (await store.read(ref, 0, 100, False))[3]
        assert [event.type for event in events].count("run_started") == 1

    on(site, scenario)


def test_the_slot_of_a_parked_run_is_anothers(site):
    async def scenario(backend, store):
        ref, epoch = await parked(backend, store)
        await parking.rest(store, ref, epoch, parking.LOOK_S)
        assert (await store.reserve(new_ref(), "ana", 1, "", "")).verdict == "new"
        assert not await store.admit(ref, LIMITED)

    on(site, scenario)


def test_a_run_that_was_woken_by_somebody_who_was_lost_is_looked_at_soon(site):
    async def post(store, ref):
        await store.post(ref, "decision", b"{}")

    async def cancel(store, ref):
        await store.cancel(ref, "", b"{}", "")

    async def scenario(backend, store):
        for wake, state in ((post, "held"), (cancel, "free")):
            ref, _ = await parked(backend, store, slots=10)
            await wake(store, ref)
            await backend.advance(1)
            assert ref in await store.due(10, 1)
            assert (await store.inspect(ref))[0] == state

    on(site, scenario)


def test_a_run_that_was_woken_is_not_put_off_by_who_parked_it(site):
    async def scenario(backend, store):
        ref, _ = await parked(backend, store)
        # Who posts is lost, and who has parked it as well, before it could look again.
        assert (await store.post(ref, "decision", b"{}")).woken
        await store.note(ref, parking.LOOK_S)
        await backend.advance(1.5)
        assert ref in await store.due(10, 1)
        await store.note(ref, parking.LOOK_S)
        await backend.advance(1.5)
        assert ref not in await store.due(10, 1), "whoever has looked puts it off"

    on(site, scenario)


def test_whoever_posts_again_resumes_what_the_first_one_left(site):
    async def scenario(backend, store):
        ref, _ = await parked(backend, store)
        assert (await store.post(ref, "child", b"{}", key="k")).woken
        again = await store.post(ref, "child", b"{}", key="k")
        assert (again.verdict, again.woken) == ("again", True)
        assert (await store.post(ref, "child", b"{}", key="l")).woken
        await store.admit(ref, LIMITED)
        await store.enter(ref)
        assert not (await store.post(ref, "child", b"{}", key="k")).woken

    on(site, scenario)


def test_what_a_run_waits_for_reaches_it_however_many_commands_it_was_sent(site):
    async def scenario(backend, store):
        ref, _ = await parked(backend, store)
        await asyncio.gather(*(store.post(ref, "steer", b"{}") for _ in range(1000)))
        assert (await store.post(ref, "steer", b"{}")).verdict == "full"
        assert (await store.post(ref, "child", b"{}")).verdict == "posted"

    on(site, scenario)


def test_a_run_without_a_limit_waits_behind_nobody(site):
    async def scenario(backend, store):
        ref, epoch = await parked(backend, store)
        await parking.rest(store, ref, epoch, parking.LOOK_S)
        assert (await store.reserve(new_ref(), "ana", 1, "", "", queued=5)).verdict == "new"
        assert (await store.reserve(new_ref(), "ana", 1, "", "", queued=5)).held
        assert await store.admit(ref, Schedule(slots=0))

    on(site, scenario)


async def test_the_version_before_leaves_a_run_alone_that_was_parked(_state_server, _stepped_lua):
    async with Site("valkey", _state_server, _stepped_lua).open() as backend:
        store = backend.process("one")
        ref, _ = await parked(backend, store)
        await store.post(ref, "decision", b"{}")
        await store.admit(ref, LIMITED)
        assert await store.enter(ref) == "free"
        before = [ref.run_id, "old", 1000, CRASHES, "channel", "old"]
        assert (await store._library.call("run_claim_v1", thread_keys(ref), before)) == [b"waiting"]
        assert (await store.claim(ref, LEASE_S, CRASHES)).verdict == "claimed"
