"""`bulkhead quota`: what limits the caller, and how much of it is used."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli.client import ask
from services.cli.connection import Connection
from services.cli.rendering import print_json, when, wide_console
from services.cli.terminal import printable

RUNS = {"concurrent_runs": "runs at work", "queued_runs": "runs that wait", "delayed_runs": "runs that start later"}
BAR_CHARS = 20
# From here on a limit is near, and from here on it is reached.
NEAR, REACHED = 0.8, 1.0


def show_quota(connection: Connection, *, as_json: bool = False) -> None:
    """A row for each limit. Raises CommandFailure."""
    quota = ask(connection, lambda api: api.get("/v1/quota"))
    if as_json:
        print_json(quota)
        return
    console = wide_console()
    table = Table.grid(padding=(0, 2, 0, 0))
    for what, used, limit, shown, more in _rows(quota):
        share = min(1.0, used / limit) if limit else float(limit == 0)
        style = "red" if share >= REACHED else "yellow" if share >= NEAR else "green"
        # A bar is for a person; in a pipe it would be nothing but dashes.
        bar = ProgressBar(total=1.0, completed=share, width=BAR_CHARS, complete_style=style, finished_style=style)
        table.add_row(Text(printable(what)), bar if limit is not None and console.is_terminal else "", Text(shown), Text(more, style="dim"))
    console.print(Text.assemble("tier ", (printable(str(quota["tier"])), "bold")))
    console.print(table)


def _rows(quota: Mapping[str, Any]) -> Iterator[tuple[str, int, int | None, str, str]]:
    """What it is about, used, the limit or None, both as a person reads them, and when it renews."""
    for name, title in RUNS.items():
        used, limit = quota[name]["used"], quota[name]["limit"]
        yield title, used, limit, f"{used} of {limit}" if limit is not None else f"{used}, without a limit", ""
    if quota["task_time_ms"] is not None:
        yield "active time of one run", 0, None, f"at most {quota['task_time_ms'] / 1000:g} s", ""
    for budget in quota["budgets"]:
        used, limit = budget["spent_microusd"] + budget["reserved_microusd"], budget["limit_microusd"]
        shown = f"${used / 1e6:.4f} of ${limit / 1e6:.2f}" + (f" each {budget['period']}" if budget["period"] else "")
        renews = f"renews {when(budget['resets_at'])}" if budget["resets_at"] else ""
        yield f"money of {budget['scope']} {budget['scope_id']}", used, limit, shown, renews
    for rate in quota["rate_limits"]:
        used, limit = rate["limit"] - rate["remaining"], rate["limit"]
        renews = f"renews in {rate['reset_after_ms'] / 1000:g} s" if rate["reset_after_ms"] is not None else ""
        yield f"{rate['kind']} of {rate['scope']} {rate['scope_id']}", used, limit, f"{used} of {limit}", renews
