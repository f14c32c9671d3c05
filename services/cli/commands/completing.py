"""What the shell offers for an id: the things that the gateway knows, as far as it answers at once. Typer takes those that fit."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from services.cli.failure import CommandFailure

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


def _offered(
    context: typer.Context, path: str, key: str, about: tuple[str, ...], *, pages: bool = True, **query: Any
) -> list[tuple[str, str]]:
    from services.cli.client import Api
    from services.cli.connection import find_connection
    from services.cli.rendering import brief

    folder = context.params.get("data_dir") or os.environ.get("BULKHEAD_DATA_DIR") or ".bulkhead"
    if pages:
        query["limit"] = MOST_OFFERED

    async def ask() -> list[dict[str, Any]]:
        async with asyncio.timeout(PATIENCE_S), Api(find_connection(Path(folder))) as api:
            return (await api.get(path, **query))["data"]

    # A shell that is told of a failure would write it into the line; and whoever answers at the URL may be no Bulkhead.
    with suppress(CommandFailure, TimeoutError, KeyError, TypeError, AttributeError):
        found = asyncio.run(ask())
        return [(str(one[key]), brief(" ".join(str(one.get(name) or "") for name in about))) for one in found]
    return []
