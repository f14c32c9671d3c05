"""`bulkhead replay`: the event log of a thread, all at once as a timeline or with its original timing."""

import asyncio
import datetime
import json
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from services.cli.client import Api, segment
from services.cli.connection import Connection
from services.cli.failure import CommandFailure
from services.cli.rendering import Renderer, brief, wide_console

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
    renderer = Renderer()
    async with Api(connection) as api:
        async for event in api.events("GET", f"/replay/{segment(thread_id)}", query={"speed": speed}):
            if as_json:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            else:
                renderer.show(event)


async def _at_once(connection: Connection, thread_id: str, as_json: bool) -> None:
    async with Api(connection) as api:
        answer = await api.get(f"/replay/{segment(thread_id)}")
    events = answer if isinstance(answer, list) else answer.get("events", answer.get("data", []))
    if not events:
        raise CommandFailure(f"thread {thread_id} has no events")
    if as_json:
        for event in events:
            print(json.dumps(event, ensure_ascii=False))
        return
    console = wide_console()
    begun = _moment(events[0])
    for event in events:
        if event["type"] not in LEFT_OUT:
            console.print(line(event, (_moment(event) - begun).total_seconds()), overflow="ellipsis", no_wrap=True)


def line(event: Mapping[str, Any], after_s: float) -> Text:
    """One event of the timeline: when, what, and the gist of its data."""
    data = event.get("data") or {}
    parts = [str(data[key]) for key in ("step", "tool", "status", "code", "title") if data.get(key)]
    for key in ("arguments", "output", "error", "text", "user_message", "output_text"):
        if data.get(key):
            parts.append(brief(data[key]))
            break
    text = Text(f"{event.get('seq'):>6}  {after_s:>9.3f} s  ", style="dim")
    text.append(f"{event['type']:<22}", style=STYLES.get(event["type"], "cyan" if event["type"].startswith("tool_") else "bold"))
    return text.append(" " + "  ".join(parts), style="default")


def _moment(event: Mapping[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(event["ts"])
