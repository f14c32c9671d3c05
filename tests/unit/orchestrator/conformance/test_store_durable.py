"""What the store promises when its server is killed, when its primary is lost, and of which keys it changes in one step."""

import asyncio
import shutil
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.adapters.store_keys import lookup_key, thread_keys, waiting_keys
from services.orchestrator.records import Draft, RunRef, Schedule
from services.orchestrator.testing.interleavings import NAMES, Interleaving
from services.orchestrator.testing.runs import CANCELLED, QUEUED, accept, done, log_of, new_ref, spec
from services.orchestrator.testing.stores import Edit, Site, ValkeyBackend, stepped_lua

ACTIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 1), st.sampled_from([0, 0, 0, 1])), min_size=5, max_size=25)


@asynccontextmanager
async def _on(url, lua, clock=None):
    client = connect(url, timeout_s=testing.PATIENCE_S)
    try:
        backend = ValkeyBackend(client, lua)
        backend.clock = clock or backend.clock
        await backend.advance(0)
        yield backend
    finally:
        await client.aclose()


async def _all_of(store, refs):
    return await log_of(store, refs[0]), await store.runs(refs), [await store.inspect(ref) for ref in refs]


@settings(max_examples=3, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(before=ACTIONS, after=ACTIONS)
def test_a1_a5_what_was_answered_is_there_after_the_store_was_killed(_stepped_lua, tmp_path_factory, before, after):
    async def scenario(folder):
        with testing.valkey_server(folder=folder) as (url, server):
            async with _on(url, _stepped_lua) as backend:
                played = Interleaving(backend)
                await played.play(before)
                kept = await _all_of(played.store, played.refs)
            server.kill()
        with testing.valkey_server(folder=folder) as (url, _):
            async with _on(url, _stepped_lua, backend.clock) as again:
                played.move(again)
                assert await _all_of(played.store, played.refs) == kept
                await played.play(after)

    folder = tmp_path_factory.mktemp("killed")
    try:
        asyncio.run(scenario(folder))
    finally:
        shutil.rmtree(folder)


async def test_a1_a4_a9_what_a_replica_acknowledged_outlives_the_primary(_stepped_lua):
    with testing.valkey_server() as (url, primary), testing.valkey_server() as (replica_url, _):
        async with _on(url, _stepped_lua) as backend, _on(replica_url, _stepped_lua) as promoted:
            follower = promoted.client
            await backend.client.config_set("repl-diskless-sync-delay", 0)
            await follower.execute_command("REPLICAOF", "127.0.0.1", url.rsplit(":", 1)[1].split("/")[0])

            async def follows():
                return (await follower.info("replication"))["master_link_status"] == "up"

            await testing.eventually_async(follows, "the replica follows")
            store, refs = backend.process("one", replicas=1), [new_ref() for _ in range(6)]
            for ref in refs:
                assert await accept(store, ref) == "new"
            epochs = {}
            for ref in refs[1:]:
                claim = await store.claim(ref, 10, 100)
                epochs[ref] = claim.record.epoch
                await store.write(
                    ref, claim.record.epoch, 1, "", [Draft("warning", b"{}")], mode="c", state=b'{"spent":1}', messages=[b"m"]
                )
            await store.write(refs[2], epochs[refs[2]], 2, "", [], mode="f", terminal=done())
            await store.cancel(refs[3], "", CANCELLED, "")
            kept = [await _all_of(store, [ref]) for ref in refs]
            primary.kill()
            await follower.execute_command("REPLICAOF", "NO", "ONE")
            promoted.clock = backend.clock
            await promoted.advance(0)
            other = promoted.process("two")
            assert [await _all_of(other, [ref]) for ref in refs] == kept
            await promoted.advance(11)
            for ref in (refs[1], refs[3], refs[4], refs[5]):
                claim = await other.claim(ref, 10, 100)
                # No epoch is handed out twice, and nothing that was acknowledged is forgotten.
                assert claim.record.epoch == epochs[ref] + 1
                assert (claim.record.state, list(claim.messages)) == ({"spent": 1}, [b"m"])
                assert claim.record.cancel_requested == (ref == refs[3])


# --- hash tags ---


async def test_a_cluster_refuses_a_step_over_two_hash_tags(_cluster_server, _stepped_lua):
    ref = new_ref()
    async with Site("cluster", _cluster_server, _stepped_lua).open() as backend:
        library = backend.process("one")._library
        # Keys that are named.
        with pytest.raises(ResponseError, match="slot"):
            await library.call("tenant_forget_v1", [*waiting_keys("acme"), lookup_key("globex", ref.run_id)], [ref.run_id, "t", 0])
    # Keys that are not: a step on a thread that looks at its tenant.
    peeks = Edit("run.lua", "local function beat(keys, args)\n", "local function beat(keys, args)\n  redis.call('GET', 'tn:{acme}:n')\n")
    with stepped_lua([peeks]) as lua:
        async with Site("cluster", _cluster_server, lua).open() as backend:
            store = backend.process("one")
            await accept(store, ref)
            epoch = (await store.claim(ref, 10, 100)).record.epoch
            with pytest.raises(ResponseError, match="slot"):
                await store.beat(ref, epoch, 10)


@pytest.mark.parametrize("tenant", ["acme", "a/b", "ä {x} %", "}{", "{}"])
async def test_any_name_of_a_tenant_has_hash_tags_of_its_own(site, tenant):
    async with site.open() as backend:
        store, ref = backend.process("one"), RunRef(tenant, "t", "r")
        queued = RunRef(tenant, "t", "q")
        schedule = Schedule(slots=1)
        for each in (ref, queued):
            reservation = await store.reserve(each, "ana {}", 1, "k" + each.run_id, "p", queued=1, schedule=schedule)
            await store.accept(each, "ana {}", spec("t"), "stable", reservation, "", (QUEUED, CANCELLED))
        assert reservation.held
        epoch = (await store.claim(ref, 10, 100)).record.epoch
        await store.write(ref, epoch, 1, "", [Draft("warning", b"{}")], mode="f", terminal=done())
        await store.settle(ref)
        assert await store.enter(queued) == "free"
        await store.wake(queued, "stable", 0)
        assert await store.next_waiting("stable") == queued
        assert await store.request_cancel(tenant, "ana {}", queued.run_id) == "t"
        assert (await store.cancel(queued, "", CANCELLED, ""))[0] == "cancelled"
        assert [e.seq for e in await log_of(store, ref)] == list(range(1, 7))


def test_keys_of_a_thread_share_a_hash_tag_and_no_other_thread_has_it():
    tags = {key.split("{")[1].split("}")[0] for key in thread_keys(RunRef("acme", "t1", "r"))}
    assert len(tags) == 1
    assert tags.isdisjoint(key.split("{")[1].split("}")[0] for key in thread_keys(RunRef("acme", "t2", "r")))
