"""A rolling deploy, and a rollback in its midst: two versions of the store's code on the same records lose nothing."""

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.records import Draft, RunRef, Schedule
from services.orchestrator.testing.interleavings import NAMES, Interleaving
from services.orchestrator.testing.runs import CANCELLED, QUEUED, accept, done, log_of, new_ref, spec
from tests.unit.orchestrator.conformance.previous_version import MixedBackend, previous_store

ACTIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 1), st.sampled_from([0, 0, 0, 1])), min_size=10, max_size=40)
# Calls in a row that are made by one version.
STRETCHES = st.lists(st.integers(1, 6), min_size=2, max_size=12).filter(lambda calls: len(calls) % 2 == 0)


@pytest.fixture(scope="module")
def _previous():
    with previous_store() as store:
        yield store


@asynccontextmanager
async def _mixed(url, lua, previous, versions):
    client = connect(url, timeout_s=testing.PATIENCE_S)
    try:
        await client.flushdb()
        backend = MixedBackend(client, lua, previous, versions)
        await backend.advance(0)
        yield backend
    finally:
        await client.aclose()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS, stretches=STRETCHES, first=st.booleans())
def test_two_versions_keep_the_promises_together(_state_server, _stepped_lua, _previous, actions, stretches, first):
    versions = itertools.cycle([bool(first ^ (n % 2)) for n, calls in enumerate(stretches) for _ in range(calls)])

    async def scenario():
        async with _mixed(_state_server, _stepped_lua, _previous, versions) as backend:
            await Interleaving(backend).play(actions, watched=False)

    asyncio.run(scenario())


async def _life(store, ref, version):
    """One step of a run's life after the other, each by the version that `version` names then."""
    version("accept")
    assert await store.open_thread("acme", "ana", ref.thread_id, {"a": "b"}) is not None
    assert await accept(store, ref, key="k", print_="p", slots=2) == "new"
    version("claim")
    claim = await store.claim(ref, 10, 100)
    epoch = claim.record.epoch
    version("write")
    await store.write(ref, epoch, 1, "t", [Draft("message_delta", b"{}", True)])
    await store.write(ref, epoch, 2, "t", [Draft("warning", b"{}")], mode="c", state=b'{"usage":{"cost":1}}', messages=[b"m"])
    version("release")
    await store.write(ref, epoch, 3, "t", [], mode="r")
    version("again")
    claim = await store.claim(ref, 10, 100)
    assert (claim.record.state, list(claim.messages)) == ({"usage": {"cost": 1}}, [b"m"])
    version("finish")
    await store.write(ref, claim.record.epoch, 1, "t", [], mode="f", terminal=done())
    version("settle")
    await store.settle(ref)
    version("read")
    assert (await store.inspect(ref))[0] == "ended"
    assert (await store.reserve(new_ref(), "ana", 2, "k", "p")).run_id == ref.run_id
    assert await store.list_members("thread", "acme", "ana", 0, 10, ref.thread_id) == [(ref.run_id, 1)]
    assert (await store.thread("acme", "ana", ref.thread_id)).metadata == {"a": "b"}
    assert (await store.run(ref)).result == {"output_text": "ok"}
    types = ["run_queued", "run_started", "message_delta", "warning", "run_finished"]
    assert [(e.seq, e.type) for e in await log_of(store, ref)] == list(enumerate(types, 1))


@pytest.mark.parametrize("begun_by", ["previous", "present"])
async def test_a_run_goes_on_wherever_in_its_life_the_version_changes(_state_server, _stepped_lua, _previous, begun_by):
    for change in ["accept", "claim", "write", "release", "again", "finish", "settle", "read"]:
        now = [begun_by == "present"]

        def version(step, now=now, change=change):
            if step == change:
                now[0] = not now[0]

        versions = (now[0] for _ in itertools.count())
        async with _mixed(_state_server, _stepped_lua, _previous, versions) as backend:
            await _life(backend.process("one"), new_ref(), version)


async def test_a_run_that_is_held_waits_out_a_rollback(_state_server, _stepped_lua, _previous):
    now = [True]
    async with _mixed(_state_server, _stepped_lua, _previous, (now[0] for _ in itertools.count())) as backend:
        store, busy, held = backend.process("one"), new_ref(), new_ref()
        assert await accept(store, busy, slots=1) == "new"
        schedule = Schedule(priority=1, slots=1)
        reservation = await store.present.reserve(held, "ana", 1, "", "", queued=1, schedule=schedule)
        assert reservation.held
        await store.accept(held, "ana", spec(held.thread_id), "stable", reservation, "", (QUEUED, CANCELLED))
        now[0] = False
        # The version before knows nothing of holding: it takes the run for one that is not at the head of its thread.
        assert (await store.claim(held, 10, 100)).verdict == "waiting"
        epoch = (await store.claim(busy, 10, 100)).record.epoch
        await store.write(busy, epoch, 1, "", [], mode="f", terminal=done())
        await store.settle(busy)
        assert (await store.run(held)).status == "queued"
        now[0] = True
        assert (await store.inspect(held))[0] == "held"
        assert await store.present.admit(held, schedule)
        assert await store.present.enter(held) == "free"
        assert (await store.claim(held, 10, 100)).verdict == "claimed"


WAKES = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=25)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=WAKES, last=st.booleans())
def test_whoever_is_woken_by_one_version_is_found_by_either(_state_server, _stepped_lua, _previous, steps, last):
    now = [True]

    async def scenario():
        async with _mixed(_state_server, _stepped_lua, _previous, (now[0] for _ in itertools.count())) as backend:
            store, woken, found = backend.process("one"), set(), set()
            for now[0], wakes, which in steps:
                if wakes:
                    ref = RunRef(f"tenant {which % 2}", "t", f"r{which}")
                    await store.wake(ref, "stable", backend.clock.now_ms + which)
                    woken.add(ref)
                    found.discard(ref)
                elif woken - found:
                    found.add(await store.next_ready("stable", 1))
            now[0] = last
            while woken - found:
                got = await store.next_ready("stable", 1)
                assert got in woken - found
                found.add(got)

    asyncio.run(scenario())
