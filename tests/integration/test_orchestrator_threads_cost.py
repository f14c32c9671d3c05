"""What changing a thread as a whole asks of the store: no more for a long thread than for a short one, nor for the fork of many forks."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_threads import ValkeyThreads
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from services.orchestrator.testing.whole_threads import TWO, fork, roll_back, said
from services.orchestrator.threads import conversation, forking

SHORT, LONG = 6, 24


@pytest.fixture
def settings(identities, behind, state_url, tmp_path, impatient):
    # Nobody else reads records meanwhile.
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"), sweep_s=1_000.0)


async def calls(valkey, names):
    stats = await valkey.info("commandstats")
    return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names}


@pytest.mark.parametrize("agent", ["helper", "quick"])
async def test_a_rollback_reads_what_lies_behind_its_point_and_not_the_thread(identities, behind, settings, valkey, monkeypatch, agent):
    monkeypatch.setattr(conversation, "MOST_TURNS", 2)
    monkeypatch.setattr(conversation, "MOST_LOOKED_AT", 4)
    monkeypatch.setattr(conversation, "RUNS_AT_ONCE", 2)
    # Of records, of pages of the log, and of lists of runs.
    names = ("hgetall", "xrange", "zrevrangebyscore", "zrange", "lrange")
    asked = []
    async with served(settings, identities) as client:
        for length in (SHORT, LONG):
            runs = [await said(client, f"say {number}", f"t{length}", agent) for number in range(length)]
            before = await calls(valkey, names)
            done = await roll_back(client, f"t{length}", pb.Checkpoint(run_id=runs[-3].run_id))
            after = await calls(valkey, names)
            asked.append({name: after[name] - before[name] for name in names})
            (event,) = [e for e in await client.log(thread_id=f"t{length}") if e.seq == done.seq]
            assert data_of(event)["run_ids"] == [run.run_id for run in runs[-2:]]
    assert asked[0] == asked[1]
    assert asked[0]["hgetall"] < SHORT * 2


async def test_what_stands_in_line_goes_also_where_nothing_was_heard_of_it_since(identities, behind, settings):
    async with served(settings, identities) as client:
        behind.tools.gate.close()
        at_work = await client.start(TWO, thread_id="t", agent="quick")
        await testing.eventually_async(lambda: waits(behind.tools.gate), "the call of its first step is held")
        waiting, gone = [await client.start("say five", thread_id="t", agent="quick") for _ in range(2)]
        behind.models.gate.close()
        behind.tools.gate.open()

        async def stepped():
            return [event.seq for event in await client.log(at_work.run_id) if event.type == "step_completed"]

        (step,) = await testing.eventually_async(stepped, "its first step is done")
        # It began before the checkpoint, and ends behind it without ever having been at work.
        await client.cancel(gone.run_id)
        done = await roll_back(client, "t", pb.Checkpoint(seq=step))
        behind.models.gate.open()
        for run in (at_work, waiting, gone):
            found = await client.get(run.run_id)
            assert (found.status, found.rolled_back_seq) == (pb.RUN_STATUS_CANCELLED, done.seq)
        # The runs of an event stand in the order in which they were made.
        (event,) = [e for e in await client.log(thread_id="t") if e.seq == done.seq]
        assert data_of(event)["run_ids"] == [at_work.run_id, waiting.run_id, gone.run_id]


async def waits(gate):
    return gate.waiting


async def test_a_fork_of_many_forks_keeps_what_the_last_of_them_began_with(identities, behind, settings, valkey, monkeypatch):
    monkeypatch.setattr(forking, "MOST_BASES", 3)
    threads = ValkeyThreads(valkey, "test")
    async with served(settings, identities) as client:
        name, steps = "f0", []
        for depth in range(1, 7):
            run = await said(client, TWO, name, "quick")
            steps.append(next(e.seq for e in await client.log(run.run_id) if e.type == "step_completed"))
            await fork(client, name, pb.Checkpoint(seq=steps[-1]), new_thread_id=f"f{depth}")
            name = f"f{depth}"
            assert sorted(await threads.bases(RunRef("acme", name, "-"))) == steps[-3:]
        # To within the run that the last fork but one was cut off in, which is none of this thread.
        await roll_back(client, name, pb.Checkpoint(seq=steps[-2]))
        given = await said(client, "echo context", name, "quick")
        assert f"user:{TWO}|" in given.output_text
        # One from before those that are kept is gone back to without it.
        await roll_back(client, name, pb.Checkpoint(seq=steps[0]))
        assert (await said(client, "echo context", name, "quick")).output_text == "user:echo context"
        assert await Store(valkey, "test").run(RunRef("acme", name, run.run_id)) is None


def test_what_forks_began_with_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(forking, "MOST_BASES_BYTES", 1_000)
    bases = {seq: {"messages": ["x" * 400]} for seq in range(1, 6)}
    assert list(forking.kept_bases(bases)) == ["5", "4"]
    # The newest is what the fork itself begins with.
    assert list(forking.kept_bases({**bases, 9: {"messages": ["x" * 5_000]}})) == ["9"]
