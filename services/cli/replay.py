"""`bulkhead replay`: the event log of a thread, all at once as a timeline or with its original timing."""

import asyncio
import datetime
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from rich.text import Text

from services.cli.client import Api, segment
from services.cli.connection import Connection
from services.cli.failure import CommandFailure
from services.cli.following import follow
from services.cli.rendering import Renderer, brief, note, print_json, print_json_lines, wide_console
from services.cli.terminal import printable

STYLES = {
    "run_failed": "red",
    "tool_call_failed": "red",
    "warning": "yellow",
    "run_finished": "green",
    "attempt_superseded": "yellow",
    "log_gap": "yellow",
}
# Their text stands whole in the event that completes them.
LEFT_OUT = ("message_delta",)


def replay(connection: Connection, thread_id: str, *, speed: float | None = None, as_json: bool = False) -> None:
    """Shows a thread's events; with `speed` paced (1 as it was, 2 twice as fast). Raises CommandFailure."""
    asyncio.run(_paced(connection, thread_id, speed, as_json) if speed else _at_once(connection, thread_id, as_json))


async def _paced(connection: Connection, thread_id: str, speed: float, as_json: bool) -> None:
    show = print_json if as_json else Renderer().show
    async with Api(connection) as api:
        last_seq = (await api.get(f"/v1/threads/{segment(thread_id)}"))["last_seq"]
        if not last_seq:
            raise CommandFailure(f"thread {thread_id} has no events")
        async with aclosing(follow(api, f"/replay/{segment(thread_id)}", query={"speed": speed})) as events:
            async for event in events:
                show(event)
                if event["seq"] >= last_seq:
                    return


def print_as_test(connection: Connection, thread_id: str, *, exact: bool = False, as_json: bool = False) -> None:
    """Prints the thread as a test file, and on stderr what could not become a part of it. Raises CommandFailure."""
    from services.cli.regression.form import written
    from services.cli.regression.recording import recorded

    test, left_out = recorded(thread_id, asyncio.run(_whole_log(connection, thread_id)), exact=exact)
    if as_json:
        print_json(test.model_dump(exclude_none=True))
    else:
        print(written(test), end="")
    for one in left_out:
        note(f"left out: {one}")


async def _whole_log(connection: Connection, thread_id: str) -> list[dict[str, Any]]:
    async with Api(connection) as api:
        events = (await api.get(f"/replay/{segment(thread_id)}")).get("events", [])
    if not events:
        raise CommandFailure(f"thread {thread_id} has no events")
    return events


async def _at_once(connection: Connection, thread_id: str, as_json: bool) -> None:
    events = await _whole_log(connection, thread_id)
    if as_json:
        print_json_lines(events)
        return
    console = wide_console()
    begun = _moment(events[0])
    for event in events:
        if event["type"] not in LEFT_OUT:
            console.print(line(event, (_moment(event) - begun).total_seconds()), overflow="ellipsis", no_wrap=True)


def line(event: Mapping[str, Any], after_s: float) -> Text:
    """One event of the timeline: when, what, and the gist of its data."""
    data = event.get("data") or {}
    parts = [printable(str(data[key])) for key in ("step", "tool", "status", "code", "title") if data.get(key)]
    for key in ("arguments", "output", "error", "text", "user_message", "output_text"):
        if data.get(key):
            parts.append(brief(data[key]))
            break
    text = Text(f"{event.get('seq'):>6}  {after_s:>9.3f} s  ", style="dim")
    text.append(f"{event['type']:<22}", style=STYLES.get(event["type"], "cyan" if event["type"].startswith("tool_") else "bold"))
    return text.append(" " + "  ".join(parts), style="default")


def _moment(event: Mapping[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(event["ts"])
