"""How long a run stands still when its owner is lost: SIGKILL (takeover) and SIGTERM (hand-over), with the product's own lease."""

import asyncio
import json
import statistics
import tempfile
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import uvloop
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from scripts.bench.machine import Figure, percentile
from services.common import testing
from services.common.errors import BulkheadError, NotFound
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import root_keys, write_config
from services.orchestrator.testing.replicas import Replica

OWN = {"lease_s": 3.0, "heartbeat_s": 1.0, "sweep_s": 0.5, "crash_budget": 100, "log_level": "WARNING"}
# A run of many steps, so that a step ends soon after the signal and another one is left to do.
LONG = "\n".join(f"tool calculator {json.dumps({'expression': f'1+{n}'})}" for n in range(12))


async def _reached(replica: Replica) -> bool:
    try:
        await replica.client.get("run_of_nobody")
    except BulkheadError as error:
        return isinstance(error, NotFound)
    return True


async def _lost(pair: list[Replica], behind: Fakes, *, how: str) -> float:
    """Seconds from the loss of a run's owner to the next event that somebody else writes."""
    owner, other = pair
    for replica in pair:
        # A channel to a process that was away is dialled again only after a while.
        await testing.eventually_async(lambda replica=replica: _reached(replica), f"the channel to {replica.name} is back")
    if how == "kill":
        # In the middle of an answer.
        behind.models.gate.close()
        run = await owner.client.start("say one two three four five", agent="quick")
        await testing.eventually_async(lambda: behind.models.gate.waiting >= 1, "a model call is at work")
    else:
        # In the middle of a step, with others left to do.
        behind.tools.gate.close()
        run = await owner.client.start(LONG, agent="quick")
        await testing.eventually_async(lambda: behind.tools.gate.waiting >= 1, "a tool is at work")
    seen = asyncio.Event()
    attempt = 0

    async def watch() -> float:
        nonlocal attempt
        with other.client.calling(timeout_s=testing.PATIENCE_S):
            stream = other.client.runs.StreamEvents(pb.StreamEventsRequest(run_id=run.run_id))
            async with aclosing(stream):
                async for item in stream:
                    for event in item.batch.events:
                        seen.set()
                        attempt = max(attempt, event.attempt)
                        if attempt > 1:
                            return time.perf_counter()
        raise RuntimeError("the run ended before another owner had it")

    watching = asyncio.create_task(watch())
    await seen.wait()
    await asyncio.sleep(0.3)
    began = time.perf_counter()
    if how == "kill":
        owner.process.kill()
    else:
        owner.process.signal(15)
    behind.models.gate.open()
    behind.tools.gate.open()
    took = await watching - began
    await other.client.cancel(run.run_id)
    await other.client.wait(run.run_id)
    await asyncio.to_thread(owner.process.wait)
    owner.start()
    await owner.ready()
    return took


async def _measure(url: str, folder: Path, times: int) -> list[Figure]:
    identities = testing.Identities(folder)
    config = write_config(folder / "config")
    settings = {**OWN, "envelope_keys_file": root_keys(folder)}
    found: dict[str, list[float]] = {"kill": [], "term": []}
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(fakes(identities))
        pair = [
            await stack.enter_async_context(Replica(name, identities, behind, config, folder, url, **settings).there())
            for name in ("one", "two")
        ]  # fmt: skip
        for how, of in found.items():
            for turn in range(times):
                of.append(await _lost(pair if turn % 2 else pair[::-1], behind, how=how))
    return [
        Figure("takeover after SIGKILL p50", statistics.median(found["kill"]), "s"),
        Figure(f"takeover after SIGKILL p99 of {times}", percentile(found["kill"], 0.99), "s", 5.0),
        Figure("hand-over after SIGTERM p50", statistics.median(found["term"]), "s"),
        Figure(f"hand-over after SIGTERM p99 of {times}", percentile(found["term"], 0.99), "s", 1.0),
    ]


def run(times: int = 20) -> list[Figure]:
    """Loses owners `times` times each way."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder, testing.valkey_server(folder=Path(folder)) as (url, _):
        return uvloop.run(_measure(url, Path(folder), times))
