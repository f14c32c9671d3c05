"""Very many runs with retention on: the memory of the orchestrator and of its store, which should end where they began.

Retention is counted in days; here a mover of the benchmark's own applies one of some seconds to the same store.
"""

import asyncio
import time

import aiohttp
import uvloop

from scripts.bench.machine import Figure, rss_mib
from scripts.bench.runs import CONCURRENT, Client, Platform, platform
from services.common.valkey import connect
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.segments_moving import SegmentMover

THREADS = 200
RETENTION_S = 20.0
AFTER_S = 5.0
SAMPLES = 20
# Of the first samples, while caches and pools fill.
WARM_SHARE = 0.2


async def _measure(made: Platform, runs: int) -> list[Figure]:
    client = connect(made.state_url)
    store = Store(client, "soak")
    store.segments = SegmentFiles(made.segments)
    mover = asyncio.create_task(SegmentMover(store, store.segments, AFTER_S, lambda tier: RETENTION_S).run())
    names = ("orchestrator", "valkey_state")
    seen: dict[str, list[float]] = {name: [] for name in names}
    used: list[float] = []
    left, done = iter(range(runs)), 0
    began = time.perf_counter()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)) as session:
            caller = Client(session, made.url, made.key)

            async def worker() -> None:
                nonlocal done
                for number in left:
                    await caller.run("plain", "Say hello", f"soak-{number % THREADS}")
                    done += 1
                    if done % max(1, runs // SAMPLES) == 0:
                        for name in names:
                            seen[name].append(rss_mib(made.pids[name]))
                        used.append(int((await client.info("memory"))["used_memory"]) / 2**20)

            await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
        took = time.perf_counter() - began
    finally:
        mover.cancel()
        await asyncio.gather(mover, return_exceptions=True)
        await client.aclose()
    figures = [Figure(f"{runs:,} one-step runs", runs / took, "runs/s", lower=False)]
    for name, values in [*seen.items(), ("store's own count", used)]:
        warm = values[int(len(values) * WARM_SHARE)]
        figures += [Figure(f"{name}: after {WARM_SHARE:.0%}", warm, "MiB"), Figure(f"{name}: at the end", values[-1], "MiB", warm * 1.1)]
    return figures


def run(runs: int) -> list[Figure]:
    """Starts a platform, has it do `runs` runs, and tells what its memory did."""
    with platform() as made:
        return uvloop.run(_measure(made, runs))
