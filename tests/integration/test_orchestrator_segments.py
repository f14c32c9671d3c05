"""A log that has left the state store, as callers see it: not at all, until its retention ends."""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Gone, NotFound
from services.common.settings import StartRefused
from services.orchestrator import results_tending, segments_moving
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import RESULTS, thread_keys
from services.orchestrator.app import build
from services.orchestrator.records import RunRef
from services.orchestrator.segments_moving import SegmentMover
from services.orchestrator.testing.harness import served, settings_for, write_config


@pytest.fixture
def settings(identities, behind, state_url, tmp_path, monkeypatch):
    monkeypatch.setattr(segments_moving, "TURN_S", 0.05)
    config = write_config(tmp_path / "config")
    return settings_for(identities, behind, state_url, config, segments_dir=tmp_path / "segments", segments_after_s=0.5)


async def all_moved(valkey, run):
    log = thread_keys(RunRef("acme", run.thread_id, run.run_id))[1]

    async def gone():
        return not await valkey.exists(log)

    await testing.eventually_async(gone, "the log left the state store")


async def test_clients_do_not_see_where_events_are(identities, settings, valkey):
    async with served(settings, identities) as client:
        first = await client.wait((await client.start('tool calculator {"expression": "2+3"}', thread_id="t1")).run_id)
        before = await client.log(first.run_id)
        await all_moved(valkey, first)
        assert await client.get(first.run_id) == first
        assert await client.log(first.run_id) == before
        for seq in (1, first.terminal_seq - 1, first.terminal_seq):
            assert await client.log(first.run_id, after_seq=seq) == before[seq:]
        second = await client.wait((await client.start("say one two three", thread_id="t1")).run_id)
        whole = await client.log(thread_id="t1")
        assert whole[: len(before)] == before
        assert [event.seq for event in whole] == list(range(1, second.terminal_seq + 1))
        # A watcher that begins in a segment goes on live, without gap or repetition.
        live: list[pb.Event] = []
        third = await client.start("say four five", thread_id="t1")

        async def watch():
            with client.calling(timeout_s=testing.PATIENCE_S):
                async for item in client.runs.StreamEvents(pb.StreamEventsRequest(thread_id="t1", after_seq=2)):
                    live.extend(item.batch.events)
                    if live and live[-1].run_id == third.run_id and live[-1].type == "run_finished":
                        return

        async with asyncio.timeout(testing.PATIENCE_S):
            await watch()
        assert live == (await client.log(thread_id="t1"))[2:]
        await all_moved(valkey, third)
        assert (await client.log(thread_id="t1"))[2:] == live


async def test_a_cursor_older_than_the_retention_is_told_the_oldest_event(identities, settings, valkey, tmp_path):
    async with served(settings, identities) as client:
        first = await client.wait((await client.start("say one", thread_id="t2")).run_id)
        second = await client.wait((await client.start("say two", thread_id="t2")).run_id)
        whole = await client.log(thread_id="t2")
        await all_moved(valkey, second)
        # Another replica's mover, for which the first run's retention is over.
        store = Store(valkey, "another")
        store.segments = SegmentFiles(FolderBlobs(tmp_path / "segments"))
        assert await store.expire(RunRef("acme", "t2", first.run_id), 0.0)
        await SegmentMover(store, store.segments, 0.0, lambda tier: None).look(RunRef("acme", "t2", first.run_id))
        for after_seq in (0, 1, first.terminal_seq - 1):
            with pytest.raises(Gone) as gone:
                await client.log(thread_id="t2", after_seq=after_seq)
            assert (gone.value.reason, gone.value.metadata["oldest_seq"]) == ("RESUME_GAP", str(second.first_seq))
            assert gone.value.http_status == 410
        assert await client.log(thread_id="t2", after_seq=first.terminal_seq) == whole[first.terminal_seq :]
        assert await client.log(second.run_id) == whole[first.terminal_seq :]
        for call in (client.get, client.log):
            with pytest.raises(NotFound):
                await call(first.run_id)
        with client.calling():
            listed = (await client.runs.ListRuns(pb.ListRunsRequest(thread_id="t2"))).runs
        assert [run.run_id for run in listed] == [second.run_id]


async def test_a_folder_that_cannot_be_written_is_refused_at_the_start(settings, tmp_path):
    (tmp_path / "file").write_text("no folder")
    bad = settings.model_copy(update={"segments_dir": tmp_path / "file" / "segments"})
    with pytest.raises(StartRefused, match="BULKHEAD_SEGMENTS_DIR"):
        build(bad)


async def test_large_results_are_looked_after_however_long_the_logs_take(identities, settings, valkey, monkeypatch):
    for module in (segments_moving, results_tending):
        monkeypatch.setattr(module, "TURN_S", 1_000.0)
    gone = [RunRef("acme", f"t{number}", "r") for number in range(2 * results_tending.MOST_AT_ONCE + 1)]
    await valkey.zadd(RESULTS, {ref.encode(): 0 for ref in gone})
    async with served(settings, identities):

        async def none():
            return not await valkey.zcard(RESULTS)

        await testing.eventually_async(none, "all were looked at")
