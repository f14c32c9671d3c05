"""The promises A1 to A10, as far as they are the store's to keep, each for any history and on each store there is."""

import asyncio
import itertools

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import Gone
from services.orchestrator.records import TERMINAL_EVENTS, Draft, Fenced, Schedule, Terminal
from services.orchestrator.testing.runs import CANCELLED, QUEUED, accept, done, log_of, new_ref, spec

LEASE_S, CRASHES = 10, 100
EXAMPLES = {"memory": 30, "valkey": 6, "cluster": 3}
TEXT = Draft("message_delta", b'{"text":"x"}', True)
FACT = Draft("warning", b"{}")
MODES = ["e", "e", "c", "s"]


def holds(site, scenario, **drawn):
    """Runs `scenario(backend, **drawn)` for many values of what is drawn, each on an empty store."""

    @settings(max_examples=EXAMPLES[site.name], deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(**drawn)
    def example(**values):
        async def run():
            async with site.open() as backend:
                await scenario(backend, **values)

        asyncio.run(run())

    example()


async def _owned(backend, instance="one", thread_id=None):
    """A run and the epoch of its owner."""
    ref, store = new_ref(thread_id), backend.process(instance)
    assert await accept(store, ref) == "new"
    return ref, store, (await store.claim(ref, LEASE_S, CRASHES)).record.epoch


async def _taken_over(backend, ref, instance):
    """The claim of another process, after the owner was gone for longer than its lease."""
    await backend.advance(LEASE_S + 1)
    claim = await backend.process(instance).claim(ref, LEASE_S, CRASHES)
    assert claim.verdict == "claimed"
    return claim


# --- A1: accepted means durable ---


def test_a1_what_was_begun_to_be_accepted_is_a_run_or_is_given_up_and_never_lost(site):
    async def scenario(backend, dies):
        store, refs = backend.process("one"), [new_ref() for _ in dies]
        for ref, died_before_writing in zip(refs, dies, strict=True):
            reservation = await store.reserve(ref, "ana", len(dies), "", "")
            if not died_before_writing:
                accepted = await store.accept(ref, "ana", spec(ref.thread_id), "stable", reservation, "", (QUEUED, CANCELLED))
                assert accepted.record == await store.run(ref)
        await backend.advance(60)
        # Whoever sweeps hears of every one of them.
        assert {ref.run_id for ref in await store.due(100, 60)} == {ref.run_id for ref in refs}
        for ref, died_before_writing in zip(refs, dies, strict=True):
            assert (await store.inspect(ref))[0] == ("none" if died_before_writing else "free")
            if died_before_writing:
                assert await store.forget(ref)
            else:
                assert [e.type for e in await log_of(store, ref)] == ["run_queued"]
                assert await store.locate("acme", "ana", ref.run_id) == ref
                assert (await store.claim(ref, LEASE_S, CRASHES)).verdict == "claimed"
        for _ in range(sum(dies)):
            assert await accept(store, new_ref(), slots=len(dies)) == "new"
        assert await accept(store, new_ref(), slots=len(dies)) == "quota"

    holds(site, scenario, dies=st.lists(st.booleans(), min_size=1, max_size=4))


# --- A2: one terminal event ---


def test_a2_of_all_who_want_to_end_a_run_one_does(site):
    async def scenario(backend, order):
        ref, store, epoch = await _owned(backend)
        other = backend.process("two")
        ends = [
            store.write(ref, epoch, 1, "", [FACT], mode="f", terminal=done("one")),
            store.write(ref, epoch, 2, "", [], mode="f", terminal=Terminal("failed", b"{}", "run_failed", b"{}")),
            store.write(ref, epoch, 3, "", [FACT]),
            other.cancel(ref, "", CANCELLED, ""),
            other.write(ref, epoch + 1, 1, "", [], mode="f", terminal=done("two")),
        ]
        answers = await asyncio.gather(*(ends[i] for i in order), return_exceptions=True)
        assert all(not isinstance(answer, BaseException) or isinstance(answer, Fenced) for answer in answers)
        events, record = await log_of(store, ref), await store.run(ref)
        assert [e.seq for e in events if e.type in TERMINAL_EVENTS] == [events[-1].seq] == [record.terminal_seq]
        assert record.ended

    holds(site, scenario, order=st.permutations(range(5)))


# --- A3: contiguous seq per thread ---


def test_a3_numbers_of_a_thread_are_contiguous_whoever_writes_at_the_same_time(site):
    async def scenario(backend, sizes):
        ref, store, epoch = await _owned(backend)
        writes = [store.write(ref, epoch, n, "", [FACT] * size) for n, size in enumerate(sizes, 1)]
        others = [accept(backend.process("two"), new_ref(ref.thread_id)) for _ in sizes]
        *written, _ = await asyncio.gather(*writes, asyncio.gather(*others))
        events = await log_of(store, ref)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        told = [seq for w in written for seq in range(w.first_seq, w.last_seq + 1)]
        assert sorted(told) == [e.seq for e in events if e.type == "warning"]
        assert await store.last_seqs([ref]) == [len(events)]

    holds(site, scenario, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5))


# --- A4: one writer ---


def test_a4_no_former_owner_changes_anything(site):
    async def scenario(backend, owners, mode, state):
        ref, store, epoch = await _owned(backend)
        epochs = [epoch, *[(await _taken_over(backend, ref, f"p{n}")).record.epoch for n in range(owners)]]
        assert epochs == sorted(set(epochs))
        before = await log_of(store, ref), await store.run(ref), await store.inspect(ref)
        for former in [0, *epochs[:-1], epochs[-1] + 1]:
            with pytest.raises(Fenced):
                terminal = done() if mode == "f" else None
                await store.write(ref, former, 9, "", [TEXT], mode=mode, state=state, messages=[b"m"], terminal=terminal)
            with pytest.raises(Fenced):
                await store.beat(ref, former, 1000)
        assert before == (await log_of(store, ref), await store.run(ref), await store.inspect(ref))

    holds(site, scenario, owners=st.integers(1, 3), mode=st.sampled_from("ecsrf"), state=st.sampled_from([b"", b"{}"]))


# --- A5: visible implies durable, and provisional text belongs to an attempt ---


def test_a5_a_takeover_takes_back_what_no_checkpoint_holds_and_nothing_else(site):
    async def scenario(backend, writes):
        ref, store, epoch = await _owned(backend)
        seen, void = await log_of(store, ref), 0
        for number, (mode, drafts) in enumerate(writes, 1):
            written = await store.write(ref, epoch, number, "", drafts, mode=mode, state=b"{}" if mode == "c" else b"")
            provisional = [written.first_seq + i for i, draft in enumerate(drafts) if draft.provisional]
            void = 0 if mode in "cs" else void or (provisional[0] if provisional else 0)
            events = await log_of(backend.process("watcher"), ref)
            # What was shown stays as it was, and what is written is there for everybody.
            assert events[: len(seen)] == seen
            assert len(events) == len(seen) + len(drafts)
            assert [(e.provisional, e.attempt) for e in events[len(seen) :]] == [(draft.provisional, 1) for draft in drafts]
            seen = events
        claim = await _taken_over(backend, ref, "two")
        added = (await log_of(store, ref))[len(seen) :]
        assert [(e.type, e.attempt, orjson.loads(e.data)) for e in added] == (
            [("attempt_superseded", 2, {"from_seq": void})] if void else []
        )
        assert claim.record.provisional_from == 0

    drafts = st.lists(st.sampled_from([TEXT, FACT]), min_size=1, max_size=2)
    holds(site, scenario, writes=st.lists(st.tuples(st.sampled_from(MODES), drafts), max_size=6))


# --- A6: live is replay ---


def test_a6_whoever_reads_in_whatever_pieces_at_whatever_time_sees_the_log(site):
    async def scenario(backend, sizes, pages, cursor):
        first, store, epoch = await _owned(backend)
        second = new_ref(first.thread_id)
        live, watched = [], []
        for number, (size, page) in enumerate(itertools.zip_longest(sizes, pages, fillvalue=1), 1):
            written = await store.write(first, epoch, number, "t", [FACT] * size)
            live += range(written.first_seq, written.last_seq + 1)
            _, _, _, events = await store.read(first, len(watched), page, False)
            watched += events
        assert await accept(store, second) == "new"
        await store.write(first, epoch, 99, "", [], mode="f", terminal=done())
        while len(watched) < (await store.last_seqs([first]))[0]:
            watched += (await store.read(first, len(watched), 2, False))[3]
        log = await log_of(store, first)
        assert watched == log
        assert [e.seq for e in log if e.type == "warning"] == live
        # The same from any cursor, and from the beginning of either run.
        for ref in (first, second):
            last, begins, terminal, events = await store.read(ref, cursor, 1000, True)
            assert events == [e for e in log if e.seq > max(cursor, begins - 1)]
            assert last == log[-1].seq
            assert [e.seq for e in log if e.run_id == ref.run_id and e.type in TERMINAL_EVENTS] == ([terminal] if terminal else [])

    sizes = st.lists(st.integers(1, 3), min_size=1, max_size=5)
    holds(site, scenario, sizes=sizes, pages=st.lists(st.integers(1, 4), max_size=5), cursor=st.integers(0, 20))


# --- A7: gaps are errors ---


def test_a7_a_page_goes_on_right_behind_its_cursor_or_is_empty_at_the_end(site):
    async def scenario(backend, size, cursor, most):
        ref, store, epoch = await _owned(backend)
        await store.write(ref, epoch, 1, "", [FACT] * size)
        last, _, _, events = await store.read(ref, cursor, most, False)
        assert [e.seq for e in events] == list(range(cursor + 1, min(cursor + most, last) + 1))

    holds(site, scenario, size=st.integers(1, 5), cursor=st.integers(0, 10), most=st.integers(1, 10))


def test_a7_a_cursor_that_is_older_than_what_is_kept_gets_an_error_that_says_where_to_begin(site):
    async def scenario(backend, runs, gone, cursor):
        thread_id = new_ref().thread_id
        refs = []
        for _ in range(runs):
            ref, store, epoch = await _owned(backend, thread_id=thread_id)
            await store.write(ref, epoch, 1, "", [FACT], mode="f", terminal=done())
            refs.append(ref)
        log = await log_of(store, refs[0])
        for ref in refs[:gone]:
            assert not await backend.expire(ref, 1000)
        await backend.advance(1001)
        for ref in refs[:gone]:
            assert await backend.expire(ref, 1000)
        left = [e for e in log if e.run_id not in {ref.run_id for ref in refs[:gone]}]
        if cursor + 1 < left[0].seq:
            with pytest.raises(Gone) as caught:
                await store.read(refs[-1], cursor, 1000, False)
            assert (caught.value.reason, caught.value.metadata["oldest_seq"]) == ("RESUME_GAP", str(left[0].seq))
        else:
            assert (await store.read(refs[-1], cursor, 1000, False))[3] == [e for e in left if e.seq > cursor]
        # No number is used again.
        following, _, _ = await _owned(backend, thread_id=thread_id)
        assert (await store.run(following)).first_seq == log[-1].seq + 1

    runs = st.shared(st.integers(2, 4), key="runs")
    holds(site, scenario, runs=runs, gone=runs.flatmap(lambda n: st.integers(1, n - 1)), cursor=st.integers(0, 14))


# --- A8 and A9: what a checkpoint holds ---


def test_a8_a9_every_owner_goes_on_from_the_last_checkpoint_with_what_was_spent_by_then(site):
    async def scenario(backend, steps):
        ref, store, epoch = await _owned(backend)
        number, state, messages, instance = 0, {}, [], 0
        for spent, then in steps:
            number += 1
            state = {"usage": {"cost_microusd": spent}, "calls": {f"key-{number}": "started"}}
            messages = [*messages, f"m{number}".encode()]
            checkpoint = {"mode": "c", "state": orjson.dumps(state), "messages": messages[-1:]}
            for _ in range(2):  # The answer was lost, so it is sent again.
                await store.write(ref, epoch, number, "", [FACT], **checkpoint)
            if then == "goes on":
                continue
            if then == "hands over":
                await store.write(ref, epoch, number + 1, "", [], mode="r")
            else:
                await store.write(ref, epoch, number + 1, "", [TEXT])
            instance += 1
            claim = await _taken_over(backend, ref, f"p{instance}")
            assert (claim.record.state, list(claim.messages)) == (state, messages)
            store, epoch, number = backend.process(f"p{instance}"), claim.record.epoch, 0
        await backend.advance(LEASE_S + 1)
        assert (await store.claim(ref, LEASE_S, 1)).verdict == "failed"
        assert (await store.run(ref)).result["usage"] == state["usage"]

    then = st.sampled_from(["goes on", "hands over", "is lost"])
    holds(site, scenario, steps=st.lists(st.tuples(st.integers(0, 10**12), then), min_size=1, max_size=5))


# --- A10: cancel is level-triggered ---

STAGES = ["unknown", "reserved", "queued", "behind another", "held", "running", "handed back", "lost"]


def test_a10_a_cancel_holds_whenever_it_comes_and_whoever_comes_later(site):
    async def scenario(backend, stage, asked, owners):
        store, ref = backend.process("one"), new_ref()
        if stage == "behind another":
            assert await accept(store, new_ref(ref.thread_id)) == "new"
        reservation = None
        if stage != "unknown":
            schedule = Schedule(start_ms=backend.clock.now_ms + 60_000 if stage == "held" else 0)
            reservation = await store.reserve(ref, "ana", 0, "", "", delayed=1, schedule=schedule)
            assert reservation.held == (stage == "held")
        if stage not in ("unknown", "reserved"):
            await _write_accept(store, ref, reservation)
        if stage in ("running", "handed back", "lost"):
            epoch = (await store.claim(ref, LEASE_S, CRASHES)).record.epoch
            if stage == "handed back":
                await store.write(ref, epoch, 1, "", [], mode="r")
            elif stage == "lost":
                await backend.advance(LEASE_S + 1)
        for _ in range(asked):
            await store.request_cancel("acme", "ana", ref.run_id)
            await store.cancel(ref, "", CANCELLED, "asked")
        if stage in ("unknown", "reserved"):
            reservation = reservation or await store.reserve(ref, "ana", 0, "", "")
            await _write_accept(store, ref, reservation)
        record = await store.run(ref)
        if stage in ("running", "handed back", "lost"):
            assert record.cancel_requested
            if stage == "running":
                assert (await store.beat(ref, epoch, LEASE_S)).cancel
            for n in range(owners):
                assert (await _taken_over(backend, ref, f"p{n}")).record.cancel_requested
        else:
            assert record.status == "cancelled"
            assert (await store.claim(ref, LEASE_S, CRASHES)).verdict == "ended"
            assert await store.enter(ref) == "ended"

    holds(site, scenario, stage=st.sampled_from(STAGES), asked=st.integers(1, 2), owners=st.integers(1, 3))


async def _write_accept(store, ref, reservation):
    accepted = await store.accept(ref, "ana", spec(ref.thread_id), "stable", reservation, "", (QUEUED, CANCELLED))
    assert accepted.verdict == "new"
