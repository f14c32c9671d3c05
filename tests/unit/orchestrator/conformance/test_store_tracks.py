"""How long a run has been left alone by its own release track, after which the other takes it: from when it could have been taken."""

import asyncio
from types import SimpleNamespace

import pytest

from services.orchestrator.records import Park, RunRef, Schedule
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.testing.runs import CANCELLED, QUEUED, done, new_ref, spec

CRASHES, LONG_S = 100, 1_000
ALONE_S = 10.0


def on(site, scenario):
    async def run():
        async with site.open() as backend:
            await scenario(backend, backend.process("one"))

    asyncio.run(run())


async def accept(store, ref):
    reservation = await store.reserve(ref, "ana", 0, "", "")
    await store.accept(ref, "ana", spec(ref.thread_id), "canary", reservation, "", (QUEUED, CANCELLED))


async def line(store, count):
    """Runs of one thread, all made by the canary at once."""
    first = new_ref()
    refs = [first, *(RunRef(first.tenant, first.thread_id, new_ref().run_id) for _ in range(count - 1))]
    for ref in refs:
        await accept(store, ref)
    return refs


async def offered_to(store, ref):
    """The track to which a sweeper of stable offers a run."""
    worker = SimpleNamespace(owns=lambda ref: False)
    settings = SimpleNamespace(track="stable", other_track_after_s=ALONE_S)
    await Sweeper(settings, store, worker, SimpleNamespace())._look(ref)
    found = [track for track in ("stable", "canary") if await store.next_waiting(track) == ref]
    return found[0] if found else None


async def finish(store, ref):
    claim = await store.claim(ref, LONG_S, CRASHES)
    return claim, lambda: store.write(ref, claim.record.epoch, 1, "", [], mode="f", terminal=done())


@pytest.mark.parametrize("ends", ["finishes", "is cancelled", "is given up"])
def test_a_run_behind_another_of_its_thread_is_left_to_its_track_from_when_that_has_ended(site, ends):
    async def scenario(backend, store):
        first, second, third = await line(store, 3)
        if ends == "finishes":
            _, end = await finish(store, first)
            await backend.advance(60)
            await end()
        elif ends == "is cancelled":
            await backend.advance(60)
            await store.cancel(first, "", CANCELLED, "")
        else:
            await store.claim(first, 60, 1)
            await backend.advance(61)
            assert (await store.claim(first, 60, 1)).verdict == "failed"
        assert await offered_to(store, second) == "canary"
        await backend.advance(ALONE_S / 2)
        # That another one behind it ends makes nothing of it new.
        await store.cancel(third, "", CANCELLED, "")
        await backend.advance(ALONE_S / 2 + 1)
        assert await offered_to(store, second) == "stable"

    on(site, scenario)


def test_a_run_whose_owner_was_lost_is_left_to_its_track_from_the_end_of_its_lease(site):
    async def scenario(backend, store):
        (ref,) = await line(store, 1)
        await store.claim(ref, 60, CRASHES)
        await backend.advance(61)
        assert await offered_to(store, ref) == "canary"
        await backend.advance(ALONE_S)
        assert await offered_to(store, ref) == "stable"

    on(site, scenario)


def test_a_run_that_waited_for_a_slot_or_rested_is_left_to_its_track_from_when_it_may_go_on(site):
    async def scenario(backend, store):
        (ref,) = await line(store, 1)
        claim = await store.claim(ref, 60, CRASHES)
        await store.write(ref, claim.record.epoch, 1, "", [], mode="p", park=Park(0, 0))
        await backend.advance(60)
        await store.post(ref, "decision", b"{}")
        await backend.advance(60)
        # To end it takes no slot.
        await store.cancel(ref, "", CANCELLED, "")
        assert await offered_to(store, ref) == "canary"
        await backend.advance(ALONE_S + 1)
        assert await offered_to(store, ref) == "stable"
        held = new_ref()
        await accept(store, held)
        claim = await store.claim(held, 60, CRASHES)
        await store.write(held, claim.record.epoch, 1, "", [], mode="p", park=Park(0, 0))
        await store.post(held, "decision", b"{}")
        await backend.advance(60)
        assert await store.admit(held, Schedule(), claim.record.epoch)
        assert await store.enter(held) == "free"
        assert await offered_to(store, held) == "canary"

    on(site, scenario)
