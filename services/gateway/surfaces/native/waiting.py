"""Waiting for the end of a run on behalf of a client that may leave."""

from collections.abc import Awaitable, Callable

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from starlette.requests import Request

from services.common.errors import DeadlineExceeded
from services.gateway.running import RunCalls, has_ended, wait_for_end
from services.gateway.streaming import while_connected

LONGEST_WAIT_S = 300


async def waited_for(
    runs: RunCalls, request: Request, run: pb.Run, wait_s: float, leaving: Callable[[], Awaitable[None]] | None = None
) -> tuple[pb.Run, int]:
    """The run when it has ended, or as it is after `wait_s` seconds, and the status to answer with.

    That is 200 where it was waited for and has ended, else 202. `leaving` is awaited where the client leaves first.
    """
    if wait_s and not has_ended(run):
        try:
            run = await while_connected(request.receive, wait_for_end(runs, run.run_id, wait_s), leaving)
        except DeadlineExceeded:
            run = (await runs.GetRun(pb.GetRunRequest(run_id=run.run_id))).run
    return run, 200 if wait_s and has_ended(run) else 202
