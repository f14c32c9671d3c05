"""`bulkhead runs watch` and `bulkhead threads watch`: what happens, as it happens."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from services.cli.client import Api, segment
from services.cli.connection import Connection
from services.cli.failure import FAILED, Interrupted, Later, Unreachable, UsageProblem
from services.cli.following import follow
from services.cli.rendering import ENDINGS, Renderer, print_json, table_of
from services.cli.run_view import RunView
from services.cli.runs import TITLES, row

REFRESHES_PER_S = 8
LOOK_EVERY_S = 1.0


def watch_run(connection: Connection, run_id: str, *, after: int = 0, as_json: bool = False) -> int:
    """Follows a run to its end; answers the exit status: 0 when it finished, 1 when it failed or was cancelled. Ctrl-C leaves the run at
    work. Raises CommandFailure."""
    return asyncio.run(_watch_run(connection, run_id, after, as_json))


async def _watch_run(connection: Connection, run_id: str, after: int, as_json: bool) -> int:
    path = f"/v1/runs/{segment(run_id)}"
    async with Api(connection) as api:
        run = await api.get(path)
        if run.get("terminal_seq") and after >= run["terminal_seq"]:
            # All is seen; nothing will come.
            return 0 if run["status"] == "succeeded" else FAILED
        console = Console(highlight=False)
        live = not as_json and console.is_terminal and not console.is_dumb_terminal
        view = RunView(run, console) if live else None
        show = view.take if view else print_json if as_json else Renderer().show
        with Live(view, console=console, refresh_per_second=REFRESHES_PER_S, transient=True) if view else nullcontext():
            ending = await _to_the_end(api, run_id, after, show)
    if view:
        view.print_whole()
    return 0 if ending == "run_finished" else FAILED


async def _to_the_end(api: Api, run_id: str, after: int, show: Callable[[Mapping[str, Any]], None]) -> str:
    seen = after
    try:
        async for event in follow(api, f"/v1/runs/{segment(run_id)}/events", after=after):
            seen = int(event.get("seq") or seen)
            show(event)
            if event.get("type") in ENDINGS:
                return str(event["type"])
    except Interrupted as failure:
        raise Interrupted(f"{failure}; `bulkhead runs watch {run_id} --after {seen}` goes on") from None
    raise AssertionError("a stream is followed without end")


def watch_runs(connection: Connection, *, limit: int, thread: str = "") -> None:
    """The newest runs as they change, until Ctrl-C. A gateway that is away is waited for, once it has answered. Raises CommandFailure."""
    console = Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        raise UsageProblem("only a terminal can show all runs: name one, or use `bulkhead runs list`")
    asyncio.run(_watch_runs(connection, console, limit, thread))


async def _watch_runs(connection: Connection, console: Console, limit: int, thread: str) -> None:
    path = f"/v1/threads/{segment(thread)}/runs" if thread else "/v1/runs"
    async with Api(connection) as api:
        shown: RenderableType = table_of(TITLES, map(row, await api.listed(path, limit)))
        with Live(shown, console=console, refresh_per_second=REFRESHES_PER_S, transient=True) as live:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                try:
                    shown = table_of(TITLES, map(row, await api.listed(path, limit)))
                    live.update(shown)
                except (Unreachable, Later) as failure:
                    live.update(Group(shown, Text(str(failure), style="yellow")))


def watch_thread(connection: Connection, thread_id: str, *, after: int | None = None, as_json: bool = False) -> None:
    """Follows all runs of a thread until Ctrl-C; `after` is the number to begin behind, without it only what comes is shown. Raises
    CommandFailure."""
    asyncio.run(_watch_thread(connection, thread_id, after, as_json))


async def _watch_thread(connection: Connection, thread_id: str, after: int | None, as_json: bool) -> None:
    show = print_json if as_json else Renderer().show
    async with Api(connection) as api:
        thread = await api.get(f"/v1/threads/{segment(thread_id)}")
        seen = thread["last_seq"] if after is None else after
        try:
            async for event in follow(api, f"/v1/threads/{segment(thread_id)}/events", after=seen):
                seen = int(event.get("seq") or seen)
                show(event)
                if event.get("type") == "thread_deleted":
                    return
        except Interrupted as failure:
            raise Interrupted(f"{failure}; `bulkhead threads watch {thread_id} --after {seen}` goes on") from None
