"""Threads that were forked and gone back in many times, and of which retention has taken the beginning."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Gone
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.adapters.store_threads import ValkeyThreads
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from services.orchestrator.testing.whole_threads import TWO, fork, roll_back, said
from services.orchestrator.threads.conversation import Conversation

ASK = "echo context"


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as made:
        yield made


async def expired(valkey, thread_id, run):
    """The retention of the thread's oldest run is over."""
    ref = RunRef("acme", thread_id, run.run_id)
    await testing.eventually_async(lambda: Store(valkey, "another").expire(ref, 0), "the run is deleted")


async def step_of(client, thread_id, run, step):
    """The end of a step as a checkpoint."""
    log = await client.log(thread_id=thread_id, after_seq=run.first_seq - 1)
    return pb.Checkpoint(
        seq=next(e.seq for e in log if e.type == "step_completed" and e.run_id == run.run_id and data_of(e)["step"] == step)
    )


async def forked_within_a_run(client, thread_id="f"):
    """A thread of two turns and a run of two steps; and a fork of it from behind the second step."""
    turns = [await said(client, f"say {word}", "t", agent="quick") for word in ("one", "two")]
    run = await said(client, TWO, "t", agent="quick")
    await fork(client, "t", pb.Checkpoint(run_id=run.run_id, step=2), new_thread_id=thread_id)
    return turns, run


async def test_a_fork_whose_oldest_run_has_expired_can_be_gone_back_in_to_a_step_that_it_took_over(client, valkey):
    (first, _), run = await forked_within_a_run(client)
    early = await step_of(client, "f", run, 1)
    await expired(valkey, "f", first)
    await roll_back(client, "f", early)
    given = (await said(client, ASK, "f", agent="quick")).output_text
    assert given == f'user:{TWO}|assistant:|tool:{{"result": 3}}|user:{ASK}'


async def test_a_fork_whose_beginning_has_expired_whole_can_be_gone_back_in(client, valkey):
    turns, _ = await forked_within_a_run(client)
    third = await said(client, "say three", "f", agent="quick")
    for _ in range(2):
        await said(client, "say four", "f", agent="quick")
        await roll_back(client, "f", pb.Checkpoint(run_id=third.run_id))
        for turn in turns:
            await expired(valkey, "f", turn)
        turns = []
    assert (await said(client, ASK, "f", agent="quick")).output_text == f"user:{ASK}"


async def test_a_rollback_to_what_has_expired_by_now_is_refused_before_it_begins(client, valkey, monkeypatch):
    run = await said(client, TWO, "t", agent="quick")
    calls = 0

    async def gone(self, *_):
        nonlocal calls
        calls += 1
        raise Gone("expired meanwhile", reason="RESUME_GAP")

    with monkeypatch.context() as patched:
        patched.setattr(Conversation, "carry", gone)
        with pytest.raises(Gone):
            await roll_back(client, "t", pb.Checkpoint(run_id=run.run_id, step=1))
    assert calls == 1
    state = await ValkeyThreads(valkey, "test").state(RunRef("acme", "t", "-"))
    assert (state.doing, state.job) == ("", None)
    await said(client, ASK, "t", agent="quick")


async def commands(valkey, work):
    """What is done, and how much was read of the store for it."""

    async def counted():
        stats = await valkey.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hgetall", "zrevrangebyscore", "xrange"))

    before = await counted()
    return await work, await counted() - before


async def test_a_rollback_reads_each_run_once_however_often_the_thread_went_back_before(client, valkey):
    last = await said(client, "say begin", "t", agent="quick")
    runs, read = 1, []
    for number in range(12):
        await said(client, f"say {number}", "t", agent="quick")
        _, count = await commands(valkey, roll_back(client, "t", pb.Checkpoint(run_id=last.run_id)))
        runs += 1
        # Twice that of the turns which the conversation then has: of each also its log, and what cut it.
        read.append(count - runs - 4 * number)
        last = await said(client, f"say {number} again", "t", agent="quick")
        runs += 1
    assert max(read[-4:]) <= max(read[:4]) + 4, read


@pytest.mark.system
async def test_hundreds_of_rollbacks_in_a_row_are_made_like_the_first(client):
    run = await said(client, TWO, "t", agent="quick")
    seqs = [(await roll_back(client, "t", pb.Checkpoint(run_id=run.run_id, step=1))).seq]
    given = f'user:{TWO}|assistant:|tool:{{"result": 3}}|user:{ASK}'
    for _ in range(600):
        seqs.append((await roll_back(client, "t", pb.Checkpoint(seq=seqs[-1]))).seq)
    # Also from before the newest one.
    for at in (seqs[-1], seqs[500]):
        made = (await fork(client, "t", pb.Checkpoint(seq=at))).thread.thread_id
        assert (await said(client, ASK, made, agent="quick")).output_text == given
    await roll_back(client, "t", pb.Checkpoint(seq=seqs[550]))
    assert (await said(client, ASK, "t", agent="quick")).output_text == given
    await roll_back(client, "t", pb.Checkpoint(beginning=True))
    for _ in range(20):
        seqs.append((await roll_back(client, "t")).seq)
    assert (await said(client, ASK, "t", agent="quick")).output_text == f"user:{ASK}"


async def test_who_reads_a_thread_reads_nothing_of_what_its_forks_began_with(client, valkey):
    run = await said(client, f"{TWO}\n" + "x" * 300_000, "t", agent="quick")
    made = (await fork(client, "t", pb.Checkpoint(run_id=run.run_id, step=1), new_thread_id="f")).thread
    meta = thread_keys(RunRef("acme", "f", "-"))[0]
    assert await valkey.hstrlen(meta, "carry") > 300_000
    assert await valkey.hstrlen(meta, "bases") > 300_000
    store = Store(valkey, "another")

    async def sent():
        return (await valkey.info("stats"))["total_net_output_bytes"]

    before = await sent()
    for _ in range(4):
        found = await store.thread("acme", "ana", "f")
        assert [found] == await store.threads("acme", "ana", ["f", "nothing"])
        assert found == await store.open_thread("acme", "ana", "f", {})
    assert await sent() - before < 300_000
    assert (found.thread_id, found.last_seq, found.parent, found.forked_at) == ("f", made.last_seq, "t", made.forked_at_seq)
    assert await store.thread("acme", "mallory", "f") is None
