"""Moving the log of ended runs out of the state store changes nothing for a reader, wherever a mover dies."""

import asyncio
import os
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import Gone, Internal, Overloaded
from services.common.limits import TierPolicy
from services.common.valkey import connect
from services.orchestrator import segments_moving
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.erasure_store import ValkeyErasures
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import lookup_key, segments_key, thread_keys
from services.orchestrator.records import Draft, Fenced, RunRef
from services.orchestrator.segments import Segment, fitting, pack, unpack
from services.orchestrator.segments_moving import MOST_AT_ONCE, SegmentMover
from services.orchestrator.testing.runs import CRASHES, accept, done, log_of, new_ref

ENTRIES = st.lists(st.lists(st.binary(max_size=300), min_size=2, max_size=6), min_size=1, max_size=20)


class Killed(Exception):
    """A process that died at this point, as far as its steps are concerned."""


class Dying:
    """A port whose process dies before or after the step `name`."""

    def __init__(self, inner, name, after):
        self._inner, self._name, self._after = inner, name, after

    def __getattr__(self, name):
        step = getattr(self._inner, name)
        if name != self._name:
            return step

        async def die(*args):
            if self._after:
                await step(*args)
            raise Killed

        return die


def mover(store, *, retention_s=None, dies=("", False), segments=None):
    """A mover that finds every ended run old enough, and keeps runs for `retention_s`."""
    return SegmentMover(Dying(store, *dies), Dying(segments or store.segments, *dies), 0.0, lambda tier: retention_s)


def log_key(ref):
    return thread_keys(ref)[1]


async def one_run(store, ref, events=3, data=b"{}"):
    """A run from its beginning to its end."""
    assert await accept(store, ref) == "new"
    epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
    await store.write(ref, epoch, 1, "ab" * 16, [Draft("message_delta", data, True)] * events)
    await store.write(ref, epoch, 2, "", [], mode="c", state=b'{"usage":{"steps":1}}', messages=[b"m"])
    await store.write(ref, epoch, 3, "", [], mode="f", terminal=done())
    await store.settle(ref)


@pytest.fixture
def store(either, tmp_path):
    found = Store(either, "one")
    found.segments = SegmentFiles(FolderBlobs(tmp_path / "segments"))
    return found


@given(rows=ENTRIES)
def test_a_segment_holds_its_entries_byte_for_byte(rows):
    entries = [[b"%d-0" % (seq * 2 + 5), row] for seq, row in enumerate(rows)]
    segment, content = pack(entries)
    assert pack(entries) == (segment, content)
    assert (segment.first, segment.last) == (5, len(rows) * 2 + 3)
    assert Segment.decode(segment.encode()) == segment
    assert unpack(segment, content) == entries


def test_a_segment_that_was_changed_is_not_believed():
    segment, content = pack([[b"1-0", [b"d", b"{}"]]])
    for bad in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        with pytest.raises(Internal, match="damaged"):
            unpack(segment, bad)


def test_a_segment_is_bounded_in_bytes_and_never_empty():
    large = [[b"%d-0" % seq, [b"d", b"x" * 600_000]] for seq in range(1, 4)]
    assert len(fitting(large)) == 1
    assert len(fitting([[b"1-0", [b"d", b"x" * 3_000_000]]])) == 1
    assert len(fitting([[b"%d-0" % seq, [b"d", b"x"]] for seq in range(1, 10)])) == 9


async def test_a_moved_log_reads_as_before_and_the_thread_goes_on(store, either):
    first = new_ref()
    await one_run(store, first, data='{"text":"数据 \u2028"}'.encode())
    before, record = await log_of(store, first), await store.run(first)
    assert await mover(store).turn() == 1
    assert await either.exists(log_key(first)) == 0
    assert [await store.read(first, after, 2, False) for after in range(record.terminal_seq)] == [
        (len(before), 1, len(before), before[after : after + 2]) for after in range(record.terminal_seq)
    ]
    second = first._replace(run_id=uuid.uuid4().hex)
    await one_run(store, second)
    after = await log_of(store, first)
    assert after[: len(before)] == before
    assert [event.seq for event in after] == list(range(1, len(after) + 1))
    # One page from both sides of the boundary, and the second run from its own beginning.
    assert (await store.read(second, len(before) - 2, 4, False))[3] == after[len(before) - 2 :][:4]
    assert (await store.read(second, 0, 100, True))[3] == after[len(before) :]
    await mover(store).turn()
    assert await log_of(store, second) == after
    assert await either.zcard(segments_key(first)) == 2


async def test_what_only_served_the_owner_is_dropped_with_the_move_and_the_answer_stays(store, either):
    ref = new_ref()
    await one_run(store, ref)
    record = await store.run(ref)
    await SegmentMover(store, None, 0.0, lambda tier: None).turn()
    fields = await either.hkeys(thread_keys(ref)[2])
    assert not {b"reply", b"state", b"w"} & set(fields)
    assert await either.exists(thread_keys(ref)[5]) == 0
    kept = await store.run(ref)
    assert (kept.status, kept.result, kept.first_seq, kept.terminal_seq) == ("succeeded", record.result, 1, record.terminal_seq)
    # Whoever comes late is answered as before: the sweeper, a claimer, a caller, the former owner.
    assert (await store.inspect(ref))[0] == "ended"
    assert (await store.claim(ref, 60, CRASHES)).verdict == "ended"
    assert (await store.cancel(ref, "", b"{}", ""))[0] == "succeeded"
    with pytest.raises(Fenced):
        await store.write(ref, 1, 3, "", [], mode="f", terminal=done())
    # Nothing but that: without a folder the log stays where it is.
    assert await either.xlen(log_key(ref)) == record.terminal_seq


async def test_a_young_run_and_one_at_work_are_left_alone(store, either):
    young, working = new_ref(), new_ref()
    await one_run(store, young)
    await accept(store, working)
    await store.settle(working)
    patient = SegmentMover(store, store.segments, 3600.0, lambda tier: 0.0)
    assert await patient.turn() == 0
    for ref in (young, working):
        await patient.look(ref)
        await mover(store).look(working)
    assert await either.xlen(log_key(young)) == 6
    assert await either.xlen(log_key(working)) == 1


async def test_a_mover_that_comes_late_with_old_news_changes_nothing(store, either):
    first = new_ref()
    await one_run(store, first)
    _, _, stale = await store.movable(first, 0.0, 100)
    await mover(store).look(first)
    second = first._replace(run_id=uuid.uuid4().hex)
    await one_run(store, second)
    whole = await log_of(store, first)
    for entries in (stale, stale[:2], stale[1:]):
        segment, content = pack(entries)
        await store.segments.put("acme", first.thread_id, segment, content)
        assert await store.moved(first, segment) is False
    assert await either.zcard(segments_key(first)) == 1
    assert await log_of(store, first) == whole


async def test_more_segments_than_one_answer_names_fill_a_page_all_the_same(store, monkeypatch):
    monkeypatch.setattr(segments_moving, "MOST_ENTRIES", 2)
    ref = new_ref()
    await one_run(store, ref, events=70)
    before = await log_of(store, ref)
    await mover(store).turn()
    for after, most in ((0, 512), (1, 60), (30, 33), (39, 512)):
        assert (await store.read(ref, after, most, False))[3] == before[after : after + most]


async def test_deleted_events_are_an_error_that_names_the_oldest(store, either, tmp_path):
    first = new_ref()
    second = first._replace(run_id=uuid.uuid4().hex)
    await one_run(store, first)
    await one_run(store, second)
    before = await log_of(store, first)
    await mover(store).turn()
    boundary = (await store.run(second)).first_seq
    assert await store.expire(second, 0.0) is False, "the older one goes first"
    assert await store.expire(first, 3600.0) is False
    assert await store.expire(first, 0.0)
    for after in range(boundary - 1):
        with pytest.raises(Gone) as gone:
            await store.read(second, after, 10, False)
        assert (gone.value.reason, gone.value.metadata["oldest_seq"]) == ("RESUME_GAP", str(boundary))
    assert (await store.read(second, boundary - 1, 100, False))[3] == before[boundary - 1 :]
    assert (await store.read(second, 0, 100, True))[3] == before[boundary - 1 :]
    assert await store.run(first) is None
    assert await either.zcard(segments_key(first)) == 1
    # That process died before it took the files and the lists; the next look does.
    await mover(store).look(first)
    assert await store.locate("acme", "ana", first.run_id) is None
    assert [ref for ref, _ in await store.list_members("runs", "acme", "ana", 0, 10)] == [f"{second.thread_id}/{second.run_id}"]
    assert len([path for path in (tmp_path / "segments").rglob("*") if path.is_file()]) == 1
    await mover(store, retention_s=0.0).look(second)
    assert [path for path in (tmp_path / "segments").rglob("*") if path.is_file()] == []
    assert await store.last_seqs([first]) == [len(before)], "numbers are never used again"


async def test_a_run_id_that_was_taken_again_stays_listed(store):
    ref = new_ref()
    await one_run(store, ref)
    assert await store.expire(ref, 0.0)
    await store.unlist(ref, 3600.0)
    assert await store.locate("acme", "ana", ref.run_id) == ref
    await store.unlist(ref, 0.0)
    assert await store.locate("acme", "ana", ref.run_id) is None


async def test_what_is_not_delivered_yet_is_not_deleted(store, either):
    ref = new_ref()
    await one_run(store, ref)
    await either.hset(thread_keys(ref)[4], ref.run_id, "entry")
    await mover(store, retention_s=0.0).look(ref)
    assert await store.run(ref) is not None
    await store.outbox_done(ref, True)
    await mover(store, retention_s=0.0).look(ref)
    assert await store.run(ref) is None


async def test_a_tier_says_how_long_its_runs_are_kept(store):
    days, never = TierPolicy(retention_days=3), TierPolicy()
    assert (days.retention_s, never.retention_s) == (259_200.0, None)
    ref = new_ref()
    await one_run(store, ref)
    asked = []
    await SegmentMover(store, store.segments, 0.0, lambda tier: asked.append(tier) or days.retention_s).look(ref)
    assert asked == [""]
    assert await store.run(ref) is not None


@pytest.mark.parametrize(("retention_s", "days"), [(None, 30), (10 * 86_400.0, 1)])
async def test_a_run_that_is_kept_is_looked_at_rarely_and_the_more_so_where_it_is_kept_for_ever(store, retention_s, days):
    ref = new_ref()
    await one_run(store, ref)
    await mover(store, retention_s=retention_s).look(ref)
    assert await store.ended_due(1, -(days - 0.5) * 86_400, 1.0) == []
    assert await store.ended_due(1, -(days + 0.5) * 86_400, 1.0) == [ref]


async def test_a_lost_or_damaged_segment_is_an_error_and_no_gap(store, tmp_path):
    ref = new_ref()
    await one_run(store, ref)
    await mover(store).turn()
    (file,) = (path for path in (tmp_path / "segments").rglob("*") if path.is_file())
    content = file.read_bytes()
    file.write_bytes(content[:-2])
    with pytest.raises(Internal) as damaged:
        await store.read(ref, 0, 10, False)
    assert damaged.value.reason == "SEGMENT_DAMAGED"
    file.unlink()
    with pytest.raises(Internal) as lost:
        await store.read(ref, 0, 10, False)
    assert lost.value.reason == "SEGMENT_DAMAGED"
    store.segments = None
    with pytest.raises(Overloaded) as unset:
        await store.read(ref, 0, 10, False)
    assert unset.value.reason == "SEGMENTS_UNAVAILABLE"


async def test_a_folder_that_cannot_be_used_leaves_the_log_where_it_is(store, either, tmp_path):
    (tmp_path / "file").write_text("no folder")
    broken = SegmentFiles(folder := FolderBlobs(tmp_path / "file" / "segments"))
    with pytest.raises(OSError, match=os.strerror(20)):
        folder.prepare()
    refs = [new_ref() for _ in range(3)]
    for ref in refs:
        await one_run(store, ref)
    # One turn with all of them, none of which stops the others.
    assert await mover(store, segments=broken).turn() == 3 < MOST_AT_ONCE
    assert [await either.xlen(log_key(ref)) for ref in refs] == [6, 6, 6]
    await mover(store).look(refs[0])
    assert await either.exists(log_key(refs[0])) == 0


STEPS = [("put", False), ("put", True), ("moved", False), ("moved", True), ("expire", False), ("expire", True), ("unlist", False),
         ("unlist", True), ("drop", False), ("drop", True), ("ended_again", False)]  # fmt: skip
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 7)),
        st.tuples(st.just("start"), st.integers(0, 7)),
        st.tuples(st.just("end"), st.integers(0, 7)),
        st.tuples(st.just("move"), st.integers(1, 3)),
        st.tuples(st.just("both"), st.integers(1, 3)),
        st.tuples(st.just("expire"), st.just(0)),
        st.tuples(st.just("die"), st.sampled_from(STEPS)),
        st.tuples(st.just("die and expire"), st.sampled_from(STEPS)),
    ),
    min_size=3,
    max_size=14,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_any_order_of_runs_moves_deletions_and_deaths_keeps_the_log(_state_server, actions):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments_moving, "MOST_ENTRIES", 3)
        asyncio.run(_any_order(_state_server, Path(folder), actions))


async def _any_order(url, folder, actions):
    client = connect(url)
    store = Store(client, "one")
    store.segments = SegmentFiles(FolderBlobs(folder))
    thread_id, refs, model, open_run = uuid.uuid4().hex, [], [], None
    try:
        for action, detail in actions:
            ref = RunRef("acme", thread_id, uuid.uuid4().hex)
            if action in ("run", "start") and open_run is None:
                refs.append(ref)
                assert await accept(store, ref) == "new"
                if action == "run":
                    epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
                    await store.write(ref, epoch, 1, "", [Draft("message_delta", b"%d" % detail, True)] * detail)
                    await store.write(ref, epoch, 2, "", [], mode="f", terminal=done())
                else:
                    open_run = ref
            elif action in ("run", "start"):
                # Waits for its turn behind the one that is open, and is given up there: its events lie within that one's.
                refs.append(ref)
                await accept(store, ref)
                await store.cancel(ref, "", b"{}", "")
            elif action == "end" and open_run is not None:
                epoch = (await store.claim(open_run, 60, CRASHES)).record.epoch
                await store.write(open_run, epoch, 1, "", [Draft("warning", b"%d" % detail)] * detail, mode="f", terminal=done())
                open_run = None
            last = model[-1].seq if model else 0
            model += (await store.read(RunRef("acme", thread_id, "-"), last, 1000, False))[3]
            for one in refs[-4:]:
                await _act(store, action, detail, one)
            await _same(store, RunRef("acme", thread_id, "-"), model, open_run)
        for one in refs:
            await mover(store, retention_s=0.0).look(one)
        if open_run is None and refs:
            assert [path for path in folder.rglob("*") if path.is_file()] == []
            keys = [key async for key in client.scan_iter(match=f"t:{{acme/{thread_id}}}*")]
            assert keys == [thread_keys(refs[0])[0].encode()], "nothing is kept but the thread"
            assert await client.exists(*(lookup_key("acme", one.run_id) for one in refs)) == 0
    finally:
        await client.aclose()


async def _act(store, action, detail, ref):
    if action == "move":
        await mover(store).look(ref)
    elif action == "both":
        await asyncio.gather(*(mover(store).look(ref) for _ in range(detail)))
    elif action == "expire":
        await mover(store, retention_s=0.0).look(ref)
    elif action.startswith("die"):
        try:
            await mover(store, retention_s=0.0 if "expire" in action else None, dies=detail).look(ref)
        except Killed:
            return


async def _same(store, thread, model, open_run):
    """From every cursor: what was there, or an error that names the oldest event there is."""
    oldest, _, _ = await store.oldest(thread)
    if open_run is not None:
        assert oldest <= (await store.run(open_run)).first_seq, "events of a run at work were deleted"
    for after in range(len(model) + 1):
        if after + 1 < oldest:
            with pytest.raises(Gone) as gone:
                await store.read(thread, after, 5, False)
            assert gone.value.metadata["oldest_seq"] == str(oldest)
        else:
            assert (await store.read(thread, after, 5, False))[3] == model[after : after + 5]


async def test_a_file_that_a_mover_writes_behind_the_erasure_of_its_thread_does_not_stay(either, tmp_path):
    store, erasures, files = Store(either, "one"), ValkeyErasures(either, "one"), SegmentFiles(FolderBlobs(tmp_path / "segments"))
    await one_run(store, ref := new_ref())

    class Overtaken:
        drop = staticmethod(files.drop)

        async def put(self, *args):
            await erasures.delete_runs([ref])
            assert await erasures.delete_threads(ref.tenant, [ref.thread_id])
            await files.drop(ref.tenant, ref.thread_id, 1 << 62)
            await files.put(*args)

    await SegmentMover(store, Overtaken(), 0.0, lambda tier: None).look(ref)
    assert [path for path in (tmp_path / "segments").rglob("*") if path.is_file()] == []
