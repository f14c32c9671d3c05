"""Gates of several processes before one Valkey, and before one that is slow or gone."""

import asyncio
import itertools
import signal
import time
from contextlib import ExitStack

import orjson
import pytest

from services.common import testing
from services.common.valkey import connect
from services.llm_gateway.adapters.deployment_limits import ValkeyDeploymentLimits
from services.llm_gateway.registry import DeploymentLimits

# Processes, kills and stores that stand still: minutes, not seconds.
pytestmark = pytest.mark.system


def worker(url: str, what: str, seconds: float, folder, number: int = 0) -> testing.Process:
    command = testing.python("-m", "tests.integration.llm_gateway.gate_worker", url, what, str(seconds))
    return testing.Process(command, log=folder / f"{what}-{number}.log")


def lines(process: testing.Process) -> list[dict]:
    return [orjson.loads(line) for line in process.output().splitlines() if line.startswith("{")]


def fleet(url: str, what: str, seconds: float, folder, count: int) -> list[dict]:
    """What so many processes said."""
    with ExitStack() as stack:
        workers = [worker(url, what, seconds, folder, number) for number in range(count)]
        for process in workers:
            stack.callback(process.stop)
        for process in workers:
            assert process.wait() == 0, process.output()
        return [line for process in workers for line in lines(process)]


async def test_there_is_one_probe_in_the_whole_fleet(state_url, tmp_path):
    said = await asyncio.to_thread(fleet, state_url, "probes", 3.0, tmp_path, 3)
    probes = sorted((line["began"], line["ended"]) for line in said if line.get("probe"))
    assert len(probes) >= 4
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(probes))
    # Three failures open it; a process that has just begun, or has not yet heard, makes a few calls of its own.
    assert 3 <= len([line for line in said if line.get("probe") is False]) <= 3 * 4


async def test_the_minute_of_a_deployment_is_one_for_all_processes(state_url, tmp_path):
    said = await asyncio.to_thread(fleet, state_url, "minute", 2.0, tmp_path, 2)
    told = [line for line in said if "granted" in line]
    granted = sum(line["granted"] for line in told)
    passed_s = max(line["ended"] for line in told) - min(line["began"] for line in told)
    assert 60 <= granted <= 60 + passed_s + 1  # a bucket of 60, and one a second


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_calls_go_on_when_the_store_is_slow_or_gone(tmp_path, how):
    with testing.valkey_server("state") as (url, valkey):
        process = worker(url, "calls", 4.0, tmp_path)
        try:
            await testing.eventually_async(lambda: len(lines(process)) > 5, "calls")
            if how == "stopped":
                valkey.signal(signal.SIGSTOP)
            else:
                valkey.kill()
            away = time.monotonic()
            assert await asyncio.to_thread(process.wait) == 0, process.output()
        finally:
            process.stop()
            if valkey.running():
                valkey.signal(signal.SIGCONT)
    calls = [line for line in lines(process) if "outcome" in line and line["at"] > away]
    assert len(calls) > 20
    # The bound is 50 ms; what is above it is the machine's.
    took = sorted(line["took"] for line in calls)
    assert took[len(took) * 9 // 10] < 0.15
    assert took[len(took) // 2] < 0.04  # once it is known to be away, nobody waits for it
    assert {line["outcome"] for line in calls} <= {"passed", "breaker_open", "saturated"}
    assert len([line for line in calls if line["outcome"] == "passed"]) > 20


async def test_a_minute_is_all_or_nothing_over_requests_and_tokens(valkey):
    limits, declared = ValkeyDeploymentLimits(valkey, timeout_s=1.0), DeploymentLimits(requests_per_minute=10, tokens_per_minute=600)
    assert [await limits.take("d", declared, 250) for _ in range(2)] == [0.0, 0.0]
    wait_s = await limits.take("d", declared, 250)
    assert wait_s == pytest.approx(15, abs=0.5)  # 150 tokens are missing, 10 come a second
    assert float(await valkey.hget("llm:{d:d}:requests", "level")) == pytest.approx(8, abs=0.1)
    limits.give_back("d", declared, 0, 200)

    async def granted():
        return await limits.take("d", declared, 250) == 0.0

    await testing.eventually_async(granted, "what was given back is there")
    # A call that is larger than the whole minute goes when the bucket is full, and is paid off afterwards.
    huge = DeploymentLimits(tokens_per_minute=600)
    assert await limits.take("e", huge, 6000) == 0.0
    assert await limits.take("e", huge, 1) == pytest.approx(540, abs=2)
    await limits.stop()


async def test_usage_is_added_up_over_replicas(state_url, valkey):
    clients = [connect(state_url) for _ in range(2)]
    one, two = (ValkeyDeploymentLimits(client, timeout_s=1.0, every_s=0.05) for client in clients)
    for limits in (one, two):
        await limits.start()
    one.count("d", 100)
    assert one.used("d") == (100, 1)
    two.count("d", 50)
    await testing.eventually_async(lambda: one.used("d") == two.used("d") == (150, 2), "added up")
    for limits in (one, two):
        await limits.stop()
    for client in clients:
        await client.aclose()
