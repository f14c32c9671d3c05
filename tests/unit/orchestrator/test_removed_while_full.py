"""A store whose memory is full: what goes, goes. It is what makes room, and a user who must be forgotten is forgotten all the same."""

from contextlib import asynccontextmanager

import pytest

from services.common import testing
from services.common.errors import Overloaded
from services.orchestrator.adapters.schedule_store import ValkeySchedules
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.adapters.store_threads import ValkeyThreads
from services.orchestrator.adapters.webhook_store import ValkeyWebhooks
from services.orchestrator.schedules.records import Definition, ScheduleRef, Timing
from services.orchestrator.testing.runs import CRASHES, accept, done, new_ref
from services.orchestrator.webhooks.records import Endpoint
from services.orchestrator.webhooks.rotation import Secret


@asynccontextmanager
async def full(client):
    await client.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        await client.config_set("maxmemory", "0")


async def test_schedules_are_removed(valkey):
    store, ref = ValkeySchedules(valkey, "one"), ScheduleRef("acme", "sch_1")
    definition = Definition(Timing(every_ms=1_000), "quick", [], testing.principal_of("acme", "ana").as_dict())
    await store.add(ref, "ana", definition, 1, 5)
    async with full(valkey):
        with pytest.raises(Overloaded):
            await store.add(ScheduleRef("acme", "sch_2"), "ana", definition, 1, 5)
        await store.remove(await store.get(ref))
    assert await store.of_user("acme", "ana", 0, 5) == []


async def test_webhooks_are_removed(valkey):
    store = ValkeyWebhooks(valkey, "one")
    await store.add("acme", Endpoint("wh_1", "https://a.example", ("run.finished",), "", 1, (Secret("whsec_a"),)), 5)
    async with full(valkey):
        assert await store.remove("acme", "wh_1")
    assert await store.endpoints("acme") == []


async def test_threads_are_deleted_with_their_runs_and_none_is_begun_to_be_rolled_back(valkey):
    store, threads, ref = Store(valkey, "one"), ValkeyThreads(valkey, "one"), new_ref()
    await accept(store, ref)
    epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
    await store.write(ref, epoch, 1, "", [], mode="f", terminal=done())
    async with full(valkey):
        not_after_ms = await threads.note(ref, 60.0)
        assert await threads.live(ref, 1, 1) == 0, "its time to live has ended"
        with pytest.raises(Overloaded):
            await threads.begin(ref, "ana", "busy", b"{}", not_after_ms)
        assert (await threads.begin(ref, "ana", "gone", b"{}", not_after_ms)).verdict == "begun"
        await threads.delist(ref, "ana", [ref.run_id])
        await threads.purge_runs(ref, [ref.run_id])
        await threads.purge(ref, "ana")
    assert await store.run(ref) is None
    assert await valkey.exists(*thread_keys(ref)[1:]) == 0


async def test_a_thread_that_is_being_rolled_back_comes_out_of_it(valkey):
    store, threads, ref = Store(valkey, "one"), ValkeyThreads(valkey, "one"), new_ref()
    await store.open_thread("acme", "ana", ref.thread_id, {})
    not_after_ms = await threads.note(ref, 60.0)
    assert (await threads.begin(ref, "ana", "busy", b"{}", not_after_ms, "key")).verdict == "begun"
    async with full(valkey):
        assert (await threads.rolled(ref, "ana", b"{}", b'{"to_seq":0}', b"", [], "key", ""))[0] == "done"
    assert (await threads.state(ref)).doing == ""
