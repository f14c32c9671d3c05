"""What approvals answer: the models of OpenAPI, and protos as JSON objects."""

from typing import Any, Literal

import orjson
from bulkhead.orchestrator.v1 import approvals_pb2 as pb

from services.gateway.surfaces.native.approvals_models import ApprovalDecide
from services.gateway.surfaces.native.outputs import Out
from services.gateway.surfaces.native.shapes import rfc3339

KINDS = {pb.APPROVAL_KIND_TOOL_CALL: "tool_call", pb.APPROVAL_KIND_TOOL_OUTCOME_UNKNOWN: "outcome_unknown"}
STATES = {
    "open": pb.APPROVAL_STATE_OPEN, "approved": pb.APPROVAL_STATE_APPROVED, "rejected": pb.APPROVAL_STATE_REJECTED,
    "expired": pb.APPROVAL_STATE_EXPIRED, "cancelled": pb.APPROVAL_STATE_CANCELLED, "answered": pb.APPROVAL_STATE_ANSWERED,
}  # fmt: skip
_STATE_OF = {number: name for name, number in STATES.items()}


class ApproversOut(Out):
    """Who may decide; `requester` is the user of the run."""

    users: list[str]
    scopes: list[str]
    requester: bool
    delegated_by: list[str]


class DecisionOut(Out):
    """One thing that somebody did with an approval; `user` is null where the time decided."""

    verb: str
    user: str | None
    reason: str
    decided_at: str
    arguments_digest: str
    delegated_to: str | None


class ApprovalOut(Out):
    """What a run asks of people before it goes on."""

    approval_id: str
    kind: Literal["tool_call", "outcome_unknown"]
    state: Literal["open", "approved", "rejected", "expired", "cancelled", "answered"]
    run_id: str
    thread_id: str
    requester: str
    call_id: str
    tool: str
    tool_version: str
    arguments: Any
    arguments_digest: str
    input_schema: Any
    reason: str
    created_at: str
    expires_at: str
    on_expiry: str
    approvers: ApproversOut
    four_eyes: bool
    decisions: list[DecisionOut]
    decidable: bool


class ApprovalPage(Out):
    """Approvals, newest first. A page may be short, or empty, and not the last."""

    data: list[ApprovalOut]
    next_after: str | None


def approval(message: pb.Approval) -> dict[str, Any]:
    """What a run asks. Arguments and schema are passed on as they are kept: their digest is over these very digits."""
    who = message.approvers
    return {
        "approval_id": message.approval_id,
        "kind": KINDS.get(message.kind, "tool_call"),
        "state": _STATE_OF.get(message.state, "open"),
        "run_id": message.run_id,
        "thread_id": message.thread_id,
        "requester": message.requester,
        "call_id": message.call_id,
        "tool": message.tool,
        "tool_version": message.tool_version,
        "arguments": orjson.Fragment(message.arguments_json or b"{}"),
        "arguments_digest": message.arguments_digest,
        "input_schema": orjson.Fragment(message.input_schema_json or b"{}"),
        "reason": message.reason,
        "created_at": rfc3339(message.created_at),
        "expires_at": rfc3339(message.expires_at),
        "on_expiry": message.on_expiry,
        "approvers": {
            "users": list(who.users), "scopes": list(who.scopes), "requester": who.requester, "delegated_by": list(who.delegated_by),
        },
        "four_eyes": message.four_eyes,
        "decisions": [_decision(one) for one in message.decisions],
        "decidable": message.decidable,
    }  # fmt: skip


def _decision(message: pb.ApprovalDecision) -> dict[str, Any]:
    return {
        "verb": message.verb,
        "user": message.user or None,
        "reason": message.reason,
        "decided_at": rfc3339(message.decided_at),
        "arguments_digest": message.arguments_digest,
        "delegated_to": message.delegated_to or None,
    }


def decide_request(approval_id: str, body: ApprovalDecide, key: str) -> pb.DecideApprovalRequest:
    """A decision as it travels."""
    asked = pb.DecideApprovalRequest(
        approval_id=approval_id, reason=body.reason, idempotency_key=key, arguments_digest=body.arguments_digest or ""
    )
    match body.verb:
        case "approve":
            asked.approve.SetInParent()
        case "reject":
            asked.reject.SetInParent()
        case "edit":
            asked.edit.arguments_json = orjson.dumps(body.arguments)
        case "delegate":
            assert body.to is not None
            if body.to.user is not None:
                asked.delegate.user = body.to.user
            else:
                asked.delegate.scope = body.to.scope or ""
        case "done":
            asked.outcome.done_json = orjson.dumps(body.result)
        case verb:
            setattr(asked.outcome, verb, True)
    return asked
