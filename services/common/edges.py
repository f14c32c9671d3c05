"""The call graph: who may call whom, with which methods, how long each may take, and whether it may be repeated.

This table is the single truth. Channels refuse what it does not allow; NetworkPolicies, AuthorizationPolicies and the
trace-edge test are checked against it. Source: design page "ownership".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Edge:
    """`caller` may call these `methods` of `grpc_service` at `callee`."""

    caller: str
    callee: str
    grpc_service: str
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """Default deadline of a method, None for a stream that outlives any; and how often a channel may send it again.

    Only calls that changed nothing are sent again, and only when the peer could not be reached (UNAVAILABLE without a
    status of ours).
    """

    timeout: timedelta | None
    resend: int = 0


_THREAD = "bulkhead.orchestrator.v1.ThreadService"
_RUN = "bulkhead.orchestrator.v1.RunService"
_AGENT = "bulkhead.orchestrator.v1.AgentService"
_ADMIN = "bulkhead.orchestrator.v1.AdminService"
_APPROVAL = "bulkhead.orchestrator.v1.ApprovalService"
_WEBHOOK = "bulkhead.orchestrator.v1.WebhookService"
_SCHEDULE = "bulkhead.orchestrator.v1.ScheduleService"
_BLOB = "bulkhead.orchestrator.v1.BlobService"
_HOOK = "bulkhead.orchestrator.v1.HookService"
_LLM = "bulkhead.llm.v1.LlmService"
_BATCH = "bulkhead.llm.v1.BatchService"
_TOOL = "bulkhead.tools.v1.ToolService"
_SESSION = "bulkhead.memory.v1.SessionService"
_MEMORY = "bulkhead.memory.v1.MemoryService"
_DOCUMENT = "bulkhead.memory.v1.DocumentService"

EDGES: tuple[Edge, ...] = (
    Edge("gateway", "orchestrator", _THREAD, ("CreateThread", "GetThread", "GetThreadSnapshot", "ListThreads")),
    Edge("gateway", "orchestrator", _THREAD, ("ForkThread", "RollbackThread", "DeleteThread")),
    Edge("gateway", "orchestrator", _RUN, ("CreateRun", "GetRun", "ListRuns", "WaitRun", "CancelRun", "StreamEvents")),
    Edge("gateway", "orchestrator", _RUN, ("SteerRun", "UpdatePlan", "StopGeneration", "CancelToolCall")),
    Edge("gateway", "orchestrator", _AGENT, ("ListAgents", "GetAgent")),
    Edge("gateway", "orchestrator", _WEBHOOK, ("CreateWebhook", "GetWebhook", "ListWebhooks", "DeleteWebhook", "RotateWebhookSecret")),
    Edge("gateway", "orchestrator", _APPROVAL, ("ListApprovals", "GetApproval", "DecideApproval")),
    Edge("gateway", "orchestrator", _WEBHOOK, ("ListDeliveries", "Redeliver")),
    Edge("gateway", "orchestrator", _SCHEDULE, ("CreateSchedule", "GetSchedule", "ListSchedules", "UpdateSchedule", "PauseSchedule")),
    Edge("gateway", "orchestrator", _SCHEDULE, ("ResumeSchedule", "DeleteSchedule", "ListScheduleTicks")),
    Edge("gateway", "orchestrator", _RUN, ("CancelRuns",)),
    Edge("gateway", "orchestrator", _RUN, ("RecordFeedback",)),
    Edge("gateway", "orchestrator", _ADMIN, ("GetQuota", "ForgetSubject", "GetErasure", "ListFeedback")),
    Edge("gateway", "orchestrator", _HOOK, ("CreateHook", "GetHook", "ListHooks", "DeleteHook", "RotateHookSecret", "AcceptHook")),
    Edge("gateway", "orchestrator", _BLOB, ("PutBlob", "GetBlob", "ReadBlob", "DeleteBlob", "SignBlob", "ReadSignedBlob")),
    Edge("gateway", "memory", _MEMORY, ("AddMemories", "SearchMemories", "GetMemory", "ListMemories", "DeleteMemory")),
    Edge("gateway", "memory", _DOCUMENT, ("IngestDocument", "ListDocuments", "DeleteDocument", "SearchDocuments")),
    Edge("gateway", "tool_executor", _TOOL, ("ListTools", "GetTool")),
    Edge("gateway", "llm_gateway", _LLM, ("ListModels", "GetModelHealth", "GetBudget")),
    Edge("orchestrator", "memory", _SESSION, ("Recall", "AppendTurns", "ResetSession", "ReplaceSession", "DeleteSession")),
    Edge("orchestrator", "memory", _MEMORY, ("AddMemories", "EraseSubject")),
    Edge("orchestrator", "llm_gateway", _LLM, ("Complete", "StreamComplete", "GetBudget", "EraseSubject")),
    Edge("orchestrator", "tool_executor", _TOOL, ("ListTools", "GetTool", "ExecuteTool", "GetToolCall", "CheckArguments")),
    Edge("orchestrator", "tool_executor", _TOOL, ("EraseSubject", "CancelToolCall")),
    Edge("tool_executor", "memory", _DOCUMENT, ("SearchDocuments",)),
    Edge("memory", "llm_gateway", _LLM, ("Embed", "Complete", "Rerank")),
    Edge("tool_executor", "llm_gateway", _LLM, ("Complete",)),
)

_READ = MethodPolicy(timedelta(seconds=10), resend=2)
_WRITE = MethodPolicy(timedelta(seconds=10))
_MODEL = MethodPolicy(timedelta(seconds=120))
# Of a blob's 25 MiB, for a client that takes or brings 220 KiB a second.
_CONTENT = MethodPolicy(timedelta(seconds=120))

METHODS: Mapping[str, MethodPolicy] = {
    f"/{_THREAD}/CreateThread": _WRITE,
    f"/{_THREAD}/GetThread": _READ,
    f"/{_THREAD}/GetThreadSnapshot": _READ,
    f"/{_THREAD}/ListThreads": _READ,
    f"/{_THREAD}/ForkThread": MethodPolicy(timedelta(seconds=25)),
    f"/{_THREAD}/RollbackThread": MethodPolicy(timedelta(seconds=25)),
    f"/{_THREAD}/DeleteThread": MethodPolicy(timedelta(seconds=25)),
    f"/{_RUN}/CreateRun": _WRITE,
    f"/{_RUN}/GetRun": _READ,
    f"/{_RUN}/ListRuns": _READ,
    f"/{_RUN}/WaitRun": MethodPolicy(timedelta(seconds=300)),
    # With `wait` it answers at the end of the run, as WaitRun does; whoever waits gives a deadline of their own.
    f"/{_RUN}/CancelRun": _WRITE,
    f"/{_RUN}/StopGeneration": _WRITE,
    f"/{_RUN}/CancelToolCall": _WRITE,
    f"/{_RUN}/SteerRun": _WRITE,
    f"/{_RUN}/UpdatePlan": _WRITE,
    # Watchers are bounded by heartbeats and a maximum age with a resumable cursor, not by a deadline.
    f"/{_RUN}/StreamEvents": MethodPolicy(None),
    f"/{_AGENT}/ListAgents": _READ,
    f"/{_AGENT}/GetAgent": _READ,
    f"/{_APPROVAL}/ListApprovals": _READ,
    f"/{_APPROVAL}/GetApproval": _READ,
    f"/{_APPROVAL}/DecideApproval": _WRITE,
    f"/{_WEBHOOK}/CreateWebhook": _WRITE,
    f"/{_WEBHOOK}/GetWebhook": _READ,
    f"/{_WEBHOOK}/ListWebhooks": _READ,
    f"/{_WEBHOOK}/DeleteWebhook": _WRITE,
    f"/{_WEBHOOK}/RotateWebhookSecret": _WRITE,
    f"/{_WEBHOOK}/ListDeliveries": _READ,
    f"/{_WEBHOOK}/Redeliver": _WRITE,
    f"/{_RUN}/RecordFeedback": _WRITE,
    f"/{_ADMIN}/GetQuota": _READ,
    f"/{_ADMIN}/ForgetSubject": _WRITE,
    f"/{_ADMIN}/GetErasure": _READ,
    f"/{_ADMIN}/ListFeedback": _READ,
    f"/{_SCHEDULE}/CreateSchedule": _WRITE,
    f"/{_SCHEDULE}/GetSchedule": _READ,
    f"/{_SCHEDULE}/ListSchedules": _READ,
    f"/{_SCHEDULE}/UpdateSchedule": _WRITE,
    f"/{_SCHEDULE}/PauseSchedule": _WRITE,
    f"/{_SCHEDULE}/ResumeSchedule": _WRITE,
    f"/{_SCHEDULE}/DeleteSchedule": _WRITE,
    f"/{_SCHEDULE}/ListScheduleTicks": _READ,
    f"/{_RUN}/CancelRuns": _WRITE,
    f"/{_HOOK}/CreateHook": _WRITE,
    f"/{_HOOK}/GetHook": _READ,
    f"/{_HOOK}/ListHooks": _READ,
    f"/{_HOOK}/DeleteHook": _WRITE,
    f"/{_HOOK}/RotateHookSecret": _WRITE,
    f"/{_HOOK}/AcceptHook": _WRITE,
    f"/{_BLOB}/PutBlob": _CONTENT,
    f"/{_BLOB}/GetBlob": _READ,
    f"/{_BLOB}/ReadBlob": _CONTENT,
    f"/{_BLOB}/DeleteBlob": _WRITE,
    f"/{_BLOB}/SignBlob": _READ,
    f"/{_BLOB}/ReadSignedBlob": _CONTENT,
    f"/{_LLM}/Complete": _MODEL,
    f"/{_LLM}/StreamComplete": _MODEL,
    f"/{_LLM}/Embed": MethodPolicy(timedelta(seconds=30), resend=1),
    f"/{_LLM}/Rerank": MethodPolicy(timedelta(seconds=30), resend=1),
    f"/{_LLM}/CountTokens": _READ,
    f"/{_LLM}/ListModels": _READ,
    f"/{_LLM}/GetModelHealth": _READ,
    f"/{_LLM}/GetBudget": _READ,
    f"/{_LLM}/EraseSubject": MethodPolicy(timedelta(seconds=60)),
    f"/{_BATCH}/CreateBatch": MethodPolicy(timedelta(seconds=30)),
    f"/{_BATCH}/GetBatch": _READ,
    f"/{_BATCH}/ListBatches": _READ,
    f"/{_BATCH}/CancelBatch": _WRITE,
    f"/{_BATCH}/ReadBatchResults": MethodPolicy(timedelta(seconds=120)),
    f"/{_TOOL}/ListTools": _READ,
    f"/{_TOOL}/GetTool": _READ,
    f"/{_TOOL}/ExecuteTool": MethodPolicy(timedelta(seconds=150)),
    f"/{_TOOL}/GetToolCall": _READ,
    f"/{_TOOL}/CancelToolCall": _WRITE,
    f"/{_TOOL}/EraseSubject": MethodPolicy(timedelta(seconds=60)),
    f"/{_TOOL}/CheckArguments": _READ,
    f"/{_SESSION}/AppendTurns": _WRITE,
    f"/{_SESSION}/GetSession": _READ,
    f"/{_SESSION}/ResetSession": _WRITE,
    f"/{_SESSION}/ReplaceSession": _WRITE,
    f"/{_SESSION}/DeleteSession": _WRITE,
    f"/{_SESSION}/Recall": _READ,
    f"/{_MEMORY}/AddMemories": MethodPolicy(timedelta(seconds=30)),
    f"/{_MEMORY}/SearchMemories": _READ,
    f"/{_MEMORY}/GetMemory": _READ,
    f"/{_MEMORY}/ListMemories": _READ,
    f"/{_MEMORY}/DeleteMemory": _WRITE,
    f"/{_MEMORY}/EraseSubject": MethodPolicy(timedelta(seconds=60)),
    f"/{_DOCUMENT}/IngestDocument": MethodPolicy(timedelta(seconds=120)),
    f"/{_DOCUMENT}/ListDocuments": _READ,
    f"/{_DOCUMENT}/DeleteDocument": MethodPolicy(timedelta(seconds=30)),
    f"/{_DOCUMENT}/SearchDocuments": _READ,
}

# Outside the edge table: a deadline is not asked of these.
NO_DEADLINE_NEEDED = frozenset({f"/{_RUN}/StreamEvents"})

# Whoever calls these need be nobody: what the request itself shows, a signature, is what it is judged by. A token that comes all the same
# is verified.
NO_PRINCIPAL_NEEDED = frozenset({f"/{_BLOB}/ReadSignedBlob", f"/{_HOOK}/AcceptHook"})


def allowed(caller: str, callee: str) -> frozenset[str]:
    """Full method paths that `caller` may use at `callee`."""
    return frozenset(
        f"/{edge.grpc_service}/{method}" for edge in EDGES if edge.caller == caller and edge.callee == callee for method in edge.methods
    )
