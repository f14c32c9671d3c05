"""AdminService."""

from collections.abc import Mapping
from typing import Any

from bulkhead.orchestrator.v1 import admin_pb2 as pb
from bulkhead.orchestrator.v1 import admin_pb2_grpc as rpc

from services.common.rpc.context import principal
from services.orchestrator.erasure import ADMIN, Erasing
from services.orchestrator.erasure_records import PARTS, ErasureRecord, Part
from services.orchestrator.feedback import Feedback, Wanted
from services.orchestrator.quota import Quotas
from services.orchestrator.servicer import page, page_token
from services.orchestrator.servicers.feedback import SIGNALS, THUMBS

_THUMBS_OF = {name: value for value, name in THUMBS.items()}
_SIGNAL_OF = {name: value for value, name in SIGNALS.items()}
_STATE = {True: pb.ERASURE_STATE_DONE, False: pb.ERASURE_STATE_PENDING}


def erasure_message(record: ErasureRecord) -> pb.Erasure:
    """A receipt as it travels."""
    message = pb.Erasure(
        erasure_id=record.ref.erasure_id, state=_STATE[record.done], subject_digest=record.digest,
        parts=[part_message(name, record.parts[name]) for name in PARTS],
    )  # fmt: skip
    message.created_at.FromMilliseconds(record.created_ms)
    if record.done:
        message.done_at.FromMilliseconds(record.done_ms)
    return message


def part_message(name: str, part: Part) -> pb.ErasurePart:
    """A service's part of a receipt."""
    message = pb.ErasurePart(service=name, state=_STATE[part.done], attempts=part.attempts, last_reason=part.reason)
    message.erased.extend(pb.ErasedCount(kind=kind, count=count) for kind, count in part.erased.items())
    if part.done:
        message.done_at.FromMilliseconds(part.done_ms)
    return message


def feedback_message(entry: Mapping[str, Any], at_ms: int) -> pb.FeedbackEntry:
    """What was recorded of a run, as it travels."""
    same = (
        "feedback_id", "run_id", "thread_id", "agent", "agent_version", "agent_digest", "model", "canary", "rating", "text",
        "corrected_answer", "experiment", "arm",
    )  # fmt: skip
    message = pb.FeedbackEntry(**{name: entry[name] for name in same if name in entry})
    message.thumbs, message.signal = _THUMBS_OF.get(entry.get("thumbs", ""), 0), _SIGNAL_OF.get(entry.get("signal", ""), 0)
    if entry.get("dwell_ms"):
        message.dwell.FromMilliseconds(entry["dwell_ms"])
    message.recorded_at.FromMilliseconds(at_ms)
    return message


class AdminServicer(rpc.AdminServiceServicer):
    """Quota, erasure and what users think."""

    def __init__(self, quotas: Quotas, erasing: Erasing, feedback: Feedback) -> None:
        self._quotas, self._erasing, self._feedback = quotas, erasing, feedback

    async def GetQuota(self, request, context):
        """What the caller's tenant uses of its tier."""
        caller = principal()
        caller.require("runs:read")
        quota = await self._quotas.of(caller)
        answer = pb.GetQuotaResponse(
            tier=quota.tier,
            concurrent_runs=pb.Allowance(used=quota.used.concurrent, limit=quota.concurrent_runs),
            queued_runs=pb.Allowance(used=quota.used.queued, limit=quota.queued_runs),
            delayed_runs=pb.Allowance(used=quota.used.delayed, limit=quota.delayed_runs),
        )
        if quota.task_seconds is not None:
            answer.task_time.FromNanoseconds(int(quota.task_seconds * 1e9))
        return answer

    async def ForgetSubject(self, request, context):
        """Begins an erasure."""
        return pb.ForgetSubjectResponse(
            erasure=erasure_message(await self._erasing.forget(principal(), request.user, request.idempotency_key))
        )

    async def GetErasure(self, request, context):
        """A receipt."""
        return pb.GetErasureResponse(erasure=erasure_message(await self._erasing.get(principal(), request.erasure_id)))

    async def ListFeedback(self, request, context):
        """A page of the tenant's feedback."""
        caller = principal()
        caller.require(ADMIN)
        size, position = page(request.page_size, request.page_token)
        since_ms = max(0, request.since.ToMilliseconds()) if request.HasField("since") else 0
        found, following = await self._feedback.listed(caller.tenant, Wanted(request.run_id, request.agent, since_ms), size, position)
        entries = [feedback_message(entry, at_ms) for entry, at_ms in found]
        return pb.ListFeedbackResponse(feedback=entries, next_page_token=page_token(following) if following else "")
