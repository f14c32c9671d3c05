"""`make bench-llm`: the LLM gateway on one core against a static upstream, interleaved with the upstream itself and a bare relay.

    python -m scripts.bench.llm [--quick] [--soak] [--litellm]

Money, limits and ledger are on. wrk makes the load. The gateway has one core for itself; everything else shares the others.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts import install_debian
from scripts.bench import llm_litellm, machine
from scripts.bench.llm_stack import Load, Stack, Target, load, stack
from scripts.bench.machine import Figure

OUT = Path(__file__).resolve().parents[2] / "build" / "bench"
SATURATING = 64
STREAMS = 128
CLIENTS = (1, 4, 16, 64)
SOAK_S = 600.0
START_S = 120.0
CALIBRATION = 1.5
MOST_IDLE_MIB = 100e6 / 2**20


@dataclass(frozen=True)
class Size:
    """How long each run of wrk takes, in seconds, and how often all of them are repeated."""

    seconds: int
    rounds: int


def _rounds(size: Size, targets: dict[str, Callable[[], Load]]) -> dict[str, Load]:
    """The medians over interleaved rounds, so that a noisy machine disturbs all targets alike."""
    found: dict[str, list[Load]] = {name: [] for name in targets}
    for _ in range(size.rounds):
        for name, run in targets.items():
            found[name].append(run())
    return {name: Load(**{field: statistics.median(asdict(run)[field] for run in runs) for field in asdict(runs[0])})
            for name, runs in found.items()}  # fmt: skip


class Bench:
    """The cases, over targets that run already."""

    def __init__(self, size: Size, direct: Target, direct_events: Target, relay: Target, gateway: Target, events_gateway: Target) -> None:
        self._size = size
        self._whole = {"direct": direct, "relay": relay, "gateway": gateway}
        self._streams = {"direct": direct_events, "gateway": events_gateway}

    def warm(self, others: Iterable[Target], stream_others: Iterable[Target]) -> None:
        """Lets every target make its connections and compile its patterns; some need a while until they answer at all."""
        for stream, targets in ((False, [*self._whole.values(), *others]), (True, [*self._streams.values(), *stream_others])):
            for target in targets:
                end = time.monotonic() + START_S
                for clients in (1, STREAMS if stream else SATURATING):
                    while True:
                        try:
                            load(target, clients=clients, seconds=2, stream=stream)
                            break
                        except RuntimeError:
                            if time.monotonic() > end:
                                raise

    def saturated(self, others: dict[str, Target]) -> tuple[list[Figure], float]:
        """Completions a second of each target, and CPU time a completion; the second value is the gateway's rate."""
        targets = {**self._whole, **others}
        found = _rounds(self._size, {n: lambda t=t: load(t, clients=SATURATING, seconds=self._size.seconds) for n, t in targets.items()})
        figures = [Figure("direct calibration", found["direct"].rate / found["gateway"].rate, "× gateway", CALIBRATION, lower=False)]
        for name, run in found.items():
            target = 3000.0 if name == "gateway" else None
            figures.append(Figure(f"completions: {name}", run.rate, "/s", target, lower=False))
            figures.append(Figure(f"CPU a completion: {name}", run.cpu_us, "µs"))
        for name in others:
            ratio, cpu = found["gateway"].rate / found[name].rate, found[name].cpu_us / found["gateway"].cpu_us
            figures.append(Figure(f"completions: gateway over {name}", ratio, "×", 30.0, lower=False))
            figures.append(Figure(f"CPU a completion: {name} over gateway", cpu, "×"))
        return figures, found["gateway"].rate

    def streams(self, others: dict[str, Target]) -> list[Figure]:
        """Whole streams of 31 events a second."""
        targets = {**self._streams, **others}
        found = _rounds(
            self._size, {n: lambda t=t: load(t, clients=STREAMS, seconds=self._size.seconds, stream=True) for n, t in targets.items()}
        )
        figures = []
        for name, run in found.items():
            target = 800.0 if name == "gateway" else None
            figures.append(Figure(f"streams of 31 events: {name}", run.rate, "/s", target, lower=False))
            figures.append(Figure(f"CPU a stream: {name}", run.cpu_us, "µs"))
        for name in others:
            figures.append(Figure(f"streams: gateway over {name}", found["gateway"].rate / found[name].rate, "×"))
        return figures

    def half_load(self, rate: float) -> list[Figure]:
        """Latency that the gateway adds at half of what it can do; clients wait before each request, independently of each other."""
        delay_ms = round(SATURATING / (rate / 2) * 1000)
        both = {n: self._whole[n] for n in ("direct", "gateway")}
        found = _rounds(
            self._size, {n: lambda t=t: load(t, clients=SATURATING, seconds=self._size.seconds, delay_ms=delay_ms) for n, t in both.items()}
        )
        figures = [Figure("half load: rate", found["gateway"].rate, "/s")]
        for name, target in (("p50", None), ("p95", 5.0), ("p99", None)):
            added = getattr(found["gateway"], name) - getattr(found["direct"], name)
            figures.append(Figure(f"half load: added {name}", added, "ms", target))
        return figures

    def added(self) -> list[Figure]:
        """Latency that the gateway adds with 1, 4, 16 and 64 clients that ask without a pause."""
        figures = []
        for clients in CLIENTS:
            both = {n: self._whole[n] for n in ("direct", "gateway")}
            found = _rounds(self._size, {n: lambda t=t, c=clients: load(t, clients=c, seconds=self._size.seconds) for n, t in both.items()})
            for name in ("p50", "p95", "p99"):
                target = 1.0 if (clients, name) == (1, "p50") else None
                added = getattr(found["gateway"], name) - getattr(found["direct"], name)
                figures.append(Figure(f"{clients} client{'s' if clients > 1 else ''}: added {name}", added, "ms", target))
        return figures

    def soak(self, rate: float, seconds: float) -> list[Figure]:
        """Memory under half load: a line through samples of its second half, so that filling caches are no leak."""
        gateway = self._whole["gateway"]
        delay_ms = round(SATURATING / (rate / 2) * 1000)
        samples: list[tuple[float, float]] = []
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            load(gateway, clients=SATURATING, seconds=10, delay_ms=delay_ms)
            samples.append((elapsed / 60, gateway.rss_mib()))
        late = samples[len(samples) // 2 :]
        slope = statistics.linear_regression([x for x, _ in late], [y for _, y in late]).slope
        return [Figure("soak: RSS at the end", samples[-1][1], "MiB"), Figure("soak: RSS slope, second half", slope, "MiB/min", 0.5)]


def _run(size: Size, made: Stack, *, soak: bool, litellm: bool) -> list[Figure]:
    direct, direct_events = made.upstream(gap_ms=0), made.upstream(gap_ms=1)
    relay = made.relay(direct)
    gateway = made.gateway(direct)
    idle = gateway.rss_mib()
    events_gateway = made.gateway(direct_events, "gateway-streams")
    others: dict[str, Target] = {}
    stream_others: dict[str, Target] = {}
    if litellm:
        others["litellm"] = llm_litellm.start(made, direct, "litellm")
        stream_others["litellm"] = llm_litellm.start(made, direct_events, "litellm-streams")
    bench = Bench(size, direct, direct_events, relay, gateway, events_gateway)
    bench.warm(others.values(), stream_others.values())
    figures = [Figure("idle RSS", idle, "MiB", MOST_IDLE_MIB)]
    saturated, rate = bench.saturated(others)
    figures += saturated
    figures += bench.streams(stream_others)
    figures += bench.half_load(rate)
    figures += bench.added()
    figures.append(Figure("RSS after the load", gateway.rss_mib(), "MiB"))
    if soak:
        figures += bench.soak(rate, SOAK_S)
    return figures


def _disk_ms(folder: Path) -> float:
    """The median of small writes that wait for the disk: what appendfsync adds to each turn of the store."""
    times = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(100):
            began = time.perf_counter()
            file.write(b"x" * 200)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def main() -> int:
    """Exit status 0 whether or not the targets hold: a benchmark reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 2 s: a look, no figure to quote")
    parser.add_argument("--soak", action="store_true", help="ten minutes under half load after the rest")
    parser.add_argument("--litellm", action="store_true", help="install litellm[proxy] into build/ and put it under the same load")
    parser.add_argument("--fsync", choices=("always", "everysec"), default="always", help="when the state store waits for its disk")
    chosen = parser.parse_args()
    if shutil.which("wrk") is None and install_debian.main({"wrk": "wrk", "taskset": "util-linux"}) != 0:
        return 1
    size = Size(2, 1) if chosen.quick else Size(5, 3)
    where = machine.describe()
    console = Console(width=110)
    console.print(" · ".join(f"{k} {v}" for k, v in where.items()))
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder, stack(Path(folder), chosen.fsync) as made:
        figures = [
            Figure("the state store's disk takes", _disk_ms(Path(folder)), "ms a write"),
            *_run(size, made, soak=chosen.soak, litellm=chosen.litellm),
        ]
    table = Table(title="llm")
    for column in ("figure", "value", "unit", "target", "holds"):
        table.add_column(column, justify="right" if column in ("value", "target") else "left")
    for figure in figures:
        target = "" if figure.target is None else f"{'≤' if figure.lower else '≥'} {figure.target:g}"
        table.add_row(figure.name, f"{figure.value:.2f}", figure.unit, target, {None: "", True: "yes", False: "NO"}[figure.holds])
    console.print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": {**where, "load_after": round(os.getloadavg()[0], 2)},
        "seconds_a_run": size.seconds,
        "rounds": size.rounds,
        "appendfsync": chosen.fsync,
        "figures": [asdict(f) | {"holds": f.holds} for f in figures],
    }
    (OUT / "llm.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
