"""The session of a thread, forgotten: because the caller asks for a new start, or because it kept the model from answering.

Memory is told at once where it can be heard. Where not, and where the ladder decides, the outbox tells it after the run's end, before it
keeps the run's own turn. Only turns that ended before the decision are forgotten, however late one of them arrives.
"""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from services.common.errors import BulkheadError
from services.orchestrator.records import RunSpec
from services.orchestrator.turn import degradation
from services.orchestrator.turn.state import Turn

# Among what the ladder keeps: ms before which turns are forgotten, where memory is still to be told.
PENDING = "forget_before_ms"


async def as_asked(turn: Turn) -> None:
    """Does what the caller of the run asked for. Never fails: what cannot be done now is left to the outbox."""
    before_ms = int(time.time() * 1000)
    turn.writer.emit("memory_reset", {"reason": "asked", "ended_before_ms": before_ms})
    turn.enter_call()
    try:
        found = await turn.services.memory.reset_session(turn.ref.thread_id, before_ms, key_of(turn.ref.run_id, before_ms))
    except BulkheadError as error:
        turn.check_time()
        degradation.part(turn)[PENDING] = before_ms
        degradation.warn(turn, "memory_reset_postponed", reason=error.reason)
        return
    if not found and turn.wait_for_memory is not None:
        # Nothing is there to forget, but something is on its way.
        degradation.part(turn)[PENDING] = before_ms


def by_ladder(turn: Turn, reason: str) -> None:
    """Has memory forget what a model would not take, once the run has ended with an answer."""
    before_ms = int(time.time() * 1000)
    degradation.part(turn)[PENDING] = before_ms
    degradation.warn(turn, "memory_reset", reason=reason)
    turn.writer.emit("memory_reset", {"reason": reason, "ended_before_ms": before_ms})


def pending(turn: Turn) -> int:
    """The time (ms) before which the outbox has memory forget turns; 0 where there is nothing to do."""
    kept: dict[str, Any] = turn.state.parts.get(degradation.PART) or {}
    before_ms: int = kept.get(PENDING, 0)
    return before_ms


def left_by(state: Mapping[str, Any]) -> int:
    """As `pending`, by the checkpoint of a run."""
    before_ms: int = (state.get("parts", {}).get(degradation.PART) or {}).get(PENDING, 0)
    return before_ms


def entry(spec: RunSpec, before_ms: int) -> bytes:
    """The outbox entry of a run whose own turn is not kept; empty where there is nothing to forget."""
    if not before_ms:
        return b""
    told: dict[str, Any] = {
        "v": 1, "principal": spec.principal, "request_id": spec.request_id, "canary": spec.canary, "trace": dict(spec.trace),
        "forget_before_ms": before_ms, "kept": False,
    }  # fmt: skip
    return orjson.dumps(told)


def key_of(run_id: str, before_ms: int) -> str:
    """The idempotency key: another time is another request."""
    return f"{run_id}/forget/{before_ms}"
