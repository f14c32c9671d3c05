"""Large results of tools: whole for every reader, small in the state store, and gone with what points to them."""

import uuid
from pathlib import Path

import orjson
import pytest

from services.common.envelope import Envelope, RootKeys
from services.common.errors import Internal, Overloaded
from services.orchestrator.adapters import result_blobs
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.blobs import BlobsUnavailable
from services.orchestrator.adapters.result_blobs import LargeResults
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import RESULTS, thread_keys
from services.orchestrator.adapters.store_threads import ValkeyThreads
from services.orchestrator.ports import Message
from services.orchestrator.records import Draft, Fenced
from services.orchestrator.results_tending import DAY_S, ResultTending
from services.orchestrator.segments_moving import ALL, SegmentMover
from services.orchestrator.testing.memory_store import MemoryStore
from services.orchestrator.testing.memory_store_state import MemoryState
from services.orchestrator.testing.runs import CRASHES, accept, done, log_of, new_ref
from services.orchestrator.turn.results import MOST_OUTPUT_CHARS, cut

OUTPUT = b'{"rows":["' + "数据 ".encode() * 20_000 + b'"],  "n": 2.50}'
NOTE = "[read with care]\n"


class Away(FolderBlobs):
    """Blobs that can be taken away; `meanwhile` happens while something is put."""

    away, asked, meanwhile = False, 0, None

    async def put(self, place, name, content):
        self.asked += 1
        if self.away:
            raise BlobsUnavailable("away")
        await super().put(place, name, content)
        if self.meanwhile is not None:
            await self.meanwhile()

    async def get(self, place, name):
        if self.away:
            raise BlobsUnavailable("away")
        return await super().get(place, name)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder):
    return Away(folder)


@pytest.fixture
def envelope(valkey, tmp_path):
    path = tmp_path / "roots.json"
    path.write_bytes(orjson.dumps({"keys": [{"id": "1", "key": "A" * 43 + "="}]}))
    return Envelope(valkey, RootKeys.from_file(path))


@pytest.fixture
def store(valkey, blobs):
    return Store(valkey, "one", segments=SegmentFiles(blobs), blobs=blobs)


@pytest.fixture
def sealed(valkey, blobs, envelope):
    return Store(valkey, "one", segments=SegmentFiles(blobs), envelope=envelope, blobs=blobs)


@pytest.fixture
def in_memory(blobs):
    found = MemoryStore(MemoryState(), "one")
    found.results = LargeResults(blobs, Sealing())
    return found


@pytest.fixture(params=["store", "sealed", "in_memory"])
def any_store(request):
    return request.getfixturevalue(request.param)


def fresh(store):
    """The same store as a process sees it that has nothing at hand."""
    store.results = LargeResults(store.results._blobs, store.results._sealing)
    return store


def files(folder: Path):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def completed(output=OUTPUT, call_id="c1", **more):
    data = {"call_id": call_id, "tool": "read", "output": orjson.Fragment(output), "duration_ms": 3, **more}
    return Draft("tool_call_completed", orjson.dumps(data))


def said(output=OUTPUT, call_id="c1", note=""):
    return Message("tool", note + cut(output.decode()), tool_call_id=call_id).encode()


async def begun(store, ref):
    assert await accept(store, ref) == "new"
    return (await store.claim(ref, 60, CRASHES)).record.epoch


async def one_run(store, ref, output=OUTPUT):
    """A run with one large result, ended."""
    epoch = await begun(store, ref)
    await store.write(ref, epoch, 1, "", [completed(output)], mode="c", state=b"{}", messages=[said(output)])
    await store.write(ref, epoch, 2, "", [], mode="f", terminal=done())
    await store.settle(ref)


async def outputs(store, ref):
    return [event.data for event in await log_of(store, ref) if event.type == "tool_call_completed"]


async def stored_log(valkey, ref):
    return b"".join(value for _, fields in await valkey.xrange(thread_keys(ref)[1]) for value in fields.values())


async def test_every_reader_gets_a_large_result_byte_for_byte_and_so_does_the_next_owner(any_store, folder):
    ref = new_ref()
    epoch = await begun(any_store, ref)
    draft, small = completed(note=NOTE), completed(b'{"n":1}', "c2")
    messages = [said(note=NOTE), said(b'{"n":1}', "c2"), Message("user", "x" * 100_000).encode()]
    await any_store.write(ref, epoch, 1, "", [draft, small], mode="c", state=b"{}", messages=messages)
    assert len(files(folder)) == 1
    for reader in (any_store, fresh(any_store)):
        assert await outputs(reader, ref) == [draft.data, small.data]
    await any_store.write(ref, epoch, 2, "", [], mode="r", state=b"{}")
    claim = await fresh(any_store).claim(ref, 60, CRASHES)
    assert claim.verdict == "claimed"
    assert sum(map(len, claim.messages)) < 110_000
    assert [Message.decode(raw) for raw in await any_store.whole(ref, claim.messages)] == [Message.decode(raw) for raw in messages]


@pytest.mark.parametrize("kind", ["store", "sealed"])
async def test_the_state_store_and_whoever_reads_the_folder_see_little_of_it(kind, request, valkey, folder):
    store, ref = request.getfixturevalue(kind), new_ref()
    epoch = await begun(store, ref)
    await store.write(ref, epoch, 1, "", [completed()], mode="c", state=b"{}", messages=[said()])
    assert len(await stored_log(valkey, ref)) < 20_000
    assert len(b"".join(await valkey.lrange(thread_keys(ref)[5], 0, -1))) < 1_000
    (file,) = files(folder)
    assert ("数据".encode() in file.read_bytes()) == (kind == "store")


async def test_the_version_before_leaves_a_run_alone_whose_messages_it_would_misread(store, valkey):
    plain, large = new_ref(), new_ref()
    for ref, messages in ((plain, [b"{}"]), (large, [said()])):
        epoch = await begun(store, ref)
        await store.write(ref, epoch, 1, "", [completed()], mode="c", state=b"{}", messages=messages)
        await store.write(ref, epoch, 2, "", [], mode="r", state=b"{}")
    verdicts = [
        (await store._library.call("run_claim_v1", thread_keys(ref), [ref.run_id, "before", 1000, 3, "c", "o", schema, "1"]))[0]
        for ref, schema in ((plain, 2), (large, 2), (large, 3))
    ]
    assert verdicts == [b"claimed", b"waiting", b"claimed"]


async def test_what_is_small_and_what_no_reader_could_parse_stays_in_the_log(any_store, folder):
    ref = new_ref()
    epoch = await begun(any_store, ref)
    drafts = [
        completed(b'"' + b"x" * 60_000 + b'"'), completed(b"[" + b"1," * 50_000),
        Draft("message_completed", orjson.dumps({"text": "x" * 100_000})),
    ]  # fmt: skip
    await any_store.write(ref, epoch, 1, "", drafts, mode="c", state=b"{}", messages=[said(b"[" + b"1," * 50_000)])
    assert not files(folder)
    assert [event.data for event in (await log_of(any_store, ref))[-3:]] == [draft.data for draft in drafts]


async def test_while_the_blobs_are_away_results_stay_in_the_log_and_nobody_waits_twice(any_store, blobs, folder, monkeypatch):
    ref = new_ref()
    epoch = await begun(any_store, ref)
    blobs.away = True
    for number in (1, 2):
        await any_store.write(ref, epoch, number, "", [completed()], mode="c", state=b"{}", messages=[said()])
    assert blobs.asked == 1
    assert [event.data for event in (await log_of(any_store, ref))[-2:]] == [completed().data] * 2
    blobs.away = False
    monkeypatch.setattr(any_store.results, "_away_until", 0.0)
    await any_store.write(ref, epoch, 3, "", [completed()], mode="c", state=b"{}", messages=[said()])
    assert len(files(folder)) == 1


async def test_a_reader_is_told_that_the_blobs_are_away_and_a_process_that_knows_of_none_says_so(any_store, blobs):
    ref = new_ref()
    await one_run(any_store, ref)
    fresh(any_store)
    blobs.away = True
    with pytest.raises(Overloaded) as away:
        await log_of(any_store, ref)
    assert (away.value.reason, away.value.retry_after_s) == ("RESULTS_UNAVAILABLE", 1.0)
    blobs.away = False
    assert await log_of(any_store, ref)
    if isinstance(any_store, Store):
        any_store.results = None
        with pytest.raises(Overloaded, match="not told where") as untold:
            await log_of(any_store, ref)
        assert untold.value.reason == "RESULTS_UNAVAILABLE"


@pytest.mark.parametrize("how", ["missing", "changed"])
async def test_a_lost_result_is_an_error_in_its_event_and_for_the_owner(any_store, folder, how):
    ref = new_ref()
    epoch = await begun(any_store, ref)
    await any_store.write(ref, epoch, 1, "", [completed(note=NOTE)], mode="c", state=b"{}", messages=[said(note=NOTE)])
    before = await log_of(any_store, ref)
    (file,) = files(folder)
    file.unlink() if how == "missing" else file.write_bytes(file.read_bytes()[:-1] + b"!")
    after = await log_of(fresh(any_store), ref)
    assert [event.seq for event in after] == [event.seq for event in before]
    assert [event.data for event in after[:-1]] == [event.data for event in before[:-1]]
    told = orjson.loads(after[-1].data)
    assert told["output"] is None
    assert told["error"]["code"] == "RESULT_DAMAGED"
    assert told["preview"].startswith('{"rows":["数据')
    assert (told["call_id"], told["note"], "stored" in told) == ("c1", NOTE, False)
    await any_store.write(ref, epoch, 2, "", [], mode="r", state=b"{}")
    claim = await any_store.claim(ref, 60, CRASHES)
    with pytest.raises(Internal) as lost:
        await any_store.whole(ref, claim.messages)
    assert lost.value.reason == "RESULT_DAMAGED"


async def due(valkey):
    """The noted runs, and in how many seconds they are looked at."""
    seconds, _ = await valkey.time()
    return {member.decode(): score / 1000 - seconds for member, score in await valkey.zrange(RESULTS, 0, -1, withscores=True)}


@pytest.mark.parametrize("kind", ["store", "sealed"])
async def test_what_a_process_put_aside_that_died_before_its_checkpoint_is_removed_and_nothing_else(kind, request, valkey, folder):
    store, ref = request.getfixturevalue(kind), new_ref()
    epoch = await begun(store, ref)
    await store._aside([result_blobs.Item(ref, "tool_call_completed", completed(b"[" + b"1," * 60_000 + b"1]").data)])
    (orphan,) = files(folder)
    (orphan.parent / f"{orphan.name}.1234.part").write_bytes(b"x")
    tending = ResultTending(store, store.results, 0.0)
    await tending.look(ref)
    assert orphan.exists(), "its run is at work, which may still be about to point to it"
    await store.write(ref, epoch, 1, "", [completed()], mode="c", state=b"{}", messages=[said()])
    other = new_ref(ref.thread_id)
    await accept(store, other)
    await store._aside([result_blobs.Item(other, "tool_call_completed", completed(b"[" + b"2," * 60_000 + b"2]").data)])
    await store.write(ref, epoch, 2, "", [], mode="f", terminal=done())
    await ResultTending(store, store.results, 60.0).look(ref)
    assert len(files(folder)) == 4, "it has only just ended"
    await valkey.zadd(RESULTS, {ref.encode(): 0})
    assert await tending.turn() == 1
    assert len(files(folder)) == 2
    assert not orphan.exists()
    assert await outputs(fresh(store), ref) == [completed().data]
    assert (await due(valkey))[ref.encode()] > DAY_S - 60


async def test_a_former_owner_leaves_nothing_also_where_it_stood_still_while_somebody_looked(store, valkey, folder, blobs):
    ref = new_ref()
    epoch = await begun(store, ref)
    await store.write(ref, epoch, 1, "", [], mode="f", terminal=done())
    tending = ResultTending(store, store.results, 0.0)

    async def looked():
        path = files(folder)[0]
        content = path.read_bytes()
        await tending.look(ref)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    blobs.meanwhile = looked
    with pytest.raises(Fenced):
        await store.write(ref, epoch - 1, 1, "", [completed()], mode="c", state=b"{}", messages=[said()])
    assert len(files(folder)) == 1
    assert list(await due(valkey)) == [ref.encode()]
    await tending.look(ref)
    assert (files(folder), await due(valkey)) == ([], {})


async def test_moved_to_a_segment_it_reads_the_same_and_goes_with_the_retention(store, valkey, folder):
    first = new_ref()
    second = first._replace(run_id=uuid.uuid4().hex)
    for ref in (first, second):
        await one_run(store, ref)
    whole, kept_s = await log_of(store, first), [None]
    tending = ResultTending(store, store.results, 0.0)
    mover = SegmentMover(store, store.segments, 0.0, lambda tier: kept_s[0], tending)
    await mover.look(first)
    await mover.look(second)
    assert await valkey.exists(thread_keys(first)[1]) == 0
    assert await log_of(fresh(store), first) == whole
    of_first, of_second = await results_of(store, folder, first), await results_of(store, folder, second)
    assert len(of_first) == len(of_second) == 1
    assert await store.expire(first, 0.0), "by a replica of the version before, which knows of no results"
    await valkey.zadd(RESULTS, {first.encode(): 0})
    await tending.turn()
    assert not any(path.exists() for path in of_first)
    assert [event.data for event in await log_after(store, second)] == [event.data for event in whole[len(whole) // 2 :]]
    kept_s[0] = 0.0
    await mover.look(second)
    assert (files(folder), await due(valkey)) == ([], {})


async def results_of(store, folder, ref):
    record = await store.run(ref)
    names = await store.stored_results(ref, record.first_seq, record.terminal_seq)
    return [path for path in files(folder) if path.name in names]


async def log_after(store, ref):
    return (await store.read(ref, (await store.run(ref)).first_seq - 1, 100, False))[3]


async def test_a_thread_that_is_deleted_takes_its_results_along_also_late_ones(store, valkey, folder):
    ref, other = new_ref(), new_ref()
    for each in (ref, other):
        await one_run(store, each)
    await store.segments.drop(ref.tenant, ref.thread_id, ALL)
    assert len(files(folder)) == 1
    assert await outputs(fresh(store), other) == [completed().data]
    # By the version before, and a put that came late: nothing leads there any more but the note.
    await store._aside([result_blobs.Item(ref, "tool_call_completed", completed().data)])
    await valkey.delete(*thread_keys(ref))
    await ResultTending(store, store.results, 0.0).look(ref)
    assert len(files(folder)) == 1
    assert list(await due(valkey)) == [other.encode()]


async def test_what_was_sealed_with_a_destroyed_key_is_read_by_nobody(sealed, envelope):
    ref = new_ref()
    await one_run(sealed, ref)
    await envelope.erase("acme", "ana")
    assert await outputs(fresh(sealed), ref) == [b'{"erased":true}']


async def test_what_is_at_hand_is_bounded(store, monkeypatch):
    monkeypatch.setattr(result_blobs, "MOST_KEPT_BYTES", 250_000)
    ref = new_ref()
    epoch = await begun(store, ref)
    for number in range(1, 6):
        output = b'"' + bytes(str(number), "ascii") * 100_000 + b'"'
        await store.write(ref, epoch, number, "", [completed(output)], mode="c", state=b"{}", messages=[said(output)])
    assert store.results._kept_bytes == sum(map(len, store.results._kept.values())) <= 250_000
    assert [len(event.data) > 100_000 for event in (await log_of(store, ref))[-5:]] == [True] * 5
    assert MOST_OUTPUT_CHARS == 65_536


async def copied(valkey, parent, store, **options):
    """A fork of a thread, as far as its log, by whoever has these `options`."""
    fork = parent._replace(thread_id=uuid.uuid4().hex)
    threads = ValkeyThreads(valkey, "forking", 0, store.sealing, **options)
    await threads.build(fork, "ana", {}, b"job", "print", await threads.note(fork, 10))
    reader = fresh(store).read if options else store._read
    events = (await reader(parent, 0, 100, False))[3]
    assert await threads.copy(fork, "ana", 0, events) == events[-1].seq
    return fork


@pytest.mark.parametrize("kind", ["store", "sealed"])
async def test_a_fork_outlives_its_parent(kind, request, valkey, folder):
    store, parent = request.getfixturevalue(kind), new_ref()
    await one_run(store, parent)
    fork = await copied(valkey, parent, store, results=store.results)
    assert len(files(folder)) == 2
    assert sorted(await due(valkey)) == sorted([parent.encode(), fork.encode()])
    await store.segments.drop(parent.tenant, parent.thread_id, ALL)
    assert await outputs(fresh(store), fork) == [completed().data]
    # It has no record of the run, which may have been cut off there.
    await ResultTending(store, store.results, 0.0).look(fork)
    assert await outputs(fresh(store), fork) == [completed().data]
    await valkey.delete(*thread_keys(fork))
    await ResultTending(store, store.results, 0.0).look(fork)
    assert not files(folder)


async def test_a_pointer_that_the_version_before_copied_is_followed_to_the_parent(store, valkey, folder):
    parent = new_ref()
    await one_run(store, parent)
    fork = await copied(valkey, parent, store)
    assert len(files(folder)) == 1
    assert await outputs(fresh(store), fork) == [completed().data]
