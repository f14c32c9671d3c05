"""`make bench-runs`: durable runs, one run of everything on one machine.

    python -m scripts.bench.durable [--quick] [--soak RUNS] [--peers] [--only PART,…] [--check]

First the five services under load, then what durability itself costs, how long a run stands still without its owner, and whether a run's
cost grows with what lies around. `--soak` adds so many runs with retention on and tells the memory of service and store; `--peers`
installs other platforms into build/ and has them do the same work. `--only` takes
some of load, store, owners, growth, soak and peers. Prints tables and what missed its target, writes build/bench/durable.json.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import uvloop
from rich.console import Console

from scripts.bench import durable_growth, durable_owners, durable_peers, durable_soak, durable_store, machine, runs
from scripts.bench.__main__ import OUT, table_of
from scripts.bench.machine import Figure


def _growth() -> list[Figure]:
    with runs.platform() as made:
        return uvloop.run(durable_growth.measure(made))


def main() -> int:
    """Exit status: with `--check` 1 where a target does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer losses of owners, no growth curves")
    parser.add_argument("--soak", type=int, default=0, metavar="RUNS", help="so many one-step runs with retention on, say 100000")
    parser.add_argument("--peers", action="store_true", help="install langgraph-cli[inmem] and dbos into build/ and compare")
    parser.add_argument("--only", default="", metavar="PART,…", help="these parts alone")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target does not hold")
    chosen = parser.parse_args()
    where = machine.describe()
    console = Console(width=110)
    console.print(" · ".join(f"{k} {v}" for k, v in where.items()))
    parts = {"load": runs.run, "store": durable_store.run, "owners": lambda: durable_owners.run(4 if chosen.quick else 20)}
    if not chosen.quick:
        parts["growth"] = _growth
    if chosen.soak:
        parts["soak"] = lambda: durable_soak.run(chosen.soak)
    only = set(filter(None, chosen.only.split(",")))
    if chosen.peers or "peers" in only:
        parts["peers"] = durable_peers.run
    if only:
        if unknown := only - parts.keys():
            parser.error(f"--only: {', '.join(sorted(unknown))}: must be out of {', '.join(parts)}")
        parts = {name: measure for name, measure in parts.items() if name in only}
    every: dict[str, list[Figure]] = {}
    for name, measure in parts.items():
        every[name] = measure()
        console.print(table_of(name, every[name]))
    OUT.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": {**where, "load_after": round(os.getloadavg()[0], 2)},
        "figures": {name: [asdict(f) | {"holds": f.holds} for f in figures] for name, figures in every.items()},
    }
    Path(OUT / "durable.json").write_text(json.dumps(result, indent=2) + "\n")
    missed = [figure for figures in every.values() for figure in figures if figure.holds is False]
    for figure in missed:
        console.print(f"missed: {figure.name}: {figure.value:.1f} {figure.unit}, target {figure.target}")
    return int(chosen.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
