"""Changes of threads that something stands in the way of: they end all the same, and take nothing along that is not theirs."""

import time

import pytest
import yaml
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import testing
from services.common.errors import DeadlineExceeded, NotFound, Overloaded, UpstreamFailed
from services.orchestrator.adapters.store_keys import THREADS
from services.orchestrator.adapters.store_threads import ValkeyThreads
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.whole_threads import TWO, create, delete, fork, remembered, roll_back, said, thread
from services.orchestrator.threads import changing, conversation, deleting, tending


@pytest.fixture
async def client(identities, behind, state_url, tmp_path, monkeypatch):
    monkeypatch.setattr(tending, "TURN_S", 0.05)
    monkeypatch.setattr(tending, "BUSY_S", 0.2)
    monkeypatch.setattr(conversation, "RUNS_AT_ONCE", 2)
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as client:
        yield client


async def test_a_session_that_memory_does_not_let_the_user_have_holds_no_thread_up(client, behind):
    first = await said(client, "say one", "t1")
    await remembered(behind, await said(client, "say two", "t1"))
    behind.sessions.append_failure = NotFound("no such session")
    done = await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id))
    assert (await client.log(thread_id="t1"))[-1].seq == done.seq
    made = (await fork(client, "t1")).thread
    assert made.parent_thread_id == "t1"
    assert await delete(client, "t1")
    assert await delete(client, made.thread_id)


async def test_a_turn_that_memory_would_not_take_holds_no_thread_up(client, behind):
    await said(client, "say " + "x" * 300_000, "t1")
    await remembered(behind, await said(client, "say two", "t1"))
    third = await said(client, "say three", "t1")
    await remembered(behind, third)
    behind.sessions.turns.clear()
    await roll_back(client, "t1", pb.Checkpoint(run_id=third.run_id))
    made = (await fork(client, "t1")).thread
    for thread_id in ("t1", made.thread_id):
        assert (await said(client, "echo context", thread_id)).output_text == (
            "user:say two|assistant:two|user:say three|assistant:three|user:echo context"
        )


async def test_each_change_replaces_the_session_under_a_number_of_its_own(client, behind):
    first = await said(client, "say one", "t1")
    numbers = []
    for _ in range(2):
        await remembered(behind, await said(client, "say two", "t1"))
        await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id))
        numbers.append(behind.sessions.replaced["acme", "t1"])
    assert 0 < numbers[0] < numbers[1]
    made = (await fork(client, "t1")).thread
    assert behind.sessions.replaced["acme", made.thread_id] > 0


async def test_whoever_is_done_late_with_one_change_does_not_take_away_the_look_at_the_next_one(client, behind, valkey):
    first = await said(client, "say one", "t1")
    await remembered(behind, await said(client, "say two", "t1"))
    behind.sessions.append_failure = Overloaded("away", reason="STORE_UNAVAILABLE")
    with pytest.raises(Overloaded):
        await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id), idempotency_key="k")
    ref = RunRef("acme", "t1", "-")
    for look_in_s in (None, 1_000.0):
        await changing.settled(ValkeyThreads(valkey, "test"), ref, look_in_s)
        due_ms = await valkey.zscore(THREADS, ref.encode())
        assert due_ms / 1000 < time.time() + 60
    # A change whose look was taken away notes it again when it goes on.
    await valkey.zrem(THREADS, ref.encode())
    with pytest.raises(Overloaded):
        await roll_back(client, "t1", pb.Checkpoint(run_id=first.run_id), idempotency_key="k")
    assert await valkey.zscore(THREADS, ref.encode())


async def test_what_a_cut_off_run_left_is_given_once_however_many_runs_came_since(client, behind):
    run = await said(client, TWO, "t1", agent="quick")
    made = (await fork(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1))).thread.thread_id
    answered = await said(client, "say one", made, agent="quick")
    for word in ("two", "three", "four"):
        await said(client, f"say {word}", made, agent="quick")
    # It is part of the first turn by then.
    again = (await fork(client, made, pb.Checkpoint(run_id=answered.run_id))).thread.thread_id
    assert (await said(client, "echo context", again, agent="quick")).output_text == "user:echo context"


@pytest.mark.system
async def test_a_thread_lives_as_long_as_a_run_of_it_waits_for_its_time(client, behind):
    await create(client, "brief", ttl_s=1)
    later = await client.start("say later", thread_id="brief", start_at=_in(3.0))
    await said(client, "say now", "brief", agent="quick")
    assert (await client.wait(later.run_id)).status == pb.RUN_STATUS_SUCCEEDED

    async def expired():
        try:
            await thread(client, "brief")
        except NotFound:
            return True
        return False

    await testing.eventually_async(expired, "the thread is deleted when its last run has ended")


def _in(seconds):
    stamp = Timestamp()
    stamp.FromMilliseconds(int((time.time() + seconds) * 1000))
    return stamp


async def test_a_deletion_that_memory_does_not_answer_is_gone_on_with(client, behind, monkeypatch):
    monkeypatch.setattr(deleting, "AGAIN_S", 0.2)
    await said(client, "say one", "t1")
    for failure in (UpstreamFailed("Traceback: boom", reason="UPSTREAM_FAILED"), DeadlineExceeded("late")):
        behind.sessions.append_failure = failure
        assert not await delete(client, "t1")
    behind.sessions.append_failure = None
    await testing.eventually_async(lambda: behind.sessions.deleted, "somebody goes on with it")


async def test_a_run_that_cannot_go_on_leaves_no_fork(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    settings = settings_for(identities, behind, state_url, config)
    async with served(settings, identities) as client:
        run = await said(client, TWO, "t1", agent="quick")
    agents = yaml.safe_load((config / "agents.yaml").read_text())
    # And who asks it.
    del agents["agents"]["quick"], agents["agents"]["lead"]
    agents.pop("default", None)
    (config / "agents.yaml").write_text(yaml.safe_dump(agents))
    async with served(settings, identities) as client:
        with pytest.raises(NotFound) as refused:
            await fork(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True, new_thread_id="f")
        assert refused.value.reason == "AGENT_NOT_FOUND"
        with pytest.raises(NotFound):
            await thread(client, "f")
