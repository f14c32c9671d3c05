"""Segments in a bucket, through a whole orchestrator: moved, replayed over the boundary, and gone with what deletes a log."""

import signal

import pytest
from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Gone, NotFound, Overloaded
from services.orchestrator import segments_moving
from services.orchestrator.adapters.segment_files import opened_segments
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.records import RunRef
from services.orchestrator.segments_moving import SegmentMover
from services.orchestrator.testing.harness import dialed, process, served, settings_for, write_config
from services.orchestrator.testing.s3_server import faulty, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def settings(identities, behind, state_url, tmp_path, monkeypatch, server):
    monkeypatch.setattr(segments_moving, "TURN_S", 0.05)
    monkeypatch.setattr(segments_moving, "AGAIN_S", 0.2)
    for path in server.objects():
        path.unlink()
    fields = server.settings("bulkhead/segments") | {"segments_after_s": 0.1}
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"), **fields)


async def moved(valkey, run):
    log = thread_keys(RunRef("acme", run.thread_id, run.run_id))[1]

    async def gone():
        return not await valkey.exists(log)

    await testing.eventually_async(gone, "the log left the state store")


async def test_a_log_in_a_bucket_is_read_as_before_and_over_the_boundary(identities, settings, valkey, server):
    async with served(settings, identities) as client:
        first = await client.wait((await client.start('tool calculator {"expression": "2+3"}', thread_id="t1")).run_id)
        before = await client.log(first.run_id)
        await moved(valkey, first)
        assert server.objects()
        assert await client.log(first.run_id) == before
        second = await client.wait((await client.start("say one two three", thread_id="t1")).run_id)
        whole = await client.log(thread_id="t1")
        assert whole[: len(before)] == before
        assert [event.seq for event in whole] == list(range(1, second.terminal_seq + 1))
        for seq in (1, first.terminal_seq - 1, first.terminal_seq, first.terminal_seq + 1):
            assert await client.log(thread_id="t1", after_seq=seq) == whole[seq:]


@pytest.mark.system
async def test_a_process_reads_what_another_has_moved_and_ends_when_it_is_told_to(identities, settings, valkey, tmp_path):
    async with served(settings, identities) as client:
        run = await client.wait((await client.start("say one two three", thread_id="t1")).run_id)
        whole = await client.log(thread_id="t1")
        await moved(valkey, run)
    # It knows no more than its variables.
    other = settings.model_copy(update={"grpc_port": testing.free_port()})
    with process(other, tmp_path) as running:
        await testing.wait_ready(f"127.0.0.1:{other.grpc_port}")
        async with dialed(other, identities) as client:
            assert await client.log(thread_id="t1") == whole
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


async def test_the_bucket_forgets_with_retention_with_the_thread_and_with_the_user(identities, settings, valkey, server):
    async with served(settings, identities) as client, testing.dialer(
        "gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}
    ) as dialer:  # fmt: skip
        runs = [await client.wait((await client.start("say one", thread_id=thread)).run_id) for thread in ("kept", "kept", "shed", "last")]
        for run in runs:
            await moved(valkey, run)
        kept, log = server.objects(), await client.log(thread_id="kept")
        # Another replica's mover, for which the first run's retention is over.
        store = Store(valkey, "another")
        store.segments = opened_segments(settings)
        ref = RunRef("acme", "kept", runs[0].run_id)
        assert await store.expire(ref, 0.0)
        await SegmentMover(store, store.segments, 0.0, lambda tier: None).look(ref)
        with pytest.raises(Gone):
            await client.log(thread_id="kept")
        assert await client.log(thread_id="kept", after_seq=runs[0].terminal_seq) == log[runs[0].terminal_seq :]
        assert len(server.objects()) == len(kept) - 1
        with client.calling():
            await client.threads.DeleteThread(pb.DeleteThreadRequest(thread_id="shed"))
        await testing.eventually_async(lambda: len(server.objects()) <= len(kept) - 2, "the thread's objects are gone")
        with pytest.raises(NotFound):
            await client.log(runs[2].run_id)
        admin = admin_pb2_grpc.AdminServiceStub(dialer.channel("orchestrator"))
        with testing.calling(identities):
            await admin.ForgetSubject(admin_pb2.ForgetSubjectRequest(user="ana"))
        await testing.eventually_async(lambda: not server.objects(), "nothing of the user is in the bucket")


async def test_while_the_bucket_is_away_runs_go_on_and_older_events_are_unavailable(identities, settings, valkey, server):
    async with faulty(server) as faults:
        settings = settings.model_copy(update={"segments_endpoint": faults.endpoint})
        async with served(settings, identities) as client:
            first = await client.wait((await client.start("say one", thread_id="t2")).run_id)
            log = await client.log(first.run_id)
            await moved(valkey, first)
            faults.next = ["away"] * 10_000
            second = await client.wait((await client.start("say two", thread_id="t2")).run_id)
            assert second.output_text == "two"
            with pytest.raises(Overloaded) as away:
                await client.log(first.run_id)
            assert (away.value.reason, away.value.http_status) == ("SEGMENTS_UNAVAILABLE", 503)
            assert len(await client.log(second.run_id)) == second.terminal_seq - second.first_seq + 1, "its log stays in the store"
            faults.next = []
            await moved(valkey, second)
            assert (await client.log(thread_id="t2"))[: len(log)] == log
