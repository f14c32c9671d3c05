"""Forks of forks and of what was rolled back: each has the conversation that its source had at the checkpoint, whatever came before."""

import random

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import BulkheadError
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from services.orchestrator.testing.whole_threads import TWO, fork, roll_back, said

ASK = "echo context"


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as made:
        yield made


async def given(client, thread_id, at=None):
    """What a run in a fork taken there is given."""
    made = (await fork(client, thread_id, at)).thread.thread_id
    return (await said(client, ASK, made)).output_text


async def test_a_fork_from_before_a_second_rollback_has_what_the_first_one_left(client):
    run = await said(client, TWO, "t")
    within = pb.Checkpoint(run_id=run.run_id, step=1)
    rolled = (await roll_back(client, "t", within)).seq
    left = await given(client, "t", pb.Checkpoint(seq=rolled))
    assert left == f'user:{TWO}|assistant:|tool:{{"result": 3}}|user:{ASK}'
    await roll_back(client, "t", pb.Checkpoint(beginning=True))
    assert await given(client, "t", pb.Checkpoint(seq=rolled)) == left
    assert await given(client, "t") == f"user:{ASK}"


async def test_a_fork_can_be_gone_back_in_to_before_it_was_forked(client):
    run = await said(client, TWO, "t")
    early, late = (pb.Checkpoint(run_id=run.run_id, step=step) for step in (1, 2))
    of_early, of_late = await given(client, "t", early), await given(client, "t", late)
    made = (await fork(client, "t", late)).thread
    begun = pb.Checkpoint(seq=made.last_seq)
    step = next(e for e in await client.log(thread_id="t") if e.type == "step_completed" and data_of(e)["step"] == 1)
    await roll_back(client, made.thread_id, pb.Checkpoint(seq=step.seq))
    assert (await said(client, ASK, made.thread_id)).output_text == of_early
    # Of a fork of it, from when nobody had gone back yet.
    again = (await fork(client, made.thread_id, begun)).thread
    await roll_back(client, again.thread_id, pb.Checkpoint(beginning=True))
    assert await given(client, again.thread_id, begun) == of_late


@pytest.mark.system
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_was_forked_and_rolled_back_a_fork_has_the_conversation_of_its_source(client, seed):
    chance = random.Random(seed)
    # By thread, what is given to a run that comes after each event that is a checkpoint.
    threads = {"t0": {}}
    expected = 0
    for number in range(14):
        name = chance.choice(list(threads))
        points = threads[name]
        what = chance.choice(["say", "say", "back", "fork"]) if points else "say"
        if what == "say":
            await said(client, chance.choice([f"say {number}", TWO]), name)
        else:
            seq = chance.choice(list(points))
            if what == "back":
                try:
                    await roll_back(client, name, pb.Checkpoint(seq=seq))
                except BulkheadError as error:
                    if error.reason != "CHECKPOINT_ROLLED_BACK":
                        raise
                    continue
            else:
                made = (await fork(client, name, pb.Checkpoint(seq=seq))).thread
                name = made.thread_id
                threads[name] = {known: text for known, text in points.items() if known <= seq} | {made.last_seq: points[seq]}
        log = await client.log(thread_id=name)
        points = threads[name]
        for event in log:
            if event.seq not in points and event.type in ("step_completed", "run_finished", "thread_rolled_back", "thread_forked"):
                try:
                    points[event.seq] = await given(client, name, pb.Checkpoint(seq=event.seq))
                except BulkheadError as error:
                    if error.reason != "SEQ_INSIDE_STEP":
                        raise
                    continue
        for seq in chance.sample(list(points), min(4, len(points))):
            assert await given(client, name, pb.Checkpoint(seq=seq)) == points[seq], f"{name} at {seq}"
            expected += 1
    assert expected > 20
