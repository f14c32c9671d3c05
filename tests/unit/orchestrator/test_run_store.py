"""The store's promises as properties: whatever owners, sweepers and callers do in whatever order, the log stays a log."""

import asyncio
import itertools
import uuid

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import testing
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import TERMINAL_EVENTS, Draft, Fenced, Limits, RunRef, RunSpec, Terminal

LEASE_S = 0.001
CRASHES = 3
QUEUED, CANCELLED = b'{"input":[]}', b'{"output_text":"","usage":{}}'


def spec(thread_id="t", append_only=False):
    return RunSpec(
        thread_id, "a", "1", "d", [{"role": "user", "text": "hi"}], Limits(), {"tenant": "acme", "user": "ana"}, append_only=append_only
    )


def done(text="ok"):
    data = orjson.dumps({"output_text": text})
    return Terminal("succeeded", data, "run_finished", data)


async def accept(store, ref, *, slots=0, key="", print_="", append_only=False, user="ana"):
    reservation = await store.reserve(ref, user, slots, key, print_)
    if reservation.verdict != "new":
        return reservation.verdict
    accepted = await store.accept(ref, user, spec(ref.thread_id, append_only), "stable", reservation, "", (QUEUED, CANCELLED))
    return accepted.verdict


def new_ref(thread_id=None):
    return RunRef("acme", thread_id or uuid.uuid4().hex, uuid.uuid4().hex)


async def log_of(store, ref):
    return (await store.read(ref, 0, 10_000, False))[3]


@pytest.fixture
def store(valkey):
    return Store(valkey, "one")


@pytest.fixture
def other(valkey):
    return Store(valkey, "two")


async def test_a_former_owner_changes_nothing(store, other):
    ref = new_ref()
    await accept(store, ref)
    first = await store.claim(ref, LEASE_S, CRASHES)
    await store.write(ref, first.record.epoch, 1, "", [Draft("message_delta", b"{}", True)])
    await asyncio.sleep(LEASE_S * 2)
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


async def test_takeover_names_the_text_that_is_void_unless_it_cannot_be_taken_back(store, other):
    for append_only in (False, True):
        ref = new_ref()
        await accept(store, ref, append_only=append_only)
        epoch = (await store.claim(ref, LEASE_S, CRASHES)).record.epoch
        shown = await store.write(ref, epoch, 1, "", [Draft("warning", b"{}"), Draft("message_delta", b"{}", True)])
        await store.write(ref, epoch, 2, "", [Draft("message_delta", b"{}", True)])
        await asyncio.sleep(LEASE_S * 2)
        claim = await other.claim(ref, 60, CRASHES)
        last = (await log_of(store, ref))[-1]
        if append_only:
            assert (last.type, claim.record.provisional_from) == ("message_delta", shown.last_seq)
        else:
            assert (last.type, orjson.loads(last.data)) == ("attempt_superseded", {"from_seq": shown.last_seq})


async def test_checkpointed_text_is_not_superseded(store, other):
    ref = new_ref()
    await accept(store, ref)
    epoch = (await store.claim(ref, LEASE_S, CRASHES)).record.epoch
    await store.write(ref, epoch, 1, "", [Draft("message_delta", b"{}", True)])
    await store.write(ref, epoch, 2, "", [], mode="c", state=b'{"s":1}', messages=[b"one", b"two"])
    await asyncio.sleep(LEASE_S * 2)
    claim = await other.claim(ref, 60, CRASHES)
    assert (claim.messages, claim.record.state) == ([b"one", b"two"], {"s": 1})
    assert "attempt_superseded" not in [e.type for e in await log_of(store, ref)]


async def test_a_run_whose_workers_keep_dying_fails_readably(store):
    ref, following = new_ref(), None
    await accept(store, ref)
    following = new_ref(ref.thread_id)
    await accept(store, following)
    verdicts = []
    for _ in range(4):
        verdicts.append((await store.claim(ref, LEASE_S, CRASHES)).verdict)
        await asyncio.sleep(LEASE_S * 2)
    assert verdicts == ["claimed", "claimed", "claimed", "failed"]
    record = await store.run(ref)
    assert (record.status, record.result["error"]["reason"]) == ("failed", "WORKER_LOST")
    assert (await store.claim(following, 60, CRASHES)).verdict == "claimed"


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


async def test_a_cancel_holds_whenever_it_comes(store):
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
    assert await store.beat(running, epoch, LEASE_S)
    await asyncio.sleep(LEASE_S * 2)
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


async def test_what_must_be_on_a_replica_counts_only_there(tmp_path):
    with testing.valkey_server() as (url, _), testing.valkey_server() as (replica_url, replica):
        client, follower = connect(url), connect(replica_url)
        await follower.execute_command("REPLICAOF", "127.0.0.1", url.rsplit(":", 1)[1].split("/")[0])

        async def follows():
            return (await client.info("replication")).get("slave0", {}).get("state") == "online"

        await testing.eventually_async(follows, "the replica follows")
        store, ref, lost = Store(client, "one", replicas=1), new_ref(), new_ref()
        assert await accept(store, ref) == "new"
        assert (await store.claim(ref, 60, CRASHES)).verdict == "claimed"
        replica.kill()
        with pytest.raises(Overloaded) as caught:
            await accept(store, lost)
        assert caught.value.reason == "STORE_UNAVAILABLE"
        await client.aclose()
        await follower.aclose()


# --- any order of anything ---

# Mostly one run and often the same action: what goes wrong, goes wrong between few.
NAMES = ["claim", "claim", "delta", "delta", "checkpoint", "finish", "fail", "release", "cancel", "accept", "expire", "expire", "again"]
ACTIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 1), st.sampled_from([0, 0, 0, 1])), min_size=10, max_size=40)


class Owner:
    """One process: what it believes to own, right or wrong."""

    def __init__(self, store):
        self.store = store
        self.epochs: dict[RunRef, int] = {}
        self.numbers: dict[RunRef, int] = {}
        self.last: dict[RunRef, tuple] = {}

    async def act(self, action, ref):
        if action == "claim":
            claim = await self.store.claim(ref, 60, 100)
            if claim.verdict == "claimed":
                self.epochs[ref], self.numbers[ref] = claim.record.epoch, 0
            return claim.verdict
        if ref not in self.epochs:
            return "nothing"
        if action == "again":
            if ref not in self.last or self.last[ref][0] != self.epochs[ref]:
                return "nothing"
            _, number, parts, answer = self.last[ref]
            assert await self.store.write(ref, self.epochs[ref], number, "", **parts) == answer
            return "same"
        parts = {
            "delta": {"events": [Draft("message_delta", b"{}", True)] * 2},
            "checkpoint": {"events": [Draft("warning", b"{}")], "mode": "c", "state": b'{"v":1}', "messages": [b"m"]},
            "finish": {"events": [Draft("usage", b"{}")], "mode": "f", "terminal": done()},
            "fail": {"events": [], "mode": "f", "terminal": Terminal("failed", b"{}", "run_failed", b"{}")},
            "release": {"events": [], "mode": "r"},
        }[action]
        self.numbers[ref] += 1
        answer = await self.store.write(ref, self.epochs[ref], self.numbers[ref], "", **parts)
        self.last[ref] = (self.epochs[ref], self.numbers[ref], parts, answer)
        return "written"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_any_order_of_claims_writes_cancels_and_crashes_keeps_the_invariants(_state_server, actions):
    asyncio.run(_any_order(_state_server, actions))


async def _any_order(url, actions):
    client = connect(url)
    thread_id = uuid.uuid4().hex
    refs = [RunRef("acme", thread_id, uuid.uuid4().hex) for _ in range(2)]
    owners = [Owner(Store(client, "one")), Owner(Store(client, "two"))]
    store = owners[0].store
    cancelled, accepted, expired, epoch_holder = set(), set(), set(), {}
    try:
        await accept(store, refs[0])
        accepted.add(refs[0])
        for action, who, which in actions:
            owner, ref = owners[who], refs[which]
            if action == "accept":
                if ref not in accepted:
                    await accept(store, ref)
                    accepted.add(ref)
            elif action == "expire":
                # The owner is gone for longer than its lease.
                key = f"t:{{acme/{thread_id}}}:run:{ref.run_id}"
                if await client.hget(key, "status") == b"running":
                    await client.hset(key, "lease_until", 1)
                    expired.add(ref)
            elif action == "cancel":
                await store.request_cancel("acme", "ana", ref.run_id)
                if ref in accepted:
                    await store.cancel(ref, "", CANCELLED, "")
                cancelled.add(ref)
            else:
                before = await store.run(ref)
                stale = before is not None and (ref not in owner.epochs or owner.epochs[ref] != before.epoch or before.status != "running")
                try:
                    verdict = await owner.act(action, ref)
                except Fenced:
                    assert stale, "an owner was refused"
                    continue
                if verdict == "written":
                    assert not stale, "somebody wrote who is no owner"
                if verdict == "claimed":
                    assert before.status == "queued" or ref in expired, "a run was taken from its living owner"
                    expired.discard(ref)
                    epoch = owner.epochs[ref]
                    # An epoch is handed out once.
                    assert (ref, epoch) not in epoch_holder
                    epoch_holder[ref, epoch] = who
        await _check(store, refs, accepted, cancelled)
    finally:
        await client.aclose()


async def _check(store, refs, accepted, cancelled):
    events = await log_of(store, refs[0])
    # A3: contiguous, from 1, never reused.
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    for ref in refs:
        record = await store.run(ref)
        # A1: what was accepted is there.
        assert (record is not None) == (ref in accepted)
        if record is None:
            continue
        own = [e for e in events if e.run_id == ref.run_id]
        assert own[0].type == "run_queued"
        # A2: one terminal event, the last one, together with the state.
        terminal = [e for e in own if e.type in TERMINAL_EVENTS]
        assert len(terminal) == (1 if record.ended else 0)
        if record.ended:
            assert own[-1] is terminal[0]
            assert record.terminal_seq == terminal[0].seq
        # A5: provisional text belongs to an attempt, and attempts do not mix.
        attempts = [e.attempt for e in own]
        assert attempts == sorted(attempts)
        for earlier, later in itertools.pairwise(own):
            if later.attempt != earlier.attempt and later.attempt > 1 and earlier.type == "message_delta" and ref not in cancelled:
                assert later.type == "attempt_superseded"
        # A10: asked once, it stays asked.
        if ref in cancelled:
            assert record.cancel_requested or record.ended
