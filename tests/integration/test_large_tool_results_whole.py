"""A real tool that returns 200 KiB, behind a real executor: watchers, the model, forks, rollbacks and other replicas get all of it;
deleting and erasing leave none of it."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from structlog.testing import capture_logs

from services.common import testing
from services.common.errors import Internal
from services.orchestrator import driving
from services.orchestrator.adapters.store_keys import RESULTS, thread_keys
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import data_of, served, settings_for, types
from services.orchestrator.testing.whole_threads import delete, fork, remembered, roll_back, said, shown
from services.orchestrator.turn.results import cut
from tests.integration.rows import ASK, reply, rows_outside

ROWS = orjson.dumps([{"row": number, "text": "swordfish4711 数据 " * 4} for number in range(2_000)])
ROWS = ROWS[: 200 * 1024].rpartition(b",{")[0] + b"]"


@pytest.fixture
async def settings(identities, behind, state_url, tmp_path, impatient):
    async with rows_outside(identities, behind, state_url, tmp_path, ROWS) as (_, config):
        yield settings_for(identities, behind, state_url, config, segments_dir=tmp_path / "blobs", segments_after_s=0.3, drain_grace_s=1.5)


@asynccontextmanager
async def two(settings, identities):
    """Two replicas."""
    other = settings.model_copy(update={"grpc_port": testing.free_port(), "instance": "other"})
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(served(each, identities)) for each in (settings, other)]


def files(settings):
    return [path for path in settings.segments_dir.rglob("*") if path.is_file()]


def put_aside(settings):
    return [path for path in files(settings) if path.parent.name.endswith("-results")]


def results_of(events):
    return [event.data_json for event in events if event.type == "tool_call_completed"]


def given(behind):
    """What the model was given of tools, call by call."""
    return [message.text for call in behind.models.calls for message in call.request.messages if message.role == "tool"]


async def test_live_is_replay_on_every_replica_and_from_a_segment_and_the_model_is_given_it(identities, behind, settings, valkey):
    assert len(ROWS) > 190 * 1024
    async with two(settings, identities) as (client, other):
        behind.models.gate.close()
        run = await client.start(ASK, agent="reader", thread_id="t1")
        live, afar = [], []
        watching = [asyncio.create_task(client.follow(run.run_id, live)), asyncio.create_task(other.follow(run.run_id, afar))]
        await testing.eventually_async(lambda: live and afar, "both watch")
        behind.models.gate.open()
        await asyncio.gather(*watching)
        assert types(live)[-1] == "run_finished"
        (shown_live,) = results_of(live)
        assert shown_live.count(ROWS) == 1
        assert live == afar == await client.log(run.run_id) == await other.log(run.run_id)
        assert given(behind) == [cut(ROWS.decode())]
        (file,) = put_aside(settings)
        assert ROWS in file.read_bytes()
        assert not [key for key in await valkey.keys("t:*") if ROWS[:5_000] in (await valkey.dump(key) or b"")]

        async def moved():
            return not await valkey.exists(thread_keys(RunRef("acme", "t1", run.run_id))[1])

        await testing.eventually_async(moved, "the log has moved")
        assert await client.log(run.run_id) == live


async def held_with_the_result(client, behind):
    """A run whose model has the result and says nothing."""
    models = behind.models

    def hold(request):
        if request.messages[-1].role == "tool":
            models.gate.close()
        return reply(request)

    models.reply, models.hold_after = hold, 0
    run = await client.start(ASK, agent="reader", thread_id="t1")
    await testing.eventually_async(lambda: models.gate.waiting, "the model has the result")
    models.reply = reply
    return run


async def test_the_next_owner_gives_the_model_the_same(identities, behind, settings):
    async with served(settings, identities) as first:
        run = await held_with_the_result(first, behind)
    async with served(settings.model_copy(update={"grpc_port": testing.free_port()}), identities) as second:
        behind.models.gate.open()
        done = await second.wait(run.run_id)
        assert done.status == pb.RUN_STATUS_SUCCEEDED
        assert given(behind) == [cut(ROWS.decode())] * 2
        assert len(results_of(await second.log(run.run_id))) == 1


async def test_the_next_owner_waits_for_results_that_cannot_be_had_and_says_so_once(identities, behind, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(driving, "RESULTS_AGAIN_S", 0.05)
    async with served(settings, identities) as first:
        run = await held_with_the_result(first, behind)
    (file,) = put_aside(settings)
    kept = file.rename(tmp_path / "kept")
    # It leads to itself, which is no file that is missing.
    file.symlink_to(file)
    behind.models.gate.open()
    with capture_logs() as told:

        def count(event):
            return sum(line["event"] == event for line in told)

        async with served(settings.model_copy(update={"grpc_port": testing.free_port()}), identities) as second:
            await testing.eventually_async(lambda: count("results_unavailable") >= 3, "they were asked for again")
            assert (count("results_waited_for"), count("results_came")) == (1, 0)
            kept.replace(file)
            assert (await second.wait(run.run_id)).status == pb.RUN_STATUS_SUCCEEDED
        assert (count("results_waited_for"), count("results_came")) == (1, 1)
    assert given(behind) == [cut(ROWS.decode())] * 2


async def test_forks_have_their_own_and_go_on_within_the_run_and_nothing_is_left_of_what_is_deleted(identities, behind, settings, valkey):
    async with served(settings, identities) as client:
        run = await said(client, ASK, "t1", agent="reader")
        await remembered(behind, run)
        log = await client.log(thread_id="t1")
        whole = (await fork(client, "t1")).thread
        within = await fork(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True)
        assert (await client.wait(within.run.run_id)).output_text == run.output_text
        assert given(behind) == [cut(ROWS.decode())] * 2
        assert len(put_aside(settings)) == 3
        assert await delete(client, "t1")
        assert len(put_aside(settings)) == 2
        assert shown(await client.log(thread_id=whole.thread_id))[: len(log)] == shown(log)
        cut_off = await client.log(thread_id=within.thread.thread_id)
        assert results_of(cut_off) == results_of(log)
        # Back behind the run: it is out of the conversation, and stays in the log.
        await roll_back(client, whole.thread_id, pb.Checkpoint(beginning=True))
        assert results_of(await client.log(thread_id=whole.thread_id)) == results_of(log)
        again = await fork(client, whole.thread_id, pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True)
        assert (await client.wait(again.run.run_id)).output_text == run.output_text
        assert set(given(behind)) == {cut(ROWS.decode())}
        for thread_id in (whole.thread_id, within.thread.thread_id, again.thread.thread_id):
            assert await delete(client, thread_id)
        assert not put_aside(settings)


async def test_erasure_leaves_nothing_and_others_keep_theirs(identities, behind, settings, valkey):
    bob = testing.principal_of(user="bob")
    async with served(settings, identities) as client, testing.dialer(
        "gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}
    ) as dialer:  # fmt: skip
        others = type(client)(dialer, identities, bob)
        runs = [await said(each, ASK, thread, agent="reader") for each, thread in ((client, "t-ana"), (others, "t-bob"))]
        await fork(client, "t-ana")
        before = await others.log(runs[1].run_id)
        assert len(put_aside(settings)) == 3
        with testing.calling(identities):
            await admin_pb2_grpc.AdminServiceStub(dialer.channel("orchestrator")).ForgetSubject(admin_pb2.ForgetSubjectRequest(user="ana"))
        await testing.eventually_async(lambda: len(put_aside(settings)) == 1, "the results of ana are gone")

        async def forgotten():
            return await valkey.zrange(RESULTS, 0, -1) == [RunRef("acme", "t-bob", runs[1].run_id).encode().encode()]

        await testing.eventually_async(forgotten, "nobody looks for them any more")
        assert await others.log(runs[1].run_id) == before


async def test_a_damaged_result_is_told_in_its_event_and_nothing_else_stops(identities, behind, settings):
    async with served(settings, identities) as client:
        held = await held_with_the_result(client, behind)
        before = await client.log(held.run_id)
    (file,) = put_aside(settings)
    file.write_bytes(b"x")
    behind.models.gate.open()
    async with served(settings.model_copy(update={"grpc_port": testing.free_port()}), identities) as client:
        with client.calling(timeout_s=testing.PATIENCE_S):
            ended = (await client.runs.WaitRun(pb.WaitRunRequest(run_id=held.run_id))).run
        assert (ended.status, ended.error.reason) == (pb.RUN_STATUS_FAILED, "RESULT_DAMAGED")
        after = await client.log(held.run_id)
        assert types(after)[: len(before)] == types(before)
        (told,) = [data_of(event) for event in after if event.type == "tool_call_completed"]
        assert (told["output"], told["error"]["code"]) == (None, "RESULT_DAMAGED")
        with pytest.raises(Internal) as refused:
            await fork(client, "t1", pb.Checkpoint(run_id=held.run_id, step=1), continue_run=True)
        assert refused.value.reason == "RESULT_DAMAGED"
        # The thread goes on.
        assert (await said(client, "say on it goes", "t1", agent="reader")).output_text == "on it goes"
        assert await delete(client, "t1")
        assert not files(settings)
