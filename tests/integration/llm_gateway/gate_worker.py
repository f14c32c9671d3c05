"""A process with a gate, for tests of what several of them do together: python gate_worker.py STATE_URL WHAT SECONDS.

Prints a line of JSON for each thing that happened. Times are of the machine's monotonic clock, the same for all processes.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson

from services.common.breaker import BreakerPolicy, Breakers, Sync
from services.common.valkey import connect
from services.llm_gateway.adapters.deployment_limits import ValkeyDeploymentLimits
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.gate import DeploymentGate
from services.llm_gateway.ports import Load
from services.llm_gateway.registry import Deployment, DeploymentLimits

POLICY = BreakerPolicy(failures_in_row=3, first_open_s=0.2, longest_open_s=0.2, probe_lease_s=1.0)
DEAD = Deployment("dead", "g", "p", "openai", "dead", "chat")
LIMITED = Deployment("limited", "g", "p", "openai", "m", "chat", limits=DeploymentLimits(requests_per_minute=60, tokens_per_minute=4_000))


def say(**what: object) -> None:
    """One line for the parent."""
    print(orjson.dumps(what).decode(), flush=True)


@asynccontextmanager
async def gate_of(url: str, timeout_s: float) -> AsyncIterator[tuple[DeploymentGate, Breakers]]:
    """A gate as a service has it."""
    client = connect(url, timeout_s=timeout_s)
    sync = Sync(store_timeout_s=timeout_s, every_s=0.1)
    breakers = Breakers(client, key="llm:{{d:{}}}:breaker".format, channel="llm:breakers", policy=POLICY, sync=sync)
    limits = ValkeyDeploymentLimits(client, timeout_s=timeout_s, every_s=0.1)
    await breakers.start()
    await limits.start()
    try:
        yield DeploymentGate(breakers, limits, random.Random()), breakers
    finally:
        await limits.stop()
        await breakers.stop()
        await client.aclose()


def load(tokens: int = 10) -> Load:
    """A call."""
    return Load("acme", "pro", tokens, 0, time.monotonic() + 60)


async def probes(gate: DeploymentGate, until: float) -> None:
    """Asks a dead deployment whenever the gate lets it; each attempt lasts a while."""
    broken = Failure(FailureClass.TRANSIENT)
    while time.monotonic() < until:
        if gate.pick([DEAD], "least-busy", load()) is not None:
            try:
                permit = await gate.enter(DEAD, load())
            except UpstreamFault:
                await asyncio.sleep(0.002)
                continue
            began = time.monotonic()
            await asyncio.sleep(0.1 if permit.probe else 0)
            say(probe=permit.probe, began=began, ended=time.monotonic())
            gate.leave(permit, broken)
        await asyncio.sleep(0.002)


async def minute(gate: DeploymentGate, until: float) -> None:
    """Takes all that the minute gives."""
    began, granted = time.monotonic(), 0

    async def caller() -> None:
        nonlocal granted
        while time.monotonic() < until:
            try:
                await gate.enter(LIMITED, load())
            except UpstreamFault:
                await asyncio.sleep(0.01)
            else:
                granted += 1

    await asyncio.gather(*(caller() for _ in range(10)))
    say(granted=granted, began=began, ended=time.monotonic())


async def calls(gate: DeploymentGate, until: float) -> None:
    """Calls a limited deployment, every other call with a failure, and measures what the gate adds."""
    number = 0
    while time.monotonic() < until:
        number += 1
        began = time.monotonic()
        outcome = "passed"
        try:
            permit = await gate.enter(LIMITED, load())
            gate.leave(permit, Failure(FailureClass.TRANSIENT) if number % 2 else None, tokens=10)
        except UpstreamFault as fault:
            outcome = fault.failure.failure_class.value
        say(outcome=outcome, at=began, took=time.monotonic() - began)
        await asyncio.sleep(0.01)


async def main(url: str, what: str, seconds: float) -> None:
    """Does it, and says when it can begin and that it has ended."""
    async with gate_of(url, 0.05 if what == "calls" else 1.0) as (gate, _):
        say(ready=True)
        await {"probes": probes, "minute": minute, "calls": calls}[what](gate, time.monotonic() + seconds)
    say(done=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
