"""What surfaces do with a run beside showing it: wait for its end, and end it when its client leaves."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import structlog
from bulkhead.orchestrator.v1.orchestrator_pb2 import (
    RUN_STATUS_CANCELLED,
    RUN_STATUS_FAILED,
    RUN_STATUS_SUCCEEDED,
    CancelRunRequest,
    Run,
    WaitRunRequest,
)

from services.common.errors import BulkheadError, Cancelled, DeadlineExceeded, Overloaded
from services.common.rpc import context as call_context
from services.gateway.answer import SUMMARY_TYPES, Answer, data_of
from services.gateway.following import Follower
from services.gateway.ports import Subject

# One WaitRun call; shorter than what idle connections in between are allowed, and a restart costs no more than this.
WAIT_SLICE_S = 30.0
RETRY_PAUSE_S = 0.2
_ENDED = frozenset({RUN_STATUS_SUCCEEDED, RUN_STATUS_FAILED, RUN_STATUS_CANCELLED})
log = structlog.get_logger("bulkhead.gateway")


class RunCalls(Protocol):
    """The part of RunService that is used here."""

    WaitRun: Callable[..., Awaitable[Any]]
    CancelRun: Callable[..., Awaitable[Any]]


def cancel_on_leaving(runs: RunCalls, run_id: str) -> Callable[[], Awaitable[None]]:
    """What to await when the client of a run with on_disconnect=cancel has left."""

    async def cancel() -> None:
        # The wait is over and must not bound this call too.
        context = call_context.current()
        if context is not None:
            call_context.enter(replace(context, deadline=None))
        log.info("client_left", run_id=run_id)
        try:
            await runs.CancelRun(CancelRunRequest(run_id=run_id, reason="client disconnected"))
        except BulkheadError as error:
            # Nobody is there to be told; the run goes on to its own limits.
            log.warning("cancel_on_disconnect_failed", run_id=run_id, reason=error.reason)

    return cancel


def has_ended(run: Run) -> bool:
    """Whether nothing happens in the run any more."""
    return run.status in _ENDED


async def wait_for_end(runs: RunCalls, run_id: str, wait_s: float) -> Run:
    """The run when it has ended. Outlives a restart of the orchestrator.

    Raises DeadlineExceeded when it has not ended within `wait_s` seconds, and what the orchestrator refuses it for.
    """
    end = time.monotonic() + wait_s
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the run has not ended in the time to wait")
        try:
            run = (await runs.WaitRun(WaitRunRequest(run_id=run_id), timeout=min(left, WAIT_SLICE_S))).run
            if has_ended(run):
                return run
        except (Overloaded, Cancelled, DeadlineExceeded) as error:
            log.info("wait_resumed", run_id=run_id, reason=error.reason)
            await asyncio.sleep(min(RETRY_PAUSE_S, max(0.0, left)))


async def collect(follower: Follower, run: Run) -> Answer:
    """The answer of a run, when it has one. Raises RunFailed when it ends without."""
    answer = Answer(run.run_id, run.thread_id)
    async for event in follower.follow(Subject(run_id=run.run_id), max(0, run.first_seq - 1), types=SUMMARY_TYPES):
        answer.take(event, data_of(event))
    if answer.failure is not None:
        raise answer.failure
    return answer


def usage_of(answer: Answer) -> Mapping[str, Any]:
    """Token counts of an answer, 0 where the log names none."""
    return {name: int(answer.usage.get(name) or 0) for name in ("input_tokens", "output_tokens")}
