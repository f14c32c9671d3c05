"""ApprovalService."""

from bulkhead.orchestrator.v1 import approvals_pb2 as pb
from bulkhead.orchestrator.v1 import approvals_pb2_grpc as rpc

from services.common.errors import InvalidInput
from services.common.rpc.context import principal
from services.orchestrator.accepting import checked_id
from services.orchestrator.approvals.deciding import Choice, Deciding, Seen, state_of
from services.orchestrator.approvals.records import OUTCOME_UNKNOWN, TOOL_CALL, Decision
from services.orchestrator.servicer import page, page_token

READ, WRITE = "approvals:read", "approvals:write"
MOST_ID_CHARS = 200
_KINDS = {TOOL_CALL: pb.APPROVAL_KIND_TOOL_CALL, OUTCOME_UNKNOWN: pb.APPROVAL_KIND_TOOL_OUTCOME_UNKNOWN}
_STATES = {
    "open": pb.APPROVAL_STATE_OPEN, "approved": pb.APPROVAL_STATE_APPROVED, "rejected": pb.APPROVAL_STATE_REJECTED,
    "expired": pb.APPROVAL_STATE_EXPIRED, "cancelled": pb.APPROVAL_STATE_CANCELLED, "answered": pb.APPROVAL_STATE_ANSWERED,
}  # fmt: skip
_NAMES = {number: name for name, number in _STATES.items()}


def approval_message(seen: Seen) -> pb.Approval:
    """An interrupt as it travels."""
    found = seen.interrupt
    who = found.who
    message = pb.Approval(
        approval_id=found.interrupt_id, kind=_KINDS[found.kind], state=_STATES[state_of(seen)], run_id=found.run_id,
        thread_id=found.thread_id, requester=found.user, call_id=found.call_id, tool=found.tool, tool_version=found.version,
        arguments_json=found.arguments.encode(), arguments_digest=found.digest, input_schema_json=found.schema.encode(),
        reason=found.reason, on_expiry=found.on_expiry, four_eyes=found.four_eyes, decidable=seen.decidable,
        approvers=pb.Approvers(
            users=who.users, scopes=who.scopes, requester=who.requester and not found.four_eyes, delegated_by=who.barred
        ),
        decisions=[_decision(decision) for decision in found.decisions],
    )  # fmt: skip
    message.created_at.FromMilliseconds(found.created_ms)
    message.expires_at.FromMilliseconds(found.expires_ms)
    return message


def _decision(decision: Decision) -> pb.ApprovalDecision:
    message = pb.ApprovalDecision(
        verb=decision.verb, user=decision.user, reason=decision.reason, arguments_digest=decision.digest, delegated_to=decision.to
    )
    message.decided_at.FromMilliseconds(decision.at_ms)
    return message


def _choice(request: pb.DecideApprovalRequest) -> Choice:
    verb, content, to = request.WhichOneof("decision") or "", b"", ""
    if verb == "edit":
        content = request.edit.arguments_json
    elif verb == "delegate":
        kind = request.delegate.WhichOneof("to") or ""
        to = f"{kind}:{getattr(request.delegate, kind)}" if kind else ""
    elif verb == "outcome":
        answer = request.outcome.WhichOneof("answer") or ""
        verb, content = answer.removesuffix("_json"), request.outcome.done_json
        if answer and answer != "done_json" and not getattr(request.outcome, answer):
            raise InvalidInput.field(f"decision.outcome.{answer}", "must be true")
    return Choice(verb, content, to, request.reason, request.idempotency_key, request.arguments_digest)


def _id(value: str) -> str:
    if not value or len(value) > MOST_ID_CHARS or "/" not in value:
        raise InvalidInput.field("approval_id", "must be the id of an approval")
    return value


class ApprovalServicer(rpc.ApprovalServiceServicer):
    """Interrupts and decisions on them."""

    def __init__(self, deciding: Deciding) -> None:
        self._deciding = deciding

    async def ListApprovals(self, request, context):
        """Those that the caller may decide or asked for."""
        caller = principal()
        caller.require(READ)
        size, before = page(request.page_size, request.page_token)
        seen, following = await self._deciding.list_(
            caller, run_id=checked_id("run_id", request.run_id) if request.run_id else "",
            thread_id=checked_id("thread_id", request.thread_id) if request.thread_id else "",
            state=_NAMES.get(request.state, ""), decidable=request.decidable, before=before, size=size,
            weigh=lambda one: approval_message(one).ByteSize(),
        )  # fmt: skip
        token = page_token(following) if following else ""
        return pb.ListApprovalsResponse(approvals=[approval_message(one) for one in seen], next_page_token=token)

    async def GetApproval(self, request, context):
        """One interrupt."""
        caller = principal()
        caller.require(READ)
        return pb.GetApprovalResponse(approval=approval_message(await self._deciding.get(caller, _id(request.approval_id))))

    async def DecideApproval(self, request, context):
        """Decides an interrupt."""
        caller = principal()
        caller.require(WRITE)
        seen = await self._deciding.decide(caller, _id(request.approval_id), _choice(request))
        return pb.DecideApprovalResponse(approval=approval_message(seen))
