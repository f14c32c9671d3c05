"""What runs ask of people, as AG-UI's interrupts, and the answers of a client as decisions."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import approvals_pb2 as pb

from services.common.errors import Conflict
from services.gateway.refusals import InvalidBody

OUTCOME_UNKNOWN = "outcome_unknown"
MOST_REASON_CHARS = 1_000
# Every entry of the payload, by what is asked.
_OF_CALLS = frozenset({"approved", "editedArgs", "reason", "argumentsDigest"})
_OF_OUTCOMES = frozenset({"outcome", "result", "reason"})
_OUTCOMES = ("done", "failed", "retry", "cancel_run")
_REASON = {"type": "string", "maxLength": MOST_REASON_CHARS}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One entry of `resume`. `where` is its place in the body; `payload` None where the interrupt was abandoned."""

    where: str
    interrupt_id: str
    payload: Mapping[str, Any] | None


def shown(data: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    """An interrupt of the log as RUN_FINISHED carries it; `call_id` is the tool call as the client knows it."""
    unknown = data.get("kind") == OUTCOME_UNKNOWN
    tool = str(data.get("tool", ""))
    about = {name: data[name] for name in ("tool", "version", "arguments_digest", "on_expiry", "four_eyes", "approvers") if name in data}
    return {
        "id": str(data["interrupt_id"]),
        "reason": "bulkhead:outcome_unknown" if unknown else "tool_call",
        "message": f"What became of the call of {tool}? Nobody knows whether it took effect." if unknown else f"May {tool} be called?",
        "toolCallId": call_id,
        "responseSchema": _outcome_schema() if unknown else _approval_schema(data.get("schema")),
        "expiresAt": _moment(int(data.get("expires_at_ms", 0))),
        "metadata": {"bulkhead": {**about, "asked_because": data.get("reason", "")}},
    }


def _approval_schema(of_tool: Any) -> dict[str, Any]:
    edited = {**(of_tool if isinstance(of_tool, dict) else {}), "description": "Instead of all arguments that were proposed."}
    properties = {"approved": {"type": "boolean"}, "editedArgs": edited, "reason": _REASON, "argumentsDigest": _DIGEST}
    return {"type": "object", "properties": properties, "required": ["approved"], "additionalProperties": False}


def _outcome_schema() -> dict[str, Any]:
    properties = {"outcome": {"enum": list(_OUTCOMES)}, "result": {"description": "With `done`: what the call gave."}, "reason": _REASON}
    return {"type": "object", "properties": properties, "required": ["outcome"], "additionalProperties": False}


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decision(answer: Answer, asked: Mapping[str, Any], run_name: str) -> pb.DecideApprovalRequest:
    """What an answer decides. Abandoned: the call is not made, and where its outcome is unknown nothing is claimed and the run ends.

    The same answer of the same runId is one decision. Raises InvalidBody.
    """
    key = hashlib.sha256("\0".join((run_name, answer.interrupt_id)).encode()).hexdigest()
    request = pb.DecideApprovalRequest(approval_id=answer.interrupt_id, idempotency_key=f"ag-ui:{key}")
    unknown = asked.get("kind") == OUTCOME_UNKNOWN
    if answer.payload is None:
        request.reason = "The user left it unanswered."
        if unknown:
            request.outcome.cancel_run = True
        else:
            request.reject.SetInParent()
        return request
    where, payload = f"{answer.where}.payload", answer.payload
    for name in payload:
        if name not in (_OF_OUTCOMES if unknown else _OF_CALLS):
            raise InvalidBody.field(f"{where}.{name[:64]}", "is nothing that this interrupt asks for")
    request.reason = _reason(where, payload)
    (_outcome if unknown else _approval)(where, payload, request)
    return request


def _reason(where: str, payload: Mapping[str, Any]) -> str:
    reason = payload.get("reason", "")
    if not isinstance(reason, str) or len(reason) > MOST_REASON_CHARS:
        raise InvalidBody.field(f"{where}.reason", f"must be a string of at most {MOST_REASON_CHARS} characters")
    return reason


def _approval(where: str, payload: Mapping[str, Any], request: pb.DecideApprovalRequest) -> None:
    approved, edited, digest = payload.get("approved"), payload.get("editedArgs"), payload.get("argumentsDigest", "")
    if not isinstance(approved, bool):
        raise InvalidBody.field(f"{where}.approved", "must be a boolean")
    if edited is not None and (not isinstance(edited, dict) or not approved):
        raise InvalidBody.field(f"{where}.editedArgs", "must be an object, and goes with approved: true")
    if not isinstance(digest, str) or (digest and (len(digest) != 64 or digest.strip("0123456789abcdef"))):
        raise InvalidBody.field(f"{where}.argumentsDigest", "must be 64 hexadecimal digits")
    request.arguments_digest = digest
    if not approved:
        request.reject.SetInParent()
    elif edited is not None:
        request.edit.arguments_json = orjson.dumps(edited)
    else:
        request.approve.SetInParent()


def _outcome(where: str, payload: Mapping[str, Any], request: pb.DecideApprovalRequest) -> None:
    outcome = payload.get("outcome")
    if outcome not in _OUTCOMES:
        raise InvalidBody.field(f"{where}.outcome", f"must be one of {', '.join(_OUTCOMES)}")
    if ("result" in payload) != (outcome == "done"):
        raise InvalidBody.field(f"{where}.result", "goes with the outcome done, and only with it")
    if outcome == "done":
        request.outcome.done_json = orjson.dumps(payload["result"])
    else:
        setattr(request.outcome, str(outcome), True)


def check_repeated(request: pb.DecideApprovalRequest, known: Mapping[str, Any]) -> None:
    """Raises Conflict where an interrupt that is answered was answered otherwise than `request` would; an answer may be sent again."""
    verb = request.WhichOneof("decision")
    if verb == "outcome":
        answer = request.outcome.WhichOneof("answer") or ""
        verb = "done" if answer == "done_json" else answer
    same = known.get("verb") == verb
    if same and verb == "edit":
        same = orjson.loads(request.edit.arguments_json) == known.get("arguments")
    if not same:
        names = {"verb": "verb", "decided_by": "by", "decided_reason": "reason", "state": "outcome"}
        first = {name: str(known[told]) for name, told in names.items() if known.get(told)}
        raise Conflict("this was decided before, and otherwise", reason="ALREADY_DECIDED", metadata=first)
