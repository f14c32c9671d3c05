"""Runs that are handed back: whoever takes them hears of it at once, and no sweeper has to look for them."""

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from functools import partial

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import dialed, process, settings_for, write_config

# Longer than anybody waits here.
NEVER_S = 600.0
STEPS = "\n".join(f"tool calculator {json.dumps({'expression': f'1+{n}'})}" for n in range(300))


@pytest.mark.system
async def test_a_run_is_handed_over_without_a_sweeper_by_replicas_that_wait_for_work(identities, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    async with fakes(identities) as behind, AsyncExitStack() as stack:
        each = [settings_for(identities, behind, state_url, config, sweep_s=NEVER_S) for _ in range(2)]
        for turn in range(3):
            with process(each[0], tmp_path) as leaving, process(each[1], tmp_path):
                for settings in each:
                    await testing.wait_ready(f"127.0.0.1:{settings.grpc_port}")
                one, other = [await stack.enter_async_context(dialed(settings, identities)) for settings in each]
                # Both have waited for work by now, and the one that leaves may well be the first that is handed a run.
                await asyncio.sleep(0.1 * turn)
                run = await one.start(STEPS, agent="quick")
                await testing.eventually_async(partial(_at_work, behind, run.run_id), "the run is at work")
                leaving.signal(signal.SIGTERM)
                await testing.eventually_async(partial(_taken, other, run.run_id), "the other replica goes on with the run")
                assert leaving.wait() == 0
                await other.cancel(run.run_id)
                assert (await other.wait(run.run_id)).status == pb.RUN_STATUS_CANCELLED


def _at_work(behind, run_id):
    return sum(key.startswith(run_id) for key in behind.tools.calls) > 2


async def _taken(client, run_id):
    return (await client.get(run_id)).attempt == 2
