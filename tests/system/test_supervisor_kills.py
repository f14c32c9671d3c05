"""Agents that ask agents, while their orchestrators are killed at random: every run ends with its answer, every mail is sent once."""

import asyncio
import json
import random

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Overloaded
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import command, data_of, dialed, follow_through, settings_for, types, write_config
from services.orchestrator.testing.oracle import Seen

pytestmark = pytest.mark.system
AGENTS = """
agents:
  worker:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mail]}
  lead:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: supervisor, tools: [calculator, send_mail], agents: [{name: worker}]}
"""
RUNS, KILLS = 12, 8
ANSWER = '{"agent":"worker","answer":"Results: {\\"sent\\":true}"}'


async def test_no_child_is_lost_or_made_twice_while_orchestrators_are_killed(identities, state_url, tmp_path):
    rng = random.Random(7)
    config = write_config(tmp_path / "config", AGENTS)
    async with fakes(identities) as behind:
        each = [settings_for(identities, behind, state_url, config, crash_budget=50) for _ in range(2)]
        processes = [command(settings, tmp_path / f"{i}.log") for i, settings in enumerate(each)]
        try:
            for settings in each:
                await testing.wait_ready(f"127.0.0.1:{settings.grpc_port}")
            async with dialed(each[0], identities) as one, dialed(each[1], identities) as other:
                runs = [await one.start(_task(f"m{i}"), agent="lead") for i in range(RUNS)]
                followed = [asyncio.create_task(follow_through([one, other], Seen(run.run_id))) for run in runs]
                for _ in range(KILLS):
                    await asyncio.sleep(rng.uniform(0.05, 0.6))
                    victim = rng.randrange(2)
                    processes[victim].kill()
                    processes[victim] = command(each[victim], tmp_path / f"{victim}.log")
                    await testing.wait_ready(f"127.0.0.1:{each[victim].grpc_port}")
                async with asyncio.timeout(testing.PATIENCE_S):
                    seen = await asyncio.gather(*followed)
                await testing.eventually_async(lambda: _reached(other, runs[0].run_id), "the channel to the last one killed is back")
                for run, events in zip(runs, seen, strict=True):
                    ended = await other.wait(run.run_id)
                    assert (ended.status, ended.output_text) == (pb.RUN_STATUS_SUCCEEDED, f"Results: {ANSWER} ; {ANSWER}")
                    assert types(events.events).count("child_run_started") == 2
                    assert types(events.events).count("child_run_finished") == 2
                    log = await other.log(run.run_id)
                    assert [data_of(e)["run_id"] for e in log if e.type == "child_run_started"] == [
                        f"{run.run_id}.1.0", f"{run.run_id}.1.1",
                    ]  # fmt: skip
                assert sorted(behind.tools.sent) == sorted(f"m{i}/{n}" for i in range(RUNS) for n in range(2))
        finally:
            for process in processes:
                process.stop()


async def _reached(client, run_id):
    try:
        return await client.get(run_id)
    except Overloaded:
        return None


def _task(name):
    """Two delegations in one step; each sends a mail."""
    calls = [f"tool send_mail {json.dumps({'to': f'{name}/{n}'})}" for n in range(2)]
    return "\n".join(["tools", *(f"tool delegate_to_worker {json.dumps({'task': call})}" for call in calls)])
