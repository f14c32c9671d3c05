"""Durable runs through the whole platform: first event, one step, throughput at 50 concurrent, memory at rest.

Starts `bulkhead up` of its own with the `test` preset (no tier limits), the simulator answering at once, and drives the
gateway over HTTP with streamed runs. Everything, the load included, shares this machine's cores.
"""

import asyncio
import os
import signal
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson
import uvloop

from scripts.bench.machine import Figure, cpu_seconds, percentile, rss_mib
from services.cli.up.ports import listeners_of
from services.common import testing

SERVICES = ["gateway", "orchestrator", "llm_gateway", "tool_executor", "memory"]
ALL = [*SERVICES, "simulator", "valkey_state", "valkey_cache", "milvus"]
SINGLE_RUNS = 60
# So many that the last ones, with nobody behind them, do not weigh.
LOAD_RUNS = 1_500
CONCURRENT = 50
DISCONNECTS = 10
LOAD = "the load itself"
NOT_OURS = ("simulator", LOAD)
TERMINAL = (b"event: run_finished", b"event: run_failed", b"event: run_cancelled")


class Refused(RuntimeError):
    """The run was not accepted; it may be asked for again after so many seconds."""

    def __init__(self, told: str, retry_after_s: float) -> None:
        super().__init__(told)
        self.retry_after_s = retry_after_s


class Client:
    """Starts streamed runs and times them."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session, self._url, self._headers = session, url, {"authorization": f"Bearer {key}", "accept": "text/event-stream"}

    async def run(self, agent: str, text: str, thread: str = "") -> tuple[float, float]:
        """Seconds to the first event and to the end, in a thread of its own unless one is named. Raises RuntimeError when the run does not
        finish, and Refused when it was not accepted for now."""
        body = orjson.dumps({"input": text, "agent": agent, "stream": True})
        headers = {**self._headers, "content-type": "application/json"}
        started = time.perf_counter()
        first = 0.0
        last = b""
        url = f"{self._url}/v1/threads/{thread or f'bench-{uuid.uuid4().hex}'}/runs"
        async with self._session.post(url, data=body, headers=headers) as answer:
            if answer.status != 200:
                told = f"HTTP {answer.status}: {(await answer.text())[:300]}"
                raise Refused(told, float(answer.headers.get("retry-after", 1))) if answer.status == 503 else RuntimeError(told)
            async for line in answer.content:
                if line.startswith(b"event: "):
                    first = first or time.perf_counter() - started
                    last = line.strip()
                    if last in TERMINAL:
                        break
        if last != TERMINAL[0]:
            raise RuntimeError(f"the run ended with {last.decode() or 'nothing'}")
        return first, time.perf_counter() - started


async def single(client: Client, agent: str, text: str) -> tuple[list[float], list[float]]:
    """Seconds to the first event and to the end of runs one after the other."""
    for _ in range(5):
        await client.run(agent, text)
    times = [await client.run(agent, text) for _ in range(SINGLE_RUNS)]
    return [t[0] for t in times], [t[1] for t in times]


async def load(client: Client, agent: str, text: str, runs: int) -> tuple[float, list[float]]:
    """Runs a second and the seconds of each, CONCURRENT at a time."""
    left = iter(range(runs))
    totals: list[float] = []

    async def worker() -> None:
        for _ in left:
            totals.append((await client.run(agent, text))[1])

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
    return runs / (time.perf_counter() - started), totals


async def _disconnects(session: aiohttp.ClientSession, url: str, simulator: str, key: str) -> list[float]:
    """Seconds from closing a client's stream to the moment at which the simulator notices; both read the same monotonic clock."""
    delays = []
    headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}
    for _ in range(DISCONNECTS):
        marker = f"leave-{uuid.uuid4().hex}"
        order = {"match": {"contains": marker}, "fault": {"tokens_per_s": 5}}
        async with session.post(f"{simulator}/sim/faults", json=order) as answer:
            answer.raise_for_status()
        body = {"input": f"Write 200 words about {marker}", "agent": "plain", "stream": True, "on_disconnect": "cancel"}
        async with session.get(f"{simulator}/sim/log") as answer:
            before = (await answer.json())["last_seq"]
        async with session.post(f"{url}/v1/threads/{marker}/runs", json=body, headers=headers) as answer:
            async for line in answer.content:
                if line.startswith(b"event: message_delta"):
                    break
            left = time.monotonic()
            answer.close()
        end = time.monotonic() + 20
        while True:
            async with session.get(f"{simulator}/sim/log", params={"after": before}) as answer:
                noticed = [entry["aborted_monotonic_s"] for entry in (await answer.json())["lines"] if entry["aborted"]]
            if noticed:
                delays.append(noticed[0] - left)
                break
            if time.monotonic() > end:
                raise RuntimeError("the simulator never noticed that its client had left")
            await asyncio.sleep(0.05)
    async with session.delete(f"{simulator}/sim/faults") as answer:
        answer.raise_for_status()
    return delays


async def _measure(url: str, simulator: str, key: str, pids: dict[str, int]) -> list[Figure]:
    figures = [Figure(f"idle RSS {name}", rss_mib(pids[name]), "MiB", 250.0 if name == "memory" else 120.0) for name in SERVICES]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        client = Client(session, url, key)
        delays = await _disconnects(session, url, simulator, key)
        figures.append(Figure("client leaves → simulator notices, worst", max(delays) * 1000, "ms", 500.0))
        for label, one_step, five in (("", "plain", "bench"), (" with Recall", "bench-recall", "bench-recall")):
            first, whole = await single(client, one_step, "Say hello")
            figures.append(Figure(f"first event p50{label}", statistics.median(first) * 1000, "ms", 15.0 if not label else None))
            figures.append(Figure(f"one-step durable run p50{label}", statistics.median(whole) * 1000, "ms", 25.0 if not label else None))
            figures.append(Figure(f"one-step durable run p99{label}", percentile(whole, 0.99) * 1000, "ms"))
            await load(client, five, "five-steps", CONCURRENT)  # warms every connection
            everybody = {**pids, LOAD: os.getpid()}
            before = {name: cpu_seconds(pid) for name, pid in everybody.items()}
            rate, totals = await load(client, five, "five-steps", LOAD_RUNS)
            figures.append(
                Figure(f"five-step runs/s at {CONCURRENT} concurrent{label}", rate, "runs/s", 80.0 if not label else None, lower=False)
            )
            figures.append(Figure(f"five-step run p50 at {CONCURRENT} concurrent{label}", statistics.median(totals) * 1000, "ms"))
            p99_ms = percentile(totals, 0.99) * 1000
            figures.append(Figure(f"five-step run p99 at {CONCURRENT} concurrent{label}", p99_ms, "ms", 1_000.0 if not label else None))
            used = {name: (cpu_seconds(pid) - before[name]) / LOAD_RUNS * 1000 for name, pid in everybody.items()}
            figures.append(Figure(f"CPU a five-step run{label}: all", sum(used.values()), "ms"))
            own = sum(ms for name, ms in used.items() if name not in NOT_OURS)
            figures.append(Figure(f"CPU a five-step run{label}: services and stores", own, "ms"))
            figures += [Figure(f"CPU a five-step run{label}: {name}", ms, "ms") for name, ms in used.items() if ms >= 0.05]
    return figures


class Platform:
    """A platform of its own: where it is, a key for it, and its processes by name."""

    def __init__(self, base: int, data_dir: Path, ready_s: float) -> None:
        pairs = dict(line.split("=", 1) for line in (data_dir / "dev.env").read_text().splitlines() if "=" in line)
        self.url, self.simulator, self.ready_s = f"http://127.0.0.1:{base}", f"http://127.0.0.1:{base + 6}", ready_s
        self.key = pairs["BULKHEAD_API_KEY"].strip("'\"")
        self.state_url, self.segments = f"redis://127.0.0.1:{base + listeners_of('valkey_state')[0].offset}/0", data_dir / "segments"
        self.envelope_keys = data_dir / "keys" / "envelope.json"
        self.pids = {name: int((data_dir / "run" / f"{name}-0.pid").read_text()) for name in ALL}


@contextmanager
def platform(**environment: str) -> Iterator[Platform]:
    """Starts `bulkhead up` with the simulator answering at once, and ends it."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder:
        base, data_dir, log = testing.free_port_base(), Path(folder) / "data", Path(folder) / "up.log"
        command = testing.python("-m", "services.cli", "up", "--port-base", str(base), "--data-dir", str(data_dir))
        env = {"BULKHEAD_ENV": "test", "BULKHEAD_LOG_LEVEL": "WARNING", "OPENAI_API_KEY": "", **environment}
        started = time.perf_counter()
        up = testing.Process(command, env=env, log=log)
        try:
            testing.eventually(
                lambda: f"http://127.0.0.1:{base}" in up.output(), f"the platform is ready\n{up.output()[-2000:]}", timeout_s=90
            )
            yield Platform(base, data_dir, time.perf_counter() - started)
        finally:
            up.signal(signal.SIGINT)
            try:
                up.wait(20)
            finally:
                up.stop()


def run() -> list[Figure]:
    """Starts a platform, measures, and ends it."""
    with platform() as made:
        figures = [Figure("`bulkhead up` to ready", made.ready_s, "s", 5.0)]
        return figures + uvloop.run(_measure(made.url, made.simulator, made.key, made.pids))
