"""`make bench-api`: what the product gateway adds, in one run on one machine, with every service beside it on the same cores.

CPU is of the gateway's process alone, and a second of it a second of one core. Events are counted where clients get them.
"""

import asyncio
import re
import statistics
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import aiohttp
import uvloop

from scripts.bench.machine import Figure, cpu_seconds, rss_mib
from scripts.bench.runs import Client, Platform, platform, single

TURNS = 300
# One thread is watched by so many, while so many runs of five steps follow each other in it.
FAN_OUT_WATCHERS, FAN_OUT_RUNS = 200, 20
IDLE_WATCHERS = 1_000
SETTLES_S = 2.0
EVENT = b"\nevent: "
# What a page loads, and what its modules do.
NAMED = re.compile(r"""(?:(?:src|href)=|\bfrom\s+|\bimport\s+)["']([^"'#]+\.(?:js|css|svg|png|woff2))["'#]""")


class Watcher:
    """Reads the events of a thread and counts them."""

    def __init__(self) -> None:
        self.events, self._rest = 0, b"\n"

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        """Until the stream ends."""
        async for piece in answer.content.iter_any():
            piece = self._rest + piece
            self.events += piece.count(EVENT)
            # An event's first line may come in two pieces; what was counted is not counted again.
            self._rest = piece[-(len(EVENT) - 1) :]


class Gateway:
    """The gateway of a platform, its clients, and what it has used."""

    def __init__(self, made: Platform, session: aiohttp.ClientSession) -> None:
        self._made, self._session, self._pid = made, session, made.pids["gateway"]
        self.client = Client(session, made.url, made.key)

    def cpu_s(self) -> float:
        """Seconds of CPU so far."""
        return cpu_seconds(self._pid)

    def rss_mib(self) -> float:
        """Resident memory."""
        return rss_mib(self._pid)

    @asynccontextmanager
    async def watched(self, threads: list[str]) -> AsyncIterator[list[Watcher]]:
        """A watcher for each of the threads, which may be named more than once."""
        headers = {"authorization": f"Bearer {self._made.key}", "accept": "text/event-stream"}
        answers: list[aiohttp.ClientResponse] = []
        watchers = [Watcher() for _ in threads]
        reading: list[asyncio.Task] = []
        try:
            for thread, watcher in zip(threads, watchers, strict=True):
                url = f"{self._made.url}/v1/threads/{thread}/events"
                answer = await self._session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=None))
                answers.append(answer)
                answer.raise_for_status()
                reading.append(asyncio.create_task(watcher.read(answer)))
            yield watchers
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            for answer in answers:
                answer.close()

    async def open_thread(self, thread: str) -> None:
        """Makes a thread."""
        headers = {"authorization": f"Bearer {self._made.key}"}
        async with self._session.post(f"{self._made.url}/v1/threads", json={"thread_id": thread}, headers=headers) as answer:
            answer.raise_for_status()

    async def page_bytes(self) -> int:
        """Of the console's first page and all that it and its modules load, not compressed."""
        sizes: dict[str, int] = {}
        waiting = [self._made.url + "/"]
        while waiting:
            url = waiting.pop()
            if url in sizes:
                continue
            async with self._session.get(url, headers={"accept-encoding": "identity"}) as answer:
                answer.raise_for_status()
                text = await answer.text()
            sizes[url] = len(text.encode())
            waiting += [named for name in NAMED.findall(text) if (named := urljoin(url, name)).startswith(self._made.url)]
        return sum(sizes.values())


async def _turns(gateway: Gateway) -> list[Figure]:
    first, whole = await single(gateway.client, "plain", "Say hello")
    before = gateway.cpu_s()
    for _ in range(TURNS):
        await gateway.client.run("plain", "Say hello")
    used_ms = (gateway.cpu_s() - before) / TURNS * 1000
    return [
        Figure("first event, end to end, p50", statistics.median(first) * 1000, "ms", 15.0),
        Figure("short turn, end to end, p50", statistics.median(whole) * 1000, "ms"),
        Figure("CPU of the gateway a short streamed turn", used_ms, "ms", 1.5),
    ]


async def _fan_out(gateway: Gateway) -> list[Figure]:
    thread = f"fan-{uuid.uuid4().hex}"
    await gateway.open_thread(thread)
    async with gateway.watched([thread] * FAN_OUT_WATCHERS) as watchers:
        before, began = gateway.cpu_s(), asyncio.get_running_loop().time()
        for _ in range(FAN_OUT_RUNS):
            await gateway.client.run("bench", "five-steps", thread)
        expected = 0
        while expected != sum(w.events for w in watchers) or len({w.events for w in watchers}) > 1:
            expected = sum(w.events for w in watchers)
            await asyncio.sleep(0.2)
        took_s = asyncio.get_running_loop().time() - began
        used_s = gateway.cpu_s() - before
    return [
        Figure(
            f"events to {FAN_OUT_WATCHERS} watchers of a thread, a second of the gateway's CPU",
            expected / used_s,
            "events",
            10_000.0,
            lower=False,
        ),
        Figure("the same, a second that passed (all processes share the cores)", expected / took_s, "events"),
    ]


async def _idle(gateway: Gateway) -> list[Figure]:
    threads = [f"idle-{uuid.uuid4().hex}" for _ in range(IDLE_WATCHERS)]
    for thread in threads:
        await gateway.open_thread(thread)
    await asyncio.sleep(SETTLES_S)
    before = gateway.rss_mib()
    async with gateway.watched(threads):
        await asyncio.sleep(SETTLES_S)
        added = gateway.rss_mib() - before
        used_s = gateway.cpu_s()
        await asyncio.sleep(10 * SETTLES_S)
        used_s = gateway.cpu_s() - used_s
    return [
        Figure(f"memory of the gateway for {IDLE_WATCHERS:,} idle watchers, above none", added, "MiB", 60.0),
        Figure(f"CPU of the gateway with {IDLE_WATCHERS:,} idle watchers, of one core", used_s / (10 * SETTLES_S) * 100, "%"),
    ]


async def _measure(made: Platform) -> list[Figure]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        gateway = Gateway(made, session)
        figures = await _turns(gateway)
        figures += await _fan_out(gateway)
        figures += await _idle(gateway)
        return [*figures, Figure("console: its first page with all that it loads", await gateway.page_bytes() / 1000, "kB", 300.0)]


def run() -> list[Figure]:
    """Starts a platform, measures, and ends it."""
    with platform() as made:
        return uvloop.run(_measure(made))
