"""The processes of the gateway's benchmark, each on a core of its choice, and the load that wrk makes."""

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from services.common import testing
from services.common.accounts import Accounts, LimitSet
from services.common.valkey import connect

LUA = Path(__file__).with_name("llm.lua")
# The gateway has the first core for itself; upstream, stores and load share the second, or have their own where there are more.
_CORES = sorted(os.sched_getaffinity(0))
GATEWAY_CORES = {_CORES[0]}
REST_CORES = set(_CORES[1:]) or GATEWAY_CORES


@dataclass(frozen=True)
class Target:
    """What load goes to. One that is slow by far is saturated by `most_clients`, and more would only wait."""

    name: str
    url: str
    key: str
    process: testing.Process
    most_clients: int = 1_000
    least_seconds: int = 1

    def cpu_s(self) -> float:
        """CPU time so far of the process and its children."""
        root = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in [root, *root.children(recursive=True)]]
        return sum(t.user + t.system for t in times)

    def rss_mib(self) -> float:
        """Resident memory of the process and its children."""
        root = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)]) / 2**20


@dataclass(frozen=True)
class Load:
    """What one run of wrk found. Latencies in ms, `cpu_us` is the target's CPU time a request."""

    rate: float
    failed: int
    p50: float
    p95: float
    p99: float
    cpu_us: float


def pin(process: testing.Process, cores: set[int]) -> None:
    """Keeps a process, and the threads and children that it starts from here on, on these cores."""
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def load(target: Target, *, clients: int, seconds: int, stream: bool = False, delay_ms: int = 0) -> Load:
    """Drives a target. Raises RuntimeError when an answer was no success: figures of failures say nothing."""
    environment = {
        **os.environ, "BENCH_KEY": target.key, "BENCH_STREAM": "1" if stream else "0", "BENCH_DELAY_MS": str(delay_ms),
        "BENCH_SEED": str(secrets.randbelow(65536)),
    }  # fmt: skip
    clients, seconds = min(clients, target.most_clients), max(seconds, target.least_seconds)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "20s", "-s", str(LUA), target.url + "/v1/chat/completions"]
    before = target.cpu_s()
    # The load stays off the gateway's core.
    command = ["taskset", "-c", ",".join(map(str, sorted(REST_CORES))), *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    spent = target.cpu_s() - before
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    found = json.loads(line.removeprefix("RESULT "))
    if found["failed"] or found["complete"] < found["requests"] or not found["requests"]:
        first = next((line for line in done.stdout.splitlines() if line.startswith("FAILED ")), "")
        raise RuntimeError(f"{target.name}: answers were no success: {found} {first}")
    return Load(
        rate=found["complete"] / found["duration_us"] * 1e6,
        failed=found["failed"],
        p50=found["p50_us"] / 1000,
        p95=found["p95_us"] / 1000,
        p99=found["p99_us"] / 1000,
        cpu_us=spent / found["requests"] * 1e6,
    )


class Stack:
    """Starts processes and ends them."""

    def __init__(self, folder: Path, stack: ExitStack, fsync: str) -> None:
        self.folder = folder
        self._stack = stack
        self._fsync = fsync

    def start(self, name: str, command: list[str], port: int, cores: set[int], env: dict[str, str] | None = None, key: str = "") -> Target:
        """One process that listens on `port`."""
        process = testing.Process(command, log=self.folder / f"{name}.log", env=env)
        self._stack.callback(process.stop)
        pin(process, cores)
        testing.wait_for_port(port, process, timeout_s=120.0)
        return Target(name, f"http://127.0.0.1:{port}", key, process)

    def upstream(self, gap_ms: float) -> Target:
        """The static upstream."""
        port = testing.free_port()
        return self.start(
            f"direct-{gap_ms:g}", testing.python("-m", "scripts.bench.llm_upstream", str(port), str(gap_ms)), port, REST_CORES
        )

    def relay(self, upstream: Target) -> Target:
        """The bare relay."""
        port = testing.free_port()
        return self.start("relay", testing.python("-m", "scripts.bench.llm_relay", str(port), upstream.url), port, GATEWAY_CORES)

    def gateway(self, upstream: Target, name: str = "gateway", *, workers: int = 1, cores: set[int] = GATEWAY_CORES) -> Target:
        """The gateway with accounts, budgets, limits and the ledger in stores of its own."""
        state_url, state = self._stack.enter_context(testing.valkey_server("state"))
        cache_url, cache = self._stack.enter_context(testing.valkey_server("cache"))
        for store in (state, cache):
            pin(store, REST_CORES)
        identities = testing.Identities(self.folder / f"{name}-keys")
        config = self.folder / f"{name}-config"
        config.mkdir()
        params = {"model": "openai/static-1", "api_base": upstream.url + "/v1", "api_key": "sk-static"}
        info = {"mode": "chat", "input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7}
        models = {"model_list": [{"model_name": "bench", "litellm_params": params, "model_info": info}]}
        (config / "models.yaml").write_text(yaml.safe_dump(models))
        port = testing.free_port()
        environment = {
            "BULKHEAD_ENV": "test", "BULKHEAD_CONFIG_DIR": str(config), "BULKHEAD_STATE_URL": state_url, "BULKHEAD_CACHE_URL": cache_url,
            "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file), "BULKHEAD_GRPC_PORT": str(testing.free_port()),
            "BULKHEAD_HTTP_PORT": str(port), "BULKHEAD_METRICS_PORT": str(testing.free_port()), "BULKHEAD_HTTP_WORKERS": str(workers),
            # The store shares a core with the load: what is measured is the gateway, not how long a crowded store may take.
            "BULKHEAD_STORE_TIMEOUT_MS": "2000",
        }  # fmt: skip
        key = asyncio.run(_key(state_url, self._fsync))
        return self.start(name, testing.python("-m", "services.llm_gateway"), port, cores, environment, key)


async def _key(state_url: str, fsync: str) -> str:
    """A key with a budget and limits that the load never reaches."""
    limits = LimitSet(max_budget_microusd=10**14, budget_period="1d", tokens_per_minute=10**12, requests_per_minute=10**9)
    client = connect(state_url)
    try:
        await client.config_set("appendfsync", fsync)
        return (await Accounts(client).create_key(tenant="bench", user="ana", tier="enterprise", scopes=["*"], limits=limits)).secret
    finally:
        await client.aclose()


@contextmanager
def stack(folder: Path, fsync: str = "always") -> Iterator[Stack]:
    """A stack whose processes end with it. `fsync` is the state store's appendfsync: always waits for the disk with every reserve."""
    with ExitStack() as exits:
        yield Stack(folder, exits, fsync)
