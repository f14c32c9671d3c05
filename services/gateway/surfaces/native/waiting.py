"""Waiting for the end of a run on behalf of a client that may leave."""

from collections.abc import Awaitable, Callable

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from starlette.requests import Request

from services.common.errors import DeadlineExceeded
from services.gateway.running import RunCalls, wait_for_end
from services.gateway.streaming import while_connected

LONGEST_WAIT_S = 300


async def ended_or_as_it_is(
    runs: RunCalls, request: Request, run_id: str, wait_s: float, leaving: Callable[[], Awaitable[None]] | None = None
) -> pb.Run:
    """The run when it has ended, or as it is after `wait_s` seconds. `leaving` is awaited where the client leaves first."""
    try:
        return await while_connected(request.receive, wait_for_end(runs, run_id, wait_s), leaving)
    except DeadlineExceeded:
        return (await runs.GetRun(pb.GetRunRequest(run_id=run_id))).run
