"""After a promotion that lost events the log skips ahead, says so, and gives no number twice."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace

import pytest

from services.common import testing
from services.common.errors import InvalidInput
from services.common.valkey import connect
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_threads import ValkeyThreads
from services.orchestrator.hub import Hub
from services.orchestrator.records import LOG_GAP, Draft, Event, Fenced
from services.orchestrator.segments_moving import SegmentMover
from services.orchestrator.testing.runs import accept, done, log_of, new_ref
from services.orchestrator.watching import Watching

LEASE_S = 0.2
TEXT = Draft("message_delta", b'{"text":"x"}', True)
SETTINGS = SimpleNamespace(watch_heartbeat_s=5.0, watch_max_age_s=60.0)


class Node:
    """One of two servers, and the store as a process sees it that has a replica to wait for."""

    def __init__(self, url):
        self.client = connect(url, timeout_s=testing.PATIENCE_S)
        self.port = int(url.rsplit(":", 1)[1].split("/")[0])
        self.store = Store(self.client, f"at-{self.port}", 1)

    async def follow(self, other):
        await other.client.config_set("repl-diskless-sync-delay", 0)
        await self.client.execute_command("REPLICAOF", "127.0.0.1", other.port)

        async def same():
            # After a full copy a replica tells of its disk again only once it has written all of it.
            async with other.client.pipeline(transaction=False) as pipeline:
                pipeline.set("probe", "")
                pipeline.execute_command("WAIT", 1, 100)
                pipeline.execute_command("WAITAOF", 1, 1, 500)
                return (await pipeline.execute())[2] == [1, 1]

        await testing.eventually_async(same, "the replica has everything")

    async def promoted(self):
        await self.client.execute_command("REPLICAOF", "NO", "ONE")
        return self.store


@pytest.fixture(scope="module")
def _pair():
    with testing.valkey_server() as (first, _), testing.valkey_server() as (second, _):
        yield first, second


@pytest.fixture
async def pair(_pair):
    first, second = map(Node, _pair)
    async with aclosing(first.client), aclosing(second.client):
        await first.promoted()
        await first.client.flushall()
        await second.follow(first)
        yield first, second


async def _owned(node, instance=None):
    ref = new_ref()
    assert await accept(node.store, ref) == "new"
    claim = await node.store.claim(ref, LEASE_S, 100)
    return ref, claim.record.epoch


async def _taken_over(store, ref):
    async def claimed():
        claim = await store.claim(ref, LEASE_S, 100)
        return claim.record if claim.verdict == "claimed" else None

    return await testing.eventually_async(claimed, "the run has another owner")


async def _lost(former, latter, ref, epoch, number, count=3):
    """`latter` is promoted, and what the owner writes at `former` after that was shown and is lost. Answers its numbers."""
    await latter.promoted()
    written = await former.store.write(ref, epoch, number, "", [TEXT] * count)
    await former.follow(latter)
    return list(range(written.first_seq, written.last_seq + 1))


async def test_no_number_that_was_shown_is_given_to_another_event(pair):
    first, second = pair
    ref, epoch = await _owned(first)
    await first.store.write(ref, epoch, 1, "", [TEXT], mode="c")
    await first.store.write(ref, epoch, 2, "", [TEXT])
    await second.follow(first)
    kept = await log_of(first.store, ref)
    shown = await _lost(first, second, ref, epoch, 3)
    record = await _taken_over(second.store, ref)
    assert record.epoch == epoch + 1
    await second.store.write(ref, record.epoch, 1, "", [TEXT] * 2, mode="c")
    *before, gap, superseded, one, two = await log_of(second.store, ref)
    assert before == kept
    assert (gap.type, gap.run_id, gap.data) == (LOG_GAP, "", b'{"from_seq":%d}' % shown[0])
    assert superseded.type == "attempt_superseded"
    assert gap.seq > shown[-1]
    assert [e.seq for e in (superseded, one, two)] == [gap.seq + 1, gap.seq + 2, gap.seq + 3]
    assert two.seq < 10**14


async def test_two_promotions_that_lose_the_same_part_of_a_log_give_no_number_twice(pair):
    """Back to the first server, which has not been restarted and never saw what the second one wrote to the thread."""
    first, second = pair
    ref, epoch = await _owned(first)
    shown = await _lost(first, second, ref, epoch, 1)
    record = await _taken_over(second.store, ref)
    shown += await _lost(second, first, ref, record.epoch, 1)
    again = await _taken_over(first.store, ref)
    written = await first.store.write(ref, again.epoch, 1, "", [TEXT], mode="c")
    assert written.first_seq > max(shown)
    numbers = [e.seq for e in await log_of(first.store, ref)]
    assert numbers == sorted(set(numbers))
    assert not set(numbers) & set(shown)


async def test_an_owner_whose_writes_were_lost_stops_and_the_run_is_free_at_once(pair):
    first, second = pair
    ref, epoch = await _owned(first)
    await first.store.write(ref, epoch, 1, "", [TEXT], mode="c")
    await _lost(first, second, ref, epoch, 2)
    with pytest.raises(Fenced, match="lost"):
        await second.store.write(ref, epoch, 3, "", [], mode="f", terminal=done())
    assert (await second.store.inspect(ref))[0] == "free"
    claim = await second.store.claim(ref, LEASE_S, 1)
    # Not an owner's crash: its budget is not touched.
    assert (claim.verdict, claim.record.attempt) == ("claimed", 2)


async def test_an_owner_whose_writes_are_all_there_goes_on(pair):
    first, second = pair
    ref, epoch = await _owned(first)
    await first.store.write(ref, epoch, 1, "", [TEXT])
    await second.follow(first)
    await second.promoted()
    await first.follow(second)
    written = await second.store.write(ref, epoch, 2, "", [TEXT] * 2)
    gap = (await log_of(second.store, ref))[-3]
    assert (gap.type, gap.seq) == (LOG_GAP, written.first_seq - 1)
    # The same write again, as after a lost answer.
    assert await second.store.write(ref, epoch, 2, "", [TEXT] * 2) == written


@asynccontextmanager
async def _watching(node, ref, after_seq, **fields):
    async def nothing(_):
        return None

    worker = SimpleNamespace(owns=lambda ref: True, find=lambda *_: None)
    watching = Watching(SETTINGS, node.store, Hub(node.store, nothing, nothing), worker)
    fields = {"of_run": True, "types": ("run_finished",), "replay_only": False, **fields}
    events = watching.events(ref, after_seq=after_seq, **fields)
    async with aclosing(events):
        yield events


async def test_a_watcher_that_was_shown_more_than_is_left_is_told_at_once_whatever_it_asked_for(pair):
    first, second = pair
    ref, epoch = await _owned(first)
    shown = await _lost(first, second, ref, epoch, 1)
    async with _watching(second, ref, shown[-1]) as events, asyncio.timeout(30):
        (gap,) = await anext(events)
    assert (gap.type, gap.data) == (LOG_GAP, b'{"from_seq":%d}' % shown[0])
    assert [e.type for e in await log_of(second.store, ref)].count(LOG_GAP) == 1
    async with _watching(second, ref, gap.seq + 1) as events:
        with pytest.raises(InvalidInput):
            await anext(events)


@pytest.mark.parametrize("replay_only", [True, False])
async def test_a_watcher_of_a_run_that_ended_before_a_promotion_is_told_its_end_and_no_more(pair, replay_only):
    first, second = pair
    ref, epoch = await _owned(first)
    await first.store.write(ref, epoch, 1, "", [TEXT], mode="f", terminal=done())
    await second.follow(first)
    whole = await log_of(first.store, ref)
    await second.promoted()
    await first.follow(second)
    later = new_ref(ref.thread_id)
    assert await accept(second.store, later) == "new"
    assert LOG_GAP in [event.type for event in await log_of(second.store, ref)]

    async def nothing(_):
        return None

    worker = SimpleNamespace(owns=lambda _: False, find=lambda *_: None)
    watching = Watching(SETTINGS, second.store, Hub(second.store, nothing, nothing), worker)
    shown = []
    async with (
        asyncio.timeout(testing.PATIENCE_S),
        aclosing(watching.events(ref, of_run=True, after_seq=0, types=(), replay_only=replay_only)) as events,
    ):
        async for batch in events:
            assert not isinstance(batch, int), "the watch goes on after the run's end"
            shown += batch
    assert shown == whole


async def test_a_log_that_skipped_ahead_is_read_in_pages_and_moved_whole(pair, tmp_path):
    first, second = pair
    ref, epoch = await _owned(first)
    await _lost(first, second, ref, epoch, 1)
    record = await _taken_over(second.store, ref)
    await second.store.write(ref, record.epoch, 1, "", [TEXT] * 5, mode="f", terminal=done())
    log = await log_of(second.store, ref)
    second.store.segments = SegmentFiles(FolderBlobs(tmp_path))
    await SegmentMover(second.store, second.store.segments, 0.0, lambda _: None).look(ref)
    assert not await second.client.exists(f"t:{{acme/{ref.thread_id}}}:log")
    assert await log_of(second.store, ref) == log
    paged, after = [], 0
    while events := (await second.store.read(ref, after, 2, False))[3]:
        paged += events
        after = events[-1].seq
    assert paged == log


async def test_a_fork_begins_in_the_generation_of_its_store_and_names_no_gap(valkey):
    ref, sealing = new_ref(), Sealing()
    store, threads = Store(valkey, "one", 1), ValkeyThreads(valkey, "one", 1, sealing)
    # Their Lua code is that of a store with replicas; there is none here to wait for.
    store._lasting.replicas = threads._lasting.replicas = 0
    assert (await threads.build(ref, "ana", {}, b"{}", "print", 10**14)).verdict == "building"
    copied = [Event(seq, 1, ref.thread_id, "of-the-parent", 1, "message_completed", b"{}", False, "") for seq in (1, 2, 5)]
    assert await threads.copy(ref, "ana", 0, copied) == 5
    await threads.built(ref, "ana", b"{}", b"", b"", "parent", 5, 0, "", "")
    assert await accept(store, ref) == "new"
    assert [event.type for event in await log_of(store, ref)] == ["message_completed"] * 3 + ["thread_forked", "run_queued"]
