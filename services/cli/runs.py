"""`bulkhead runs`: what runs there are, one of them, and the end of one."""

import asyncio
import json
from typing import Any

from rich.table import Table
from rich.text import Text

from services.cli.client import Api, segment
from services.cli.connection import Connection
from services.cli.rendering import brief, wide_console

STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim", "waiting": "yellow"}


def list_runs(connection: Connection, *, limit: int, thread: str = "", as_json: bool = False) -> None:
    """The newest runs, of one thread or of all. Raises CommandFailure."""
    path = f"/v1/threads/{segment(thread)}/runs" if thread else "/v1/runs"
    runs = asyncio.run(_get(connection, path, limit=limit))["data"]
    if as_json:
        for run in runs:
            print(json.dumps(run, ensure_ascii=False))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("RUN", "STATUS", "STARTED"):
        table.add_column(title, no_wrap=True, min_width=max((len(run["run_id"]) for run in runs), default=0) if title == "RUN" else 9)
    for title in ("AGENT", "THREAD", "COST", "ANSWER"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for run in runs:
        status = str(run.get("status"))
        started = (run.get("created_at") or "").replace("T", " ")[:19]
        answer = brief(run.get("output_text") or (run.get("error") or {}).get("message"))
        cells = (run.get("agent"), run["thread_id"], cost(run.get("usage")), answer)
        table.add_row(run["run_id"], Text(status, style=STYLES.get(status, "")), started, *(Text(str(cell or "")) for cell in cells))
    wide_console().print(table if runs else Text("no runs yet", style="dim"))


def show_run(connection: Connection, run_id: str) -> None:
    """Everything about one run, as JSON. Raises CommandFailure."""
    wide_console().print_json(data=asyncio.run(_get(connection, f"/v1/runs/{segment(run_id)}")))


def cancel_run(connection: Connection, run_id: str) -> None:
    """Asks for the end of a run; asking again changes nothing. Raises CommandFailure."""
    run = asyncio.run(_cancel(connection, run_id))
    print(f"{run_id}: {run.get('status')}" + (", cancel requested" if run.get("cancel_requested") else ""))


def cost(usage: Any) -> str:
    """As `$0.0012`; empty when nothing was spent."""
    spent = (usage or {}).get("cost_microusd") or 0
    return f"${spent / 1e6:.4f}" if spent else ""


async def _get(connection: Connection, path: str, **query: Any) -> Any:
    async with Api(connection) as api:
        return await api.get(path, **query)


async def _cancel(connection: Connection, run_id: str) -> Any:
    async with Api(connection) as api:
        answer = await api.post(f"/v1/runs/{segment(run_id)}/cancel", {"reason": "bulkhead runs cancel"})
        return answer.get("run") or answer
