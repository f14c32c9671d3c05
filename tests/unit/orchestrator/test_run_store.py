"""The store's promises as properties: whatever owners, sweepers and callers do in whatever order, the log stays a log."""

import asyncio
import signal
import uuid

import orjson
import pytest

from services.common import testing
from services.common.envelope import opened_envelope
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.orchestrator.adapters.sealing import COMMAND
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.records import Draft, Fenced, RunRef, Terminal
from services.orchestrator.testing.harness import root_keys
from services.orchestrator.testing.runs import CANCELLED, CRASHES, LEASE_S, QUEUED, accept, done, log_of, new_ref, spec


async def test_a_former_owner_changes_nothing(backend, store, other):
    ref = new_ref()
    await accept(store, ref)
    first = await store.claim(ref, LEASE_S, CRASHES)
    await store.write(ref, first.record.epoch, 1, "", [Draft("message_delta", b"{}", True)])
    await backend.advance(LEASE_S * 2)
    second = await other.claim(ref, 60, CRASHES)
    assert second.record.epoch == first.record.epoch + 1
    before = await log_of(store, ref)
    for attempt in ("e", "c", "s", "r"):
        with pytest.raises(Fenced):
            await store.write(
                ref, first.record.epoch, 2, "", [Draft("message_delta", b"{}")], mode=attempt, state=b'{"x":1}', messages=[b"m"]
            )
    with pytest.raises(Fenced):
        await store.write(ref, first.record.epoch, 2, "", [], mode="f", terminal=done())
    with pytest.raises(Fenced):
        await store.beat(ref, first.record.epoch, 60)
    assert await log_of(store, ref) == before
    record = await store.run(ref)
    assert (record.status, record.state, record.epoch) == ("running", {}, second.record.epoch)


async def test_nobody_writes_to_a_run_that_was_handed_back_or_has_ended(store):
    for mode, terminal in (("r", None), ("f", done())):
        ref = new_ref()
        await accept(store, ref)
        epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
        await store.write(ref, epoch, 1, "", [], mode=mode, terminal=terminal)
        before = await log_of(store, ref)
        for late in ("e", "c", "r"):
            with pytest.raises(Fenced):
                await store.write(ref, epoch, 2, "", [Draft("warning", b"{}")], mode=late)
        with pytest.raises(Fenced):
            await store.write(ref, epoch, 2, "", [], mode="f", terminal=done("other"))
        assert await log_of(store, ref) == before


async def test_a_run_with_a_living_owner_is_not_handed_out(store, other):
    ref = new_ref()
    await accept(store, ref)
    assert (await store.claim(ref, 60, CRASHES)).verdict == "claimed"
    for anyone in (store, other):
        assert (await anyone.claim(ref, 60, CRASHES)).verdict == "owned"


async def test_a_run_is_owned_by_whoever_accepts_it_unless_it_must_wait(store, other):
    first = new_ref()
    second = new_ref(first.thread_id)
    for ref, status in ((first, "running"), (second, "queued")):
        reservation = await store.reserve(ref, "ana", 0, "", "")
        accepted = await store.accept(ref, "ana", spec(ref.thread_id), "stable", reservation, "", (QUEUED, CANCELLED), 60.0)
        assert accepted.record == await store.run(ref)
        assert accepted.record.status == status
    assert (await other.claim(first, 60, CRASHES)).verdict == "owned"
    await store.write(first, 1, 1, "", [Draft("warning", b"{}")])
    assert [e.type for e in await log_of(store, first)] == ["run_queued", "run_started", "run_queued", "warning"]


async def test_a_write_that_is_sent_again_is_one_write(store):
    ref = new_ref()
    await accept(store, ref)
    epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
    once = await store.write(ref, epoch, 1, "", [Draft("warning", b"{}")])
    assert await store.write(ref, epoch, 1, "", [Draft("warning", b"{}")]) == once
    end = await store.write(ref, epoch, 2, "", [], mode="f", terminal=done())
    assert await store.write(ref, epoch, 2, "", [], mode="f", terminal=done()) == end
    assert [e.type for e in await log_of(store, ref)] == ["run_queued", "run_started", "warning", "run_finished"]


async def test_takeover_names_the_text_that_is_void_unless_it_cannot_be_taken_back(backend, store, other):
    for append_only in (False, True):
        ref = new_ref()
        await accept(store, ref, append_only=append_only)
        epoch = (await store.claim(ref, LEASE_S, CRASHES)).record.epoch
        shown = await store.write(ref, epoch, 1, "", [Draft("warning", b"{}"), Draft("message_delta", b"{}", True)])
        await store.write(ref, epoch, 2, "", [Draft("message_delta", b"{}", True)])
        await backend.advance(LEASE_S * 2)
        claim = await other.claim(ref, 60, CRASHES)
        last = (await log_of(store, ref))[-1]
        if append_only:
            assert (last.type, claim.record.provisional_from) == ("message_delta", shown.last_seq)
        else:
            assert (last.type, orjson.loads(last.data)) == ("attempt_superseded", {"from_seq": shown.last_seq})


async def test_checkpointed_text_is_not_superseded(backend, store, other):
    ref = new_ref()
    await accept(store, ref)
    epoch = (await store.claim(ref, LEASE_S, CRASHES)).record.epoch
    await store.write(ref, epoch, 1, "", [Draft("message_delta", b"{}", True)])
    await store.write(ref, epoch, 2, "", [], mode="c", state=b'{"s":1}', messages=[b"one", b"two"])
    await backend.advance(LEASE_S * 2)
    claim = await other.claim(ref, 60, CRASHES)
    assert (claim.messages, claim.record.state) == ([b"one", b"two"], {"s": 1})
    assert "attempt_superseded" not in [e.type for e in await log_of(store, ref)]


async def test_a_run_whose_workers_keep_dying_fails_readably(backend, store):
    ref, following = new_ref(), None
    await accept(store, ref)
    following = new_ref(ref.thread_id)
    await accept(store, following)
    verdicts = []
    for _ in range(4):
        verdicts.append((await store.claim(ref, LEASE_S, CRASHES)).verdict)
        await backend.advance(LEASE_S * 2)
    assert verdicts == ["claimed", "claimed", "claimed", "failed"]
    record = await store.run(ref)
    assert (record.status, record.result["error"]["reason"]) == ("failed", "WORKER_LOST")
    assert (await store.claim(following, 60, CRASHES)).verdict == "claimed"


async def test_a_cancelled_run_whose_workers_keep_dying_ends_cancelled(backend, store):
    ref = new_ref()
    await accept(store, ref)
    claim = await store.claim(ref, LEASE_S, CRASHES)
    shown = await store.write(ref, claim.record.epoch, 1, "", [Draft("message_delta", b"{}", True)])
    await store.cancel(ref, "", CANCELLED, "")
    verdicts = []
    for _ in range(2 * CRASHES):
        await backend.advance(LEASE_S * 2)
        verdicts.append((await store.claim(ref, LEASE_S, CRASHES)).verdict)
    assert verdicts == ["claimed"] * (2 * CRASHES - 1) + ["failed"]
    record = await store.run(ref)
    assert (record.status, record.result) == ("cancelled", {"output_text": "", "usage": {}, "given_up": True})
    void, end = (await log_of(store, ref))[-2:]
    assert (void.type, orjson.loads(void.data), end.type) == ("attempt_superseded", {"from_seq": shown.last_seq}, "run_cancelled")


async def test_handing_over_does_not_use_the_crash_budget(store):
    ref = new_ref()
    await accept(store, ref)
    for _ in range(6):
        claim = await store.claim(ref, 60, CRASHES)
        assert claim.verdict == "claimed"
        await store.write(ref, claim.record.epoch, 1, "", [], mode="r", state=b"{}")


async def test_runs_of_a_thread_go_one_after_the_other(store):
    first = new_ref()
    second = new_ref(first.thread_id)
    await accept(store, first)
    await accept(store, second)
    assert (await store.claim(second, 60, CRASHES)).verdict == "waiting"
    epoch = (await store.claim(first, 60, CRASHES)).record.epoch
    assert (await store.claim(second, 60, CRASHES)).verdict == "waiting"
    written = await store.write(first, epoch, 1, "", [], mode="f", terminal=done())
    assert written.next_run == second.run_id
    assert (await store.claim(second, 60, CRASHES)).verdict == "claimed"


async def test_a_cancel_holds_whenever_it_comes(backend, store):
    before, between, queued, running = (new_ref() for _ in range(4))
    # Before anybody heard of the run.
    assert await store.request_cancel("acme", "ana", before.run_id) == ""
    await accept(store, before)
    assert (await store.run(before)).status == "cancelled"
    # Between the reservation and the record.
    reservation = await store.reserve(between, "ana", 0, "", "")
    assert await store.request_cancel("acme", "ana", between.run_id) == between.thread_id
    assert (await store.cancel(between, "", CANCELLED, ""))[0] == "none"
    await store.accept(between, "ana", spec(between.thread_id), "stable", reservation, "", (QUEUED, CANCELLED))
    assert (await store.run(between)).status == "cancelled"
    # In the queue.
    await accept(store, queued)
    assert (await store.cancel(queued, "", CANCELLED, ""))[0] == "cancelled"
    assert (await store.claim(queued, 60, CRASHES)).verdict == "ended"
    # At work: asked once, it stays asked, also for the next owner.
    await accept(store, running)
    epoch = (await store.claim(running, LEASE_S, CRASHES)).record.epoch
    assert (await store.cancel(running, "", CANCELLED, ""))[0] == "running"
    assert (await store.beat(running, epoch, LEASE_S)).cancel
    await backend.advance(LEASE_S * 2)
    assert (await store.claim(running, 60, CRASHES)).record.cancel_requested
    for ref in (before, between, queued):
        assert [e.type for e in await log_of(store, ref)] == ["run_queued", "run_cancelled"]


async def test_an_accept_that_died_midway_is_completed_by_the_clients_next_try(store):
    ref = new_ref()
    await store.request_cancel("acme", "ana", ref.run_id)
    await store.reserve(ref, "ana", 0, "k", "p")
    again = await store.reserve(new_ref(), "ana", 0, "k", "p")
    assert (again.verdict, again.run_id, again.cancelled) == ("existing", ref.run_id, True)
    accepted = await store.accept(ref, "ana", spec(ref.thread_id), "stable", again, "", (QUEUED, CANCELLED))
    assert (accepted.verdict, accepted.record.status) == ("new", "cancelled")


async def test_another_users_tombstone_and_run_are_not_touched(store):
    ref = new_ref()
    assert await store.request_cancel("acme", "eve", ref.run_id) == ""
    await accept(store, ref)
    assert (await store.run(ref)).status == "queued"
    assert await store.request_cancel("acme", "eve", ref.run_id) is None
    assert await store.locate("acme", "eve", ref.run_id) is None
    assert await store.locate("globex", "ana", ref.run_id) is None
    foreign = RunRef("acme", ref.thread_id, uuid.uuid4().hex)
    assert await accept(store, foreign, user="eve") == "foreign"


async def test_slots_and_keys_of_a_tenant(store):
    one, two, three = new_ref(), new_ref(), new_ref()
    assert await accept(store, one, slots=2, key="k", print_="p") == "new"
    assert await accept(store, two, slots=2) == "new"
    assert await accept(store, three, slots=2) == "quota"
    again = await store.reserve(three, "ana", 2, "k", "p")
    assert (again.verdict, again.run_id, again.thread_id) == ("existing", one.run_id, one.thread_id)
    assert (await store.reserve(three, "ana", 2, "k", "other")).verdict == "mismatch"
    assert (await store.reserve(one, "ana", 2, "", "")).verdict == "taken"
    await store.settle(one)
    assert await accept(store, three, slots=2) == "new"


async def test_a_run_id_asked_for_in_another_thread_does_not_free_the_slot_of_its_run(backend, store):
    one = new_ref()
    assert await accept(store, one, slots=1) == "new"
    await backend.advance(60)
    elsewhere = one._replace(thread_id="elsewhere")
    assert await accept(store, elsewhere, slots=1) == "taken"
    assert await store.forget(elsewhere), "the sweeper need not look at it again"
    assert await accept(store, new_ref(), slots=1) == "quota"


async def test_users_of_a_tenant_have_idempotency_keys_of_their_own(store):
    assert await accept(store, new_ref(), key="1", print_="p") == "new"
    assert await accept(store, new_ref(), key="1", print_="p", user="bob") == "new"
    assert await accept(store, new_ref(), key="1", print_="p") == "existing"


async def test_an_accept_that_took_too_long_leaves_no_run(store):
    ref = new_ref()
    reservation = await store.reserve(ref, "ana", 0, "", "")
    late = reservation._replace(not_after_ms=reservation.not_after_ms - 60_000)
    assert (await store.accept(ref, "ana", spec(), "stable", late, "", (QUEUED, CANCELLED))).verdict == "late"
    assert await store.run(ref) is None


async def test_the_outbox_entry_appears_with_the_end_and_has_one_sender(store, other):
    ref = new_ref()
    await accept(store, ref)
    epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
    assert await store.outbox_waiting(ref) == []
    end = done()
    await store.write(ref, epoch, 1, "", [], mode="f", terminal=Terminal(end.status, end.result, end.event, end.data, b"entry"))
    assert (await store.inspect(ref))[0] == "outbox"
    assert await store.outbox_claim(ref, 60) == (b"entry", 1)
    assert await other.outbox_claim(ref, 60) is None
    await store.outbox_done(ref, False)
    assert await other.outbox_claim(ref, 60) == (b"entry", 2)
    await other.outbox_done(ref, True)
    assert (await store.inspect(ref))[0] == "ended"


@pytest.mark.system
async def test_what_must_be_on_a_replica_counts_only_there(tmp_path):
    with testing.valkey_server() as (url, _), testing.valkey_server() as (replica_url, replica):
        client, follower = connect(url), connect(replica_url)
        await client.config_set("repl-diskless-sync-delay", 0)  # else it waits five seconds for more replicas to come
        await follower.execute_command("REPLICAOF", "127.0.0.1", url.rsplit(":", 1)[1].split("/")[0])

        async def follows():
            # What it says itself: the primary calls it online while it still loads.
            return (await follower.info("replication"))["master_link_status"] == "up"

        await testing.eventually_async(follows, "the replica follows")
        store, ref, lost = Store(client, "one", replicas=1), new_ref(), new_ref()
        assert await accept(store, ref) == "new"
        assert (await store.claim(ref, 60, CRASHES)).verdict == "claimed"
        # A replica that does nothing else is waited for no longer than it takes: not until it tells of its disk by itself each second.
        async with asyncio.timeout(10):
            for _ in range(20):
                await store.write(ref, 1, 1, "", [Draft("x", b"{}")], mode="c", state=b"{}")
        replica.signal(signal.SIGSTOP)
        reservation = await store.reserve(lost, "ana", 0, "", "")
        again = connect(url)
        # Also where the same is asked again over another connection.
        for asked in (store, Store(again, "one", replicas=1)):
            with pytest.raises(Overloaded) as caught:
                await asked.accept(lost, "ana", spec(), "stable", reservation, "", (QUEUED, CANCELLED))
            assert caught.value.reason == "STORE_UNAVAILABLE"
            with pytest.raises(Overloaded):
                await asked.write(ref, 1, 1, "", [Draft("x", b"{}")], mode="c", state=b"{}")
        replica.signal(signal.SIGCONT)
        await again.aclose()
        await client.aclose()
        await follower.aclose()


async def test_a_store_whose_memory_is_full_takes_no_new_run_and_lets_those_at_work_end(valkey):
    store, ref = Store(valkey, "one"), new_ref()
    await accept(store, ref)
    epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
    await valkey.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(Overloaded) as caught:
            await accept(store, new_ref())
        assert caught.value.reason == "STORE_UNAVAILABLE"
        await store.beat(ref, epoch, 60)
        await store.write(ref, epoch, 1, "", [Draft("warning", b"{}")])
        await store.write(ref, epoch, 2, "", [], mode="f", terminal=done())
        await store.settle(ref)
    finally:
        await valkey.config_set("maxmemory", "0")
    assert [e.type for e in await log_of(store, ref)][-1] == "run_finished"
    assert await accept(store, new_ref()) == "new"


async def test_trying_again_does_not_put_off_the_sweeper(backend, store):
    ref = new_ref()
    await accept(store, ref, key="k")
    await store.note(ref, 3600, sooner=True)
    await backend.advance(2)
    assert await store.due(10, 0) == [ref]
    await store.note(ref, 3600)
    await backend.advance(2)
    assert await store.due(10, 0) == []


async def test_a_wake_up_does_not_put_off_a_look_that_somebody_asked_for(backend, store):
    ref = new_ref()
    await accept(store, ref)
    await store.note(ref, 1, sooner=True)
    await store.wake(ref, "stable", 0, 3600)
    await backend.advance(2)
    assert await store.due(10, 3600) == [ref]
    # Nor does it bring back one that was had.
    await store.note(ref, 3600)
    await store.wake(ref, "stable", 0, 3600)
    await backend.advance(2)
    assert await store.due(10, 0) == []


async def test_why_a_run_is_to_end_is_kept_and_read_by_nobody_without_its_users_key(either, tmp_path):
    said = "since Ana said so"
    for envelope, shown in ((None, True), (opened_envelope(either, root_keys(tmp_path)), False)):
        store, ref = Store(either, "one", envelope=envelope), new_ref()
        await accept(store, ref)
        await store.claim(ref, 60, CRASHES)
        assert (await store.cancel(ref, "", CANCELLED, said))[0] == "running"
        kept = await either.hget(thread_keys(ref)[2], "cancel_reason")
        assert (kept == said.encode()) is shown
        assert shown or await store.sealing.open(ref.tenant, COMMAND, kept) == said.encode()
