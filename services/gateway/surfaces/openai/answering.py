"""What the routes of OpenAI's API do alike when they answer."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import DeadlineExceeded
from services.common.rpc import context as call_context
from services.gateway.edge.exchange import exchange
from services.gateway.streaming import while_connected

T = TypeVar("T")


def about_run(request: Request, run: pb.Run) -> None:
    """Notes which run the request is about, and tells the client."""
    about = exchange(request)
    about.about(thread_id=run.thread_id, run_id=run.run_id)
    about.answer("x-bulkhead-run-id", run.run_id)
    about.answer("x-bulkhead-thread-id", run.thread_id)


async def in_time(
    request: Request, run: pb.Run, work: Coroutine[Any, Any, T], limit_s: float, leaving: Callable[[], Awaitable[None]] | None
) -> T:
    """What `work` finds out about a run, within the time that the client gave and `limit_s`; `leaving` is awaited where it leaves first.

    Raises DeadlineExceeded that names the run, which goes on, and ClientGone.
    """
    left = (call_context.current() or call_context.CallContext()).remaining_s()
    try:
        async with asyncio.timeout(limit_s if left is None else min(left, limit_s)):
            return await while_connected(request.receive, work, leaving)
    except (TimeoutError, DeadlineExceeded):
        known = {"run_id": run.run_id, "thread_id": run.thread_id}
        raise DeadlineExceeded("the answer took longer than the time that was given; the run goes on", metadata=known) from None


def as_json(content: Any) -> Response:
    """An answer that nobody may keep."""
    return Response(orjson.dumps(content), 200, {"cache-control": "no-store"}, "application/json")
