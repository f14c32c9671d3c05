"""The process that forks, rolls back and deletes threads is killed in the middle: another one goes on with all that was begun."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import BulkheadError
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import dialed, process, settings_for, types, write_config

pytestmark = pytest.mark.system
EACH = 5


async def told(client, text, thread_id):
    run = await client.start(text, thread_id=thread_id, agent="helper")
    return await client.wait(run.run_id)


async def calling(client, call, request):
    """What a client that is cut off hears is nothing."""
    try:
        with client.calling(timeout_s=5.0):
            return await call(request)
    except BulkheadError:
        return None


@pytest.mark.parametrize("seed", range(3))
async def test_a_killed_process_leaves_no_change_of_a_thread_half_done(identities, state_url, valkey, tmp_path, seed):
    chance = random.Random(seed)
    config = write_config(tmp_path / "config")
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(fakes(identities))
        each = [settings_for(identities, behind, state_url, config, instance=name) for name in ("first", "second")]
        first, _ = (stack.enter_context(process(settings, tmp_path)) for settings in each)
        for settings in each:
            await testing.wait_ready(f"127.0.0.1:{settings.grpc_port}")
        doomed, client = [await stack.enter_async_context(dialed(settings, identities)) for settings in each]
        names = [f"{what}-{n}" for what in ("delete", "fork", "back", "kept") for n in range(EACH)]
        firsts = {name: await told(client, "say one", name) for name in names}
        for name in names:
            await told(client, "say two", name)
        await testing.eventually_async(lambda: all(len(behind.sessions.turns["acme", n]) == 2 for n in names), "memory has all")
        logs = {name: [event.SerializeToString() for event in await client.log(thread_id=name)] for name in names}
        at = {name: pb.Checkpoint(run_id=run.run_id) for name, run in firsts.items()}
        calls = []
        for n in range(EACH):
            calls += [
                calling(doomed, doomed.threads.DeleteThread, pb.DeleteThreadRequest(thread_id=f"delete-{n}")),
                calling(
                    doomed, doomed.threads.ForkThread,
                    pb.ForkThreadRequest(thread_id=f"fork-{n}", at=at[f"fork-{n}"], new_thread_id=f"made-{n}"),
                ),
                calling(doomed, doomed.threads.RollbackThread, pb.RollbackThreadRequest(thread_id=f"back-{n}", to=at[f"back-{n}"])),
            ]  # fmt: skip
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(chance.uniform(0.005, 0.12))
        first.kill()
        answers = await asyncio.gather(*tasks)

        async def nothing_pending():
            return not await valkey.zcard("work:{w0}:threads")

        await testing.eventually_async(nothing_pending, "every change is done", timeout_s=60.0)
        keys = [key.decode() for key in await valkey.keys("*")]
        for n in range(EACH):
            left = [key for key in keys if f"/delete-{n}}}" in key]
            begun = await valkey.hget(f"t:{{acme/delete-{n}}}:meta", "user") == b"\0gone"
            assert (
                left == [f"t:{{acme/delete-{n}}}:meta"]
                if begun
                else [e.SerializeToString() for e in await client.log(thread_id=f"delete-{n}")] == logs[f"delete-{n}"]
            )
            made = [key for key in keys if f"/made-{n}}}" in key]
            if made:
                shared = firsts[f"fork-{n}"].terminal_seq
                log = await client.log(thread_id=f"made-{n}")
                assert [(e.seq, e.type, e.data_json) for e in log[:-1]] == [
                    (e.seq, e.type, e.data_json) for e in await client.log(thread_id=f"fork-{n}") if e.seq <= shared
                ]
                assert log[-1].type == "thread_forked"
                assert (await told(client, "echo context", f"made-{n}")).output_text == "user:say one|assistant:one|user:echo context"
            count = types(await client.log(thread_id=f"back-{n}")).count("thread_rolled_back")
            answer = (await told(client, "echo context", f"back-{n}")).output_text
            assert ("say two" in answer) == (count == 0)
            assert count <= 1
            for position, what in enumerate((begun, made, count)):
                assert what or answers[3 * n + position] is None
        for name in names[3 * EACH :]:
            assert [event.SerializeToString() for event in await client.log(thread_id=name)] == logs[name]
