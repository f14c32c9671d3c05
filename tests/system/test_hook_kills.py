"""Orchestrators that are killed while messages come: whoever sends again has one run for each, whoever was lost and when."""

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest

from services.common import testing
from services.common.errors import BulkheadError
from services.orchestrator.testing.harness import LOST, command, dialed, served, settings_for, write_config
from tests.integration.hook_sender import Keeper, Sender
from tests.integration.test_orchestrator_hooks import runs_of
from tests.system.hook_held import TAKEN

pytestmark = pytest.mark.system
MANY, LIVES, MESSAGES = 10_000, 4, 30


async def sent(sender, body, webhook_id):
    """The answer to a message that is sent until there is one."""
    while True:
        try:
            return await sender.send(body, webhook_id)
        except BulkheadError as error:
            if error.code.name not in LOST:
                raise
            await asyncio.sleep(0.05)


async def killed(process):
    """It had no time for anything."""
    process.signal(signal.SIGKILL)
    await testing.eventually_async(lambda: not process.running(), "it is dead")
    process.stop()


async def test_one_that_is_killed_between_accepting_and_answering_leaves_one_run(identities, state_url, tmp_path, behind, valkey):
    config = write_config(tmp_path / "config")
    other = settings_for(identities, behind, state_url, config)
    lost = settings_for(identities, behind, state_url, config)
    async with served(other, identities) as client, testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{other.grpc_port}"}) as dialer:
        keeper = Keeper(dialer, client)
        sender = await keeper.hook()
        process = command(lost, tmp_path / "lost.log", "tests.system.hook_held")
        try:
            async with dialed(lost, identities):
                async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{lost.grpc_port}"}) as way:
                    first = Sender(way, sender.hook_id, sender.secret)
                    sending = asyncio.create_task(sent(first, "x", "msg_1"))
                    await testing.eventually_async(lambda: TAKEN in process.output(), "it is taken")
                    assert len(await runs_of(keeper, sender.hook_id, valkey)) == 1
                    await killed(process)
                    assert not sending.done()
                    sending.cancel()
        finally:
            process.stop()
        again = await sender.send("x", "msg_1")
        assert not again.created
        assert (await client.wait(again.run.run_id)).output_text
        assert len(await runs_of(keeper, sender.hook_id, valkey)) == 1


async def test_whatever_kills_meet_each_message_has_one_run(identities, state_url, tmp_path, behind, valkey):
    """Each message is sent until it is answered, through a replica that is killed midway and then through the other."""
    config = write_config(tmp_path / "config")
    kept, lost = (settings_for(identities, behind, state_url, config, hook_messages_per_minute=MANY) for _ in range(2))
    ways = {name: {"orchestrator": f"127.0.0.1:{each.grpc_port}"} for name, each in (("kept", kept), ("lost", lost))}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(served(kept, identities))
        dialer, way = [await stack.enter_async_context(testing.dialer("gateway", ways[name])) for name in ("kept", "lost")]
        keeper = Keeper(dialer, client)
        sender = await keeper.hook()
        through = Sender(way, sender.hook_id, sender.secret)
        repeated = 0
        for life in range(LIVES):
            process = command(lost, tmp_path / "lost.log")
            stack.callback(process.stop)
            await sent(through, "it is there", f"msg_{life}")
            first = {f"msg_{life}_{n}": asyncio.create_task(sent(through, f"{n}", f"msg_{life}_{n}")) for n in range(MESSAGES)}
            # Some are answered by then, others are under way.
            await asyncio.wait(first.values(), return_when=asyncio.FIRST_COMPLETED)
            await killed(process)
            for name, task in first.items():
                again = await sent(sender, name.rpartition("_")[2], name)
                repeated += not again.created
                if task.done():
                    assert (task.result().run.run_id, again.created) == (again.run.run_id, False)
                task.cancel()
        records = await runs_of(keeper, sender.hook_id, valkey)
        assert len(records) == LIVES * (MESSAGES + 1), "one for each"
        assert repeated, "some were accepted by those that were killed"
        for record in records:
            await client.wait(record.run_id)
