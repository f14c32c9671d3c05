"""The control, the approvals and the feedback of the fake orchestrator, as much of them as a projection shows."""

from collections import defaultdict
from typing import Any, TypeVar

from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc, approvals_pb2, approvals_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc

from services.common.errors import Conflict, FieldViolation, InvalidInput, NotFound
from services.common.rpc.context import principal

T = TypeVar("T")
# The version of each plan, and the one call that is at work in each run.
PLAN_VERSION, CALL_ID = 3, "t1"
OPEN = (pb.RUN_STATUS_QUEUED, pb.RUN_STATUS_RUNNING, pb.RUN_STATUS_WAITING)
_OUTCOMES = {"approve": approvals_pb2.APPROVAL_STATE_APPROVED, "reject": approvals_pb2.APPROVAL_STATE_REJECTED}


def page(items: list[T], request: Any) -> tuple[list[T], str]:
    """A page of a list; its token is the number of entries to leave out."""
    if request.page_token and not request.page_token.isdigit():
        raise InvalidInput.field("page_token", "is not a token of this list")
    start, size = int(request.page_token or 0), request.page_size or 100
    return items[start : start + size], str(start + size) if start + size < len(items) else ""


class FakeDesk:
    """What was asked of runs, and of people. `asked` holds every request that changes something."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.numbers: dict[str, int] = defaultdict(int)
        self.seen: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.approvals: dict[tuple[str, str], approvals_pb2.Approval] = {}
        self.feedback: list[tuple[str, admin_pb2.FeedbackEntry]] = []

    def number(self, run_id: str) -> int:
        """The number of the next command of a run."""
        self.numbers[run_id] += 1
        return self.numbers[run_id]

    def raise_approval(self, tenant: str, approval: approvals_pb2.Approval) -> None:
        """A run of the tenant asks."""
        approval.created_at.GetCurrentTime()
        approval.expires_at.FromSeconds(approval.created_at.seconds + 60)
        self.approvals[(tenant, approval.approval_id)] = approval

    def approval(self, approval_id: str) -> approvals_pb2.Approval:
        """Raises NotFound."""
        found = self.approvals.get((principal().tenant, approval_id))
        if found is None:
            raise NotFound("there is no such approval", reason="APPROVAL_NOT_FOUND")
        return found


class FakeControl(rpc.RunServiceServicer):
    """The part of RunService that changes runs at work. `log` is the FakeLog."""

    log: Any

    def _command(self, request: Any) -> tuple[Any, int]:
        self.log.desk.asked.append(request)
        run = self.log.run(request.run_id)
        if run.run.status not in OPEN:
            about = {"run_status": "cancelled", "thread_id": run.run.thread_id, "offer": "CreateRun"}
            raise Conflict("the run has ended", reason="RUN_ENDED", metadata=about)
        return run, self.log.desk.number(request.run_id)

    async def StopGeneration(self, request, context):
        """Ends the script. How it ends is nothing that a projection knows."""
        run, number = self._command(request)
        run.cancelled.set()
        return pb.StopGenerationResponse(run=run.run, number=number)

    async def SteerRun(self, request, context):
        """As the real one."""
        run, number = self._command(request)
        return pb.SteerRunResponse(run=run.run, number=number)

    async def UpdatePlan(self, request, context):
        """As the real one."""
        run, number = self._command(request)
        if request.version != PLAN_VERSION:
            raise Conflict("the plan has another version by now", reason="PLAN_CHANGED", metadata={"version": str(PLAN_VERSION)})
        return pb.UpdatePlanResponse(run=run.run, number=number)

    async def CancelToolCall(self, request, context):
        """As the real one."""
        _, number = self._command(request)
        if request.call_id != CALL_ID:
            raise NotFound("no tool call of this id is at work in the run", reason="TOOL_CALL_NOT_FOUND")
        return pb.CancelToolCallResponse(number=number)

    async def CancelRuns(self, request, context):
        """As the real one, for filters of threads and labels."""
        self.log.desk.asked.append(request)
        tenant, wanted = principal().tenant, request.filter
        seen = self.log.desk.seen[(tenant, request.idempotency_key)]
        runs = [r for (of, run_id), r in self.log.runs.items() if of == tenant and run_id not in seen and r.run.status in OPEN]
        fitting = [
            r for r in runs
            if wanted.thread_id in ("", r.run.thread_id) and wanted.metadata.items() <= dict(r.request.metadata).items()
        ]  # fmt: skip
        for run in fitting[: request.page_size or None]:
            seen.append(run.run.run_id)
            run.run.cancel_requested = True
            run.cancelled.set()
        done = not request.page_size or len(fitting) <= request.page_size
        return pb.CancelRunsResponse(matched_count=len(seen), requested_count=len(seen), done=done)

    async def RecordFeedback(self, request, context):
        """As the real one."""
        self.log.desk.asked.append(request)
        run = self.log.run(request.run_id).run
        feedback_id = f"fb_{len(self.log.desk.feedback)}"
        entry = admin_pb2.FeedbackEntry(
            feedback_id=feedback_id, run_id=run.run_id, thread_id=run.thread_id, agent=run.agent, agent_version="1", agent_digest="d",
            model="m", rating=request.rating, thumbs=request.thumbs, text=request.text, corrected_answer=request.corrected_answer,
            signal=request.signal,
        )  # fmt: skip
        if request.HasField("dwell"):
            entry.dwell.CopyFrom(request.dwell)
        entry.recorded_at.GetCurrentTime()
        self.log.desk.feedback.insert(0, (principal().tenant, entry))
        return pb.RecordFeedbackResponse(feedback_id=feedback_id, seq=self.log.thread(run.thread_id).last_seq + 1)


class FakeApprovals(approvals_pb2_grpc.ApprovalServiceServicer):
    """Approvals of a desk."""

    def __init__(self, desk: FakeDesk) -> None:
        self._desk = desk

    async def ListApprovals(self, request, context):
        """As the real one."""
        mine = [a for (tenant, _), a in self._desk.approvals.items() if tenant == principal().tenant]
        fitting = [
            a for a in reversed(mine)
            if request.run_id in ("", a.run_id) and request.thread_id in ("", a.thread_id)
            and request.state in (0, a.state) and (a.decidable or not request.decidable)
        ]  # fmt: skip
        some, token = page(fitting, request)
        return approvals_pb2.ListApprovalsResponse(approvals=some, next_page_token=token)

    async def GetApproval(self, request, context):
        """As the real one."""
        return approvals_pb2.GetApprovalResponse(approval=self._desk.approval(request.approval_id))

    async def DecideApproval(self, request, context):
        """As the real one, without asking who the caller is. Arguments with a field `wrong` do not fit the schema."""
        found = self._desk.approval(request.approval_id)
        self._desk.asked.append(request)
        if not found.decidable:
            first = {"verb": "approve", "decided_by": "bo", "decided_at_ms": "1", "state": "approved", "decided_reason": "fine"}
            raise Conflict("this was decided before", reason="ALREADY_DECIDED", metadata=first)
        if request.arguments_digest not in ("", found.arguments_digest):
            raise Conflict("others by now", reason="ARGUMENTS_CHANGED", metadata={"arguments_digest": found.arguments_digest})
        verb = request.WhichOneof("decision")
        if verb == "edit" and b"wrong" in request.edit.arguments_json:
            wrong = [FieldViolation("decision.edit.arguments_json/wrong", "does not fit: additionalProperties")]
            raise InvalidInput("the arguments do not fit the schema", reason="ARGUMENTS_INVALID", violations=wrong)
        decision = found.decisions.add(verb=verb, user=principal().user, reason=request.reason)
        decision.decided_at.GetCurrentTime()
        found.decidable = False
        if verb == "edit":
            found.arguments_json = request.edit.arguments_json
        if verb != "delegate":
            found.state = _OUTCOMES.get(verb, approvals_pb2.APPROVAL_STATE_ANSWERED)
        return approvals_pb2.DecideApprovalResponse(approval=found)


class FakeFeedback(admin_pb2_grpc.AdminServiceServicer):
    """The part of AdminService that lists feedback."""

    def __init__(self, desk: FakeDesk) -> None:
        self._desk = desk

    async def ListFeedback(self, request, context):
        """As the real one."""
        since = request.since.ToNanoseconds() if request.HasField("since") else 0
        fitting = [
            entry for tenant, entry in self._desk.feedback
            if tenant == principal().tenant and request.run_id in ("", entry.run_id) and request.agent in ("", entry.agent)
            and entry.recorded_at.ToNanoseconds() >= since
        ]  # fmt: skip
        some, token = page(fitting, request)
        return admin_pb2.ListFeedbackResponse(feedback=some, next_page_token=token)
