"""What the shell offers for an id: the things that the gateway knows, as far as it answers at once. Typer takes those that fit."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from services.cli.failure import CommandFailure

if TYPE_CHECKING:
    from services.cli.client import Api

# Who presses Tab does not wait longer.
PATIENCE_S = 1.0
MOST_OFFERED = 100


def runs(context: typer.Context) -> list[tuple[str, str]]:
    """The newest runs."""
    return _offered(context, "/v1/runs", "run_id", ("status", "thread_id"))


def threads(context: typer.Context) -> list[tuple[str, str]]:
    """The newest threads."""
    return _offered(context, "/v1/threads", "thread_id", ("created_at",))


def approvals(context: typer.Context) -> list[tuple[str, str]]:
    """What waits for a decision of the caller."""
    return _offered(context, "/v1/approvals", "approval_id", ("tool", "requester"), decidable="true")


def webhooks(context: typer.Context) -> list[tuple[str, str]]:
    """The webhooks of the tenant."""
    return _offered(context, "/v1/webhooks", "webhook_id", ("url",), pages=False)


def schedules(context: typer.Context) -> list[tuple[str, str]]:
    """The newest schedules."""
    return _offered(context, "/v1/schedules", "schedule_id", ("name", "agent"))


def memories(context: typer.Context) -> list[tuple[str, str]]:
    """The newest memories."""
    return _offered(context, "/v1/memories", "memory_id", ("text",))


def agents(context: typer.Context) -> list[tuple[str, str]]:
    """The agents of the configuration."""
    return _offered(context, "/v1/agents", "name", ("description",))


def calls(context: typer.Context) -> list[tuple[str, str]]:
    """The tool calls that are at work in the run that was named before."""
    run_id = str(context.params.get("run_id") or "")

    async def ask(api: "Api") -> list[tuple[str, str]]:
        from services.cli.client import segment

        run = await api.get(f"/v1/runs/{segment(run_id)}")
        events = (await api.get(f"/replay/{segment(run['thread_id'])}", after=max(0, run["first_seq"] - 1)))["events"]
        at_work = {}
        for event in events:
            if event["run_id"] == run_id and event["type"] == "tool_call_started":
                at_work[event["data"]["call_id"]] = event["data"]["tool"]
            elif event["run_id"] == run_id and event["type"] in ("tool_call_completed", "tool_call_failed"):
                at_work.pop(event["data"]["call_id"], None)
        return list(at_work.items())

    return _found(context, ask)


def _offered(
    context: typer.Context, path: str, key: str, about: tuple[str, ...], *, pages: bool = True, **query: Any
) -> list[tuple[str, str]]:
    from services.cli.rendering import brief

    if pages:
        query["limit"] = MOST_OFFERED

    async def ask(api: "Api") -> list[tuple[str, str]]:
        things = (await api.get(path, **query))["data"]
        return [(str(one[key]), brief(" ".join(str(one.get(name) or "") for name in about))) for one in things]

    return _found(context, ask)


def _found(context: typer.Context, ask: Callable[["Api"], Awaitable[list[tuple[str, str]]]]) -> list[tuple[str, str]]:
    from services.cli.client import Api
    from services.cli.connection import find_connection

    folder = context.params.get("data_dir") or os.environ.get("BULKHEAD_DATA_DIR") or ".bulkhead"

    async def asking() -> list[tuple[str, str]]:
        async with asyncio.timeout(PATIENCE_S), Api(find_connection(Path(folder))) as api:
            return await ask(api)

    # A shell that is told of a failure would write it into the line; and whoever answers at the URL may be no Bulkhead.
    with suppress(CommandFailure, TimeoutError, KeyError, TypeError, AttributeError):
        return asyncio.run(asking())
    return []
