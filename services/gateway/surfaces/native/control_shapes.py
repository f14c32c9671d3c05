"""What control and feedback answer: the models of OpenAPI, and protos as JSON objects."""

from typing import Any, Literal

from bulkhead.orchestrator.v1 import admin_pb2, orchestrator_pb2

from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.outputs import Out, RunOut

CONTINUATIONS = {
    "skip": orchestrator_pb2.TOOL_CALL_CONTINUATION_SKIP, "fail": orchestrator_pb2.TOOL_CALL_CONTINUATION_FAIL,
    "retry": orchestrator_pb2.TOOL_CALL_CONTINUATION_RETRY, "substitute": orchestrator_pb2.TOOL_CALL_CONTINUATION_SUBSTITUTE,
}  # fmt: skip
THUMBS = {"up": orchestrator_pb2.THUMBS_UP, "down": orchestrator_pb2.THUMBS_DOWN}
SIGNALS = {
    "regenerate": orchestrator_pb2.FEEDBACK_SIGNAL_REGENERATE, "edit": orchestrator_pb2.FEEDBACK_SIGNAL_EDIT,
    "copy": orchestrator_pb2.FEEDBACK_SIGNAL_COPY, "abandon": orchestrator_pb2.FEEDBACK_SIGNAL_ABANDON,
    "correction": orchestrator_pb2.FEEDBACK_SIGNAL_CORRECTION, "dwell": orchestrator_pb2.FEEDBACK_SIGNAL_DWELL,
    "scroll": orchestrator_pb2.FEEDBACK_SIGNAL_SCROLL,
}  # fmt: skip
_THUMBS_OF = {number: name for name, number in THUMBS.items()}
_SIGNAL_OF = {number: name for name, number in SIGNALS.items()}


class CommandOut(Out):
    """A command that was recorded: its number, as the events that answer it name it, and the run as it is now."""

    run_id: str
    number: int
    run: RunOut


class ToolCallCancelOut(Out):
    """A cancel of a tool call that was recorded. What became of the call is told with its result, in the events."""

    run_id: str
    call_id: str
    number: int


class RunsCancelOut(Out):
    """How far it is, over all requests with its key. Not `done`: send the same request again."""

    matched_count: int
    requested_count: int
    done: bool


class FeedbackRecorded(Out):
    """What was recorded; `seq` is the number of its event in the run's thread."""

    feedback_id: str
    run_id: str
    seq: int


class FeedbackOut(Out):
    """What was recorded of a run, joined to what answered."""

    feedback_id: str
    run_id: str
    thread_id: str
    agent: str
    agent_version: str
    agent_digest: str
    model: str
    canary: bool
    experiment: str | None
    arm: str | None
    rating: int | None
    thumbs: Literal["up", "down"] | None
    text: str | None
    corrected_answer: str | None
    signal: str | None
    dwell_ms: int | None
    recorded_at: str


class FeedbackPage(Out):
    """Feedback, newest first. A page may be short, or empty, and not the last."""

    data: list[FeedbackOut]
    next_after: str | None


def command(run: orchestrator_pb2.Run, number: int) -> dict[str, Any]:
    """A command that was recorded."""
    return {"run_id": run.run_id, "number": number, "run": shapes.run(run)}


def feedback(message: admin_pb2.FeedbackEntry) -> dict[str, Any]:
    """What was recorded of a run."""
    return {
        "feedback_id": message.feedback_id,
        "run_id": message.run_id,
        "thread_id": message.thread_id,
        "agent": message.agent,
        "agent_version": message.agent_version,
        "agent_digest": message.agent_digest,
        "model": message.model,
        "canary": message.canary,
        "experiment": message.experiment or None,
        "arm": message.arm or None,
        "rating": message.rating or None,
        "thumbs": _THUMBS_OF.get(message.thumbs),
        "text": message.text or None,
        "corrected_answer": message.corrected_answer or None,
        "signal": _SIGNAL_OF.get(message.signal),
        "dwell_ms": message.dwell.ToMilliseconds() if message.HasField("dwell") else None,
        "recorded_at": shapes.rfc3339(message.recorded_at),
    }
