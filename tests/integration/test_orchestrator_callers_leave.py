"""Callers who leave while what they asked for is being written."""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import BulkheadError
from services.orchestrator.adapters.store import Store
from services.orchestrator.control.double_texting import DoubleTexting
from services.orchestrator.testing.harness import served, settings_for, write_config


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    # Nobody looks for runs that were left behind for as long as this takes.
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), lease_s=60.0, sweep_s=30.0)
    async with served(settings, identities) as client:
        yield client


async def test_a_run_whose_caller_leaves_while_it_is_accepted_is_worked_on(client, monkeypatch):
    written, left, gone, accept, create_run = asyncio.Event(), asyncio.Event(), asyncio.Event(), Store.accept, DoubleTexting.create_run

    async def slow(self, *args, **fields):
        answer = await accept(self, *args, **fields)
        written.set()
        await gone.wait()
        return answer

    async def heard(self, *args):
        try:
            return await create_run(self, *args)
        except asyncio.CancelledError:
            left.set()
            raise

    monkeypatch.setattr(Store, "accept", slow)
    monkeypatch.setattr(DoubleTexting, "create_run", heard)

    async def asks():
        with client.calling():
            await client.runs.CreateRun(
                pb.CreateRunRequest(agent="quick", run_id="left-behind", input=[pb.InputMessage(role="user", text="say ok")])
            )

    asking = asyncio.create_task(asks())
    await written.wait()
    asking.cancel()
    with pytest.raises((asyncio.CancelledError, BulkheadError)):
        await asking
    await left.wait()
    gone.set()
    ended = await client.wait("left-behind")
    assert (ended.output_text, ended.attempt) == ("ok", 1)
