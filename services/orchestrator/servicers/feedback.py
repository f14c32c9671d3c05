"""RunService.RecordFeedback."""

from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from opentelemetry import trace

from services.common.rpc.context import principal
from services.orchestrator.feedback import Feedback, Given
from services.orchestrator.servicers.control import ControlledRunServicer

THUMBS = {pb.THUMBS_UP: "up", pb.THUMBS_DOWN: "down"}
SIGNALS = {
    pb.FEEDBACK_SIGNAL_REGENERATE: "regenerate", pb.FEEDBACK_SIGNAL_EDIT: "edit", pb.FEEDBACK_SIGNAL_COPY: "copy",
    pb.FEEDBACK_SIGNAL_ABANDON: "abandon", pb.FEEDBACK_SIGNAL_CORRECTION: "correction", pb.FEEDBACK_SIGNAL_DWELL: "dwell",
    pb.FEEDBACK_SIGNAL_SCROLL: "scroll",
}  # fmt: skip


class JudgedRunServicer(ControlledRunServicer):
    """Runs that are judged, too."""

    def __init__(self, feedback: Feedback, *controlled: Any) -> None:
        """`controlled` as of ControlledRunServicer."""
        super().__init__(*controlled)
        self._feedback = feedback

    async def RecordFeedback(self, request, context):
        """Keeps what a user thinks of a run, or did with its answer."""
        caller = principal()
        caller.require("runs:write")
        given = Given(
            rating=request.rating, thumbs=THUMBS.get(request.thumbs, ""), text=request.text, corrected_answer=request.corrected_answer,
            signal=SIGNALS.get(request.signal, ""), dwell_ms=request.dwell.ToMilliseconds() if request.HasField("dwell") else 0,
        )  # fmt: skip
        span = trace.get_current_span().get_span_context()
        trace_id = f"{span.trace_id:032x}" if span.is_valid else ""
        feedback_id, seq = await self._feedback.record(caller, request.run_id, request.idempotency_key, given, trace_id)
        return pb.RecordFeedbackResponse(feedback_id=feedback_id, seq=seq)
