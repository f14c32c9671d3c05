"""`make bench`: runs every benchmark, prints one table, writes build/bench/<name>.json."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.bench import api, machine, rpc, runs
from scripts.bench.machine import Figure

BENCHMARKS = {"rpc": rpc.run, "runs": runs.run, "api": api.run}
OUT = Path(__file__).resolve().parents[2] / "build" / "bench"


def table_of(name: str, figures: Sequence[Figure]) -> Table:
    """The figures beside their targets."""
    table = Table(title=name)
    for column in ("figure", "value", "unit", "target", "holds"):
        table.add_column(column, justify="right" if column in ("value", "target") else "left")
    for figure in figures:
        target = "" if figure.target is None else f"{'≤' if figure.lower else '≥'} {figure.target:g}"
        holds = {None: "", True: "yes", False: "NO"}[figure.holds]
        table.add_row(figure.name, f"{figure.value:.{1 if figure.value >= 1 else 3}f}", figure.unit, target, holds)
    return table


def main() -> int:
    """Exit status 0 whether or not the targets hold: a benchmark reports, tests decide."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which; default all")
    chosen = parser.parse_args().names or list(BENCHMARKS)
    where = machine.describe()
    console = Console(width=110)
    console.print(" · ".join(f"{k} {v}" for k, v in where.items()))
    OUT.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        figures = BENCHMARKS[name]()
        console.print(table_of(name, figures))
        result = {
            "machine": {**where, "load_after": round(os.getloadavg()[0], 2)},
            "figures": [asdict(f) | {"holds": f.holds} for f in figures],
        }
        (OUT / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
