"""Human hands: the last rung of the ladder. The run ends, a person goes on in the conversation.

It is asked for by the model, with a tool that an agent may be given, or by the ladder where a run of an agent that names a target would
fail. Source: design page "governance", section Human approval.
"""

import orjson
from opentelemetry.metrics import get_meter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.orchestrator.agents import HAND_OFF
from services.orchestrator.ports import ToolDefinition, ToolOutcome
from services.orchestrator.turn import degradation
from services.orchestrator.turn.degradation import Concluded
from services.orchestrator.turn.state import PendingCall, RunStopped, Turn

FINISH_REASON = "handed_off"
MOST_REASON_CHARS = 500
MOST_SUMMARY_CHARS = 4_000
_SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {
            "type": "string", "minLength": 1, "maxLength": MOST_REASON_CHARS, "description": "Why a person is needed, in one sentence.",
        },
        "summary": {"type": "string", "maxLength": MOST_SUMMARY_CHARS, "description": "What the person should know to go on."},
    },
    "required": ["reason"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = ToolDefinition(
    HAND_OFF,
    "1",
    "Hands this conversation over to a person. Ends your work on it, so call nothing after it.",
    orjson.dumps(_SCHEMA),
    own=True,
)
# Ends that somebody has asked for: nobody has to go on.
_WANTED = frozenset({"TOOL_CALL_CANCELLED"})
_asked = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_handoffs_total", description="Runs that ended in human hands, by who asked: the model or the ladder."
)


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str = Field(min_length=1, max_length=MOST_REASON_CHARS)
    summary: str = Field("", max_length=MOST_SUMMARY_CHARS)


def called(turn: Turn, call: PendingCall) -> ToolOutcome | None:
    """What a call of the tool comes to; None for any other tool. Raises Concluded, which is how it works when it works."""
    target = turn.agent.degradation.hand_off
    if call.name != HAND_OFF or target is None:
        return None
    try:
        arguments = _Arguments.model_validate_json(call.arguments or "{}")
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()[:5])
        return ToolOutcome("failed", code="input.invalid", message=f"The arguments are not valid: {wrong}.")
    turn.writer.emit("tool_call_completed", {"call_id": call.call_id, "tool": call.name, "output": {"handed_off": True}, "duration_ms": 0})
    turn.state.pending = [pending for pending in turn.state.pending if pending.number != call.number]
    raise _handed_off(turn, arguments.reason, arguments.summary, "model")


def conclusion(turn: Turn, stop: RunStopped) -> Concluded | None:
    """How a run that was stopped ends where not with an error: as the ladder has decided, or in human hands; else None."""
    if isinstance(stop, Concluded):
        return stop
    if turn.agent.degradation.hand_off is None or stop.reason in _WANTED:
        return None
    return _handed_off(turn, stop.reason, stop.message, "ladder")


def told(turn: Turn, end: Concluded) -> None:
    """The events of such an end, in front of its text."""
    if end.finish_reason == FINISH_REASON:
        degradation.warn(turn, "handed_off", reason=end.handoff["reason"], user_message=end.message, target=end.handoff["target"])
        turn.writer.emit("handoff_requested", end.handoff)
        _asked.add(1, {"by": end.handoff["requested_by"]})
    else:
        degradation.warn(turn, "asked_to_rephrase", reason=end.reason, user_message=end.message)


def _handed_off(turn: Turn, reason: str, summary: str, by: str) -> Concluded:
    target = turn.agent.degradation.hand_off
    assert target is not None
    data = {
        "target": target.target, "label": target.label, "requested_by": by, "reason": reason, "summary": summary,
        "thread_id": turn.ref.thread_id, "run_id": turn.ref.run_id, "user": turn.principal.user,
    }  # fmt: skip
    return Concluded(reason if by == "ladder" else "HANDED_OFF", target.text.replace("{label}", target.label), FINISH_REASON, data)
