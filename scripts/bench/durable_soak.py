"""Very many runs with retention on: the memory of the orchestrator and of its store, which should end where they began.

Retention is counted in days; here a mover of the benchmark's own applies one of some seconds to the same store, and the LLM gateway keeps
its answers to runs and its ledger for as short.
"""

import asyncio
import time

import aiohttp
import uvloop

from scripts.bench.machine import Figure, rss_mib
from scripts.bench.runs import CONCURRENT, Client, Platform, Refused, platform
from services.common.envelope import opened_envelope
from services.common.valkey import connect
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.segments_moving import SegmentMover

THREADS = 200
RETENTION_S = 20.0
AFTER_S = 5.0
LEDGER_LINES = 2_000
SAMPLES = 20
# Of the first samples, while caches and pools fill.
WARM_SHARE = 0.2


async def _measure(made: Platform, runs: int) -> list[Figure]:
    client = connect(made.state_url)
    store = Store(client, "soak", envelope=opened_envelope(client, made.envelope_keys))
    store.segments = SegmentFiles(FolderBlobs(made.segments))
    mover = asyncio.create_task(SegmentMover(store, store.segments, AFTER_S, lambda tier: RETENTION_S).run())
    names = ("orchestrator", "valkey_state")

    async def used_mib() -> float:
        return int((await client.info("memory"))["used_memory"]) / 2**20

    fresh = await used_mib()
    seen: dict[str, list[float]] = {name: [] for name in names}
    used: list[float] = []
    left, done, refused = iter(range(runs)), 0, 0
    began = time.perf_counter()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)) as session:
            caller = Client(session, made.url, made.key)

            async def finished(thread: str) -> None:
                # On a machine that others use as well a store may stand still for longer than an answer is waited for.
                nonlocal refused
                while True:
                    try:
                        await caller.run("plain", "Say hello", thread)
                        return
                    except Refused as error:
                        refused += 1
                        await asyncio.sleep(error.retry_after_s)

            async def worker() -> None:
                nonlocal done
                for number in left:
                    await finished(f"soak-{number % THREADS}")
                    done += 1
                    if done % max(1, runs // SAMPLES) == 0:
                        for name in names:
                            seen[name].append(rss_mib(made.pids[name]))
                        used.append(await used_mib())

            await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
        took = time.perf_counter() - began
        # Under load the store holds the runs of the last seconds, so its memory goes with the rate; at rest, what outlives its run.
        await asyncio.sleep(AFTER_S + 2 * RETENTION_S)
        rest = await used_mib()
    finally:
        mover.cancel()
        await asyncio.gather(mover, return_exceptions=True)
        await client.aclose()
    figures = [
        Figure(f"{runs:,} one-step runs", runs / took, "runs/s", lower=False),
        Figure("refused for now, and asked for again", refused, "runs"),
    ]
    for name, values in [*seen.items(), ("store's own count", used)]:
        warm = values[int(len(values) * WARM_SHARE)]
        figures += [Figure(f"{name}: after {WARM_SHARE:.0%}", warm, "MiB"), Figure(f"{name}: at the end", values[-1], "MiB", warm * 1.1)]
    return [
        *figures,
        Figure("store's own count: before the first run", fresh, "MiB"),
        Figure("store's own count: at rest after the last", rest, "MiB"),
    ]


def run(runs: int) -> list[Figure]:
    """Starts a platform, has it do `runs` runs, and tells what its memory did."""
    with platform(BULKHEAD_RUN_ANSWERS_KEPT_S=str(RETENTION_S), BULKHEAD_LEDGER_LINES=str(LEDGER_LINES)) as made:
        return uvloop.run(_measure(made, runs))
