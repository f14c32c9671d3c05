"""Changes of threads that something stands in the way of: they end all the same, and take nothing along that is not theirs."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import NotFound
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.whole_threads import delete, fork, remembered, roll_back, said


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
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
