"""What a run costs as a platform fills: with the length of its thread, with threads that lie idle, with clients that watch.

Each curve should be flat. CPU is of all processes but the simulator, a run; the time is that of a one-step run alone. Whoever watches the
very thread is told of each run, which is work: its figures have no target, and are told for the gateway and for what is behind it.
"""

import asyncio
import statistics
import uuid
from collections.abc import Callable, Collection, Coroutine
from contextlib import AsyncExitStack

import aiohttp

from scripts.bench.machine import Figure, cpu_seconds
from scripts.bench.runs import Client, Platform

SAMPLE = 60
LENGTHS = (0, 100, 400, 1_000)
IDLE = (0, 2_000, 10_000, 30_000)
WATCHERS = (0, 100, 500, 1_000)
OWN_WATCHERS = 100
PARALLEL = 40


class Sampler:
    """Runs of one thread, or of one each, and what they cost."""

    def __init__(self, made: Platform, client: Client) -> None:
        self._made, self._client = made, client

    async def cost(self, agent: str, thread: str = "", names: Collection[str] = ()) -> tuple[float, float]:
        """(ms of CPU a run of these processes, p50 in ms) of runs one after the other."""
        for _ in range(5):
            await self._client.run(agent, "Say hello", thread)
        pids = [pid for name, pid in self._made.pids.items() if name in (names or self._made.pids.keys() - {"simulator"})]
        before = sum(map(cpu_seconds, pids))
        times = [(await self._client.run(agent, "Say hello", thread))[1] for _ in range(SAMPLE)]
        return (sum(map(cpu_seconds, pids)) - before) / SAMPLE * 1000, statistics.median(times) * 1000


def _figures(what: str, points: dict[int, tuple[float, float]]) -> list[Figure]:
    found = []
    for size, (cpu, took) in points.items():
        found += [Figure(f"{what} {size:,}: CPU a run", cpu, "ms"), Figure(f"{what} {size:,}: one-step run p50", took, "ms")]
    first, last = points[min(points)][0], points[max(points)][0]
    # A quarter is what the same point differs by between two runs on a shared machine.
    return [*found, Figure(f"{what}: CPU at {max(points):,} over CPU at {min(points):,}", last / first, "×", 1.25)]


async def _side_by_side(work: Callable[[int], Coroutine], numbers: range) -> None:
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(PARALLEL)))


async def thread_length(sampler: Sampler, client: Client) -> list[Figure]:
    """Runs with Recall at the end of an ever longer thread."""
    thread, turns, points = f"long-{uuid.uuid4().hex}", 0, {}
    for length in LENGTHS:
        while turns < length:
            await client.run("bench-recall", "Say hello", thread)
            turns += 1
        points[length] = await sampler.cost("bench-recall", thread)
        turns += SAMPLE + 5
    return _figures("turns in the thread", points)


async def idle_threads(sampler: Sampler, session: aiohttp.ClientSession, made: Platform) -> list[Figure]:
    """Runs among threads that nobody works on."""
    there, points = 0, {}
    headers = {"authorization": f"Bearer {made.key}"}

    async def open_one(number: int) -> None:
        async with session.post(f"{made.url}/v1/threads", json={"thread_id": f"idle-{number}"}, headers=headers) as answer:
            answer.raise_for_status()

    for size in IDLE:
        await _side_by_side(open_one, range(there, size))
        there = size
        points[size] = await sampler.cost("plain")
    return _figures("idle threads", points)


async def _watched(stack: AsyncExitStack, session: aiohttp.ClientSession, made: Platform, thread: str) -> aiohttp.ClientResponse:
    """The stream of a thread's events, open until the stack ends."""
    url, headers = f"{made.url}/v1/threads/{thread}/events", {"authorization": f"Bearer {made.key}", "accept": "text/event-stream"}
    answer = await stack.enter_async_context(session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=None)))
    answer.raise_for_status()
    return answer


async def watchers(sampler: Sampler, session: aiohttp.ClientSession, made: Platform) -> list[Figure]:
    """Runs while others hold streams open on threads where nothing happens."""
    there, points = 0, {}
    async with AsyncExitStack() as stack:
        for size in WATCHERS:
            for number in range(there, size):
                await _watched(stack, session, made, f"idle-{number}")
            there = size
            points[size] = await sampler.cost("plain")
    return _figures("idle watchers", points)


async def own_watchers(sampler: Sampler, session: aiohttp.ClientSession, made: Platform) -> list[Figure]:
    """Runs of a thread that many follow."""
    thread, found = f"watched-{uuid.uuid4().hex}", []
    headers = {"authorization": f"Bearer {made.key}"}
    async with session.post(f"{made.url}/v1/threads", json={"thread_id": thread}, headers=headers) as answer:
        answer.raise_for_status()

    async def follow(answer: aiohttp.ClientResponse) -> None:
        async for _ in answer.content.iter_any():
            pass

    for size in (0, OWN_WATCHERS):
        async with AsyncExitStack() as stack:
            streams = [await _watched(stack, session, made, thread) for _ in range(size)]
            following = [asyncio.create_task(follow(stream)) for stream in streams]
            for names in (("gateway",), ("orchestrator", "valkey_state")):
                cpu, _ = await sampler.cost("plain", thread, names)
                found.append(Figure(f"watchers of the thread {size}: CPU a run, {' and '.join(names)}", cpu, "ms"))
            if gone := sum(task.done() for task in following):
                raise RuntimeError(f"{gone} of {size} watchers did not stay to the end")
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
    return found


async def measure(made: Platform) -> list[Figure]:
    """All curves."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        client = Client(session, made.url, made.key)
        sampler = Sampler(made, client)
        await sampler.cost("plain")
        return [
            *await thread_length(sampler, client), *await idle_threads(sampler, session, made), *await watchers(sampler, session, made),
            *await own_watchers(sampler, session, made),
        ]  # fmt: skip
