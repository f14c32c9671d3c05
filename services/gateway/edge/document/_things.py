"""Examples of what the native API answers, by the name of their model."""

from collections.abc import Mapping
from typing import Any

_AT, _LATER = "2026-01-31T12:00:00.000001Z", "2026-01-31T12:00:02.500000Z"
_RUN, _THREAD = "run_7c9e6679742540de944be07fc1f90ae7", "support-4711"
_DIGEST = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"


def _page(*items: Mapping[str, Any], after: str | None = None) -> Mapping[str, Any]:
    return {"data": list(items), "next_after": after}


USAGE = {
    "input_tokens": 412, "output_tokens": 63, "cached_input_tokens": 0, "reasoning_tokens": 0, "cost_microusd": 187, "estimated": False,
    "model_calls": 2, "tool_calls": 1,
}  # fmt: skip
CITATION = {
    "citation_id": "d1", "document_id": "handbook", "document_version": 3, "title": "Handbook", "heading": "Operations > Draining",
    "char_start": 1024, "char_end": 1310, "content_hash": _DIGEST,
}  # fmt: skip
THREAD = {
    "thread_id": _THREAD, "created_at": _AT, "last_seq": 9, "metadata": {"ticket": "4711"}, "parent_thread_id": None, "forked_at_seq": 0,
    "expires_at": None, "oldest_seq": 1,
}  # fmt: skip
RUN = {
    "run_id": _RUN, "thread_id": _THREAD, "agent": "assistant", "agent_version": "1", "status": "succeeded", "cancel_requested": False,
    "created_at": _AT, "started_at": _AT, "ended_at": _LATER, "output_text": "A pod drains within 25 s [d1].", "finish_reason": "stop",
    "error": None, "usage": USAGE, "citations": [CITATION], "attempt": 1, "first_seq": 1, "terminal_seq": 9, "queue_position": None,
    "expected_wait_ms": None, "start_at": None, "priority": 0, "rolled_back_seq": None, "parent_run_id": None, "experiment": None,
    "arm": None, "client_tool_calls": None, "metadata": {"ticket": "4711"},
}  # fmt: skip
APPROVAL = {
    "approval_id": f"{_RUN}/1/0", "kind": "tool_call", "state": "open", "run_id": _RUN, "thread_id": _THREAD, "requester": "ana",
    "call_id": "call_1_0", "tool": "send_mail", "tool_version": "1.0.0", "arguments": {"to": "bo@example.com"},
    "arguments_digest": _DIGEST, "input_schema": {"type": "object"}, "reason": "by_tool_always", "created_at": _AT, "expires_at": _LATER,
    "on_expiry": "reject", "approvers": {"users": ["bo"], "scopes": [], "requester": False, "delegated_by": []}, "four_eyes": True,
    "decisions": [], "decidable": True,
}  # fmt: skip
_DECIDED = {
    **APPROVAL, "state": "approved", "decidable": False,
    "decisions": [
        {
            "verb": "approve", "user": "bo", "reason": "known recipient", "decided_at": _LATER, "arguments_digest": _DIGEST,
            "delegated_to": None,
        }
    ],
}  # fmt: skip
SNAPSHOT = {
    "thread": THREAD, "resume_after": 9, "runs": [{**RUN, "input": [{"role": "user", "content": "How does a pod drain?"}]}],
    "approvals": [], "runs_after": None,
}  # fmt: skip
EVENT = {
    "seq": 3, "ts": _AT, "thread_id": _THREAD, "run_id": _RUN, "attempt": 1, "type": "message_delta",
    "data": {"text": "A pod", "message_id": f"{_RUN}/1"}, "provisional": True, "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "schema_version": 1,
}  # fmt: skip
_DOCUMENT = {
    "document_id": "handbook", "version": 3, "title": "Handbook", "content_type": "text/markdown", "chunk_count": 12,
    "size_bytes": 18231, "content_hash": _DIGEST, "created_at": _AT,
}  # fmt: skip
_MEMORY = {
    "memory_id": "mem_5d41402abc4b", "text": "Prefers answers in German.", "importance": 0.8, "kind": "fact", "session_id": _THREAD,
    "created_at": _AT, "expires_at": None, "score": 0.0,
}  # fmt: skip
_PASSAGE = {"text": "A pod drains within 25 s.", "citation": CITATION, "score": 0.031, "dense_rank": 1, "keyword_rank": 2}
_AGENT = {
    "name": "assistant", "version": "1", "description": "Answers with sources.", "model": "assistant-model", "tools": ["calculator"]
}  # fmt: skip
_TOOL = {
    "name": "calculator", "version": "1.0.0", "description": "Works out a sum.",
    "input_schema": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    "output_schema": None, "annotations": {"read_only": True, "destructive": False, "idempotent": True, "open_world": False},
    "required_scopes": [], "timeout_ms": 30000,
}  # fmt: skip
_TICK = {"tick_at": _AT, "result": "fired", "run_id": _RUN, "thread_id": _THREAD, "reason": None, "decided_at": _AT}
_SCHEDULE = {
    "schedule_id": "sched_9b74c989", "name": "morning news",
    "timing": {
        "cron": "0 9 * * MON-FRI", "interval_ms": None, "time_zone": "Europe/Lisbon", "start_at": None, "end_at": None, "jitter_ms": 0,
    },
    "agent": "assistant", "input": [{"role": "user", "content": "What is new?"}], "thread_policy": "new", "thread_id": None,
    "overlap_policy": "skip", "catch_up_policy": "last", "metadata": {}, "state": "active", "next_tick_at": _LATER, "created_at": _AT,
    "updated_at": _AT, "version": 1, "last_tick": _TICK,
}  # fmt: skip
_WEBHOOK = {
    "webhook_id": "wh_0cc175b9", "url": "https://example.com/hook", "event_types": ["run.finished", "run.failed"],
    "description": "ticket system", "created_at": _AT, "disabled_reason": None, "disabled_at": None, "earlier_secret_until": None,
}  # fmt: skip
_HOOK = {
    "hook_id": "hk_7cb67b82237d48768ebeb4a1daa18099", "agent": "assistant",
    "url": "/v1/hooks/assistant?hook_id=hk_7cb67b82237d48768ebeb4a1daa18099", "thread_id": None, "instructions": "Sort this ticket.",
    "description": "ticket system", "created_at": _AT, "earlier_secret_until": None,
}  # fmt: skip
_DELIVERY = {
    "delivery_id": "dl_92eb5ffe", "webhook_id": "wh_0cc175b9", "message_id": "msg_4a8a08f0", "event_type": "run.finished", "run_id": _RUN,
    "status": "delivered", "created_at": _AT, "next_attempt_at": None, "attempt_count": 1,
    "attempts": [{"started_at": _AT, "duration_ms": 84, "response_code": 204, "error": None}],
}  # fmt: skip
_FEEDBACK = {
    "feedback_id": "fb_8277e091", "run_id": _RUN, "thread_id": _THREAD, "agent": "assistant", "agent_version": "1",
    "agent_digest": _DIGEST, "model": "assistant-model", "canary": False, "experiment": None, "arm": None, "rating": 5, "thumbs": "up",
    "text": None, "corrected_answer": None, "signal": None, "dwell_ms": None, "recorded_at": _LATER,
}  # fmt: skip
_QUOTA = {
    "tier": "free", "concurrent_runs": {"used": 1, "limit": 2}, "queued_runs": {"used": 0, "limit": 10},
    "delayed_runs": {"used": 0, "limit": None}, "task_time_ms": 60000,
    "budgets": [
        {
            "scope": "user", "scope_id": "ana", "period": "month", "limit_microusd": 5000000, "spent_microusd": 187, "reserved_microusd": 0,
            "resets_at": "2026-02-01T00:00:00.000000Z",
        }
    ],
    "rate_limits": [
        {"scope": "user", "scope_id": "ana", "kind": "requests_per_minute", "limit": 60, "remaining": 59, "reset_after_ms": 1000}
    ],
}  # fmt: skip
_ERASURE = {
    "erasure_id": "er_e4da3b7f", "state": "pending", "subject_digest": _DIGEST, "created_at": _AT, "done_at": None,
    "parts": [
        {"service": "memory", "state": "done", "attempts": 1, "last_reason": None, "done_at": _LATER, "erased": {"memories": 12}},
        {"service": "llm_gateway", "state": "pending", "attempts": 1, "last_reason": "UNREACHABLE", "done_at": None, "erased": {}},
    ],
}  # fmt: skip
_KEY = {
    "key_id": "key_1679091c", "name": "ticket system", "user": "ana", "team": None, "tier": "free", "scopes": ["runs:read", "runs:write"],
    "hint": "x7Qa", "created_at": _AT, "expires_at": None, "blocked": False, "made_by": None, "earlier_secret_until": None,
}  # fmt: skip
_BLOB = {
    "blob_id": "blob_45c48cce2e2d7fbdea1afc51c7c6ad26", "mime_type": "image/png", "size": 18231, "sha256": _DIGEST, "name": "chart.png",
    "created_at": _AT, "thread_id": _THREAD, "expires_at": None,
}  # fmt: skip
_COMMAND = {"run_id": _RUN, "number": 1, "run": {**RUN, "status": "running", "ended_at": None, "output_text": "", "terminal_seq": 0}}

ANSWERS: Mapping[str, Any] = {
    "ThreadOut": THREAD,
    "ThreadPage": _page(THREAD),
    "DeletionOut": {"thread_id": _THREAD, "completed": False},
    "ForkOut": {"thread": {**THREAD, "thread_id": "support-4711-b", "parent_thread_id": _THREAD, "forked_at_seq": 9}, "run": None},
    "RollbackOut": {"thread": THREAD, "seq": 10},
    "RunOut": RUN,
    "RunPage": _page(RUN, after="eyJhZnRlciI6IDF9"),
    "CancelOut": {"run_id": _RUN, "cancel_requested": True, "run": RUN},
    "SnapshotOut": SNAPSHOT,
    "ReplayOut": {"thread_id": _THREAD, "events": [EVENT]},
    "DocumentOut": _DOCUMENT,
    "DocumentPage": _page(_DOCUMENT),
    "PassageList": {"data": [_PASSAGE], "warnings": []},
    "MemoryOut": _MEMORY,
    "MemoryPage": _page(_MEMORY),
    "MemoryList": {"data": [{**_MEMORY, "score": 0.83}], "warnings": []},
    "AgentOut": _AGENT,
    "AgentPage": _page(_AGENT),
    "ToolPage": _page(_TOOL),
    "ChatOut": {
        "result": RUN["output_text"], "session_id": _THREAD, "status": "succeeded", "run_id": _RUN, "citations": [CITATION], "usage": USAGE,
        "warnings": [], "latency_ms": 2500,
    },
    "ApprovalOut": _DECIDED,
    "ApprovalPage": _page(APPROVAL),
    "RunsCancelOut": {"matched_count": 3, "requested_count": 3, "done": True},
    "CommandOut": _COMMAND,
    "ToolCallCancelOut": {"run_id": _RUN, "call_id": "call_1_0", "number": 1},
    "FeedbackRecorded": {"feedback_id": "fb_8277e091", "run_id": _RUN, "seq": 10},
    "FeedbackPage": _page(_FEEDBACK),
    "ScheduleOut": _SCHEDULE,
    "SchedulePage": _page(_SCHEDULE),
    "TickPage": _page(_TICK),
    "WebhookOut": _WEBHOOK,
    "WebhookPage": _page(_WEBHOOK),
    "WebhookSecretOut": {**_WEBHOOK, "secret": "whsec_C2FtcGxlIHNlY3JldCBvZiBhbiBlbmRwb2ludA=="},
    "HookOut": _HOOK,
    "HookPage": _page(_HOOK),
    "HookSecretOut": {**_HOOK, "secret": "whsec_C2FtcGxlIHNlY3JldCBvZiBhbiBlbmRwb2ludA=="},
    "HookTaken": {"run_id": _RUN, "thread_id": _THREAD, "created": True},
    "DeliveryOut": _DELIVERY,
    "DeliveryPage": _page(_DELIVERY),
    "KeyOut": _KEY,
    "KeyPage": _page(_KEY),
    "KeySecretOut": {**_KEY, "secret": "bh_example"},
    "BlobOut": _BLOB,
    "LinkOut": {"url": "/v1/blobs/links/WyJhY21lIl0.3q2-7w", "expires_at": _LATER},
    "QuotaOut": _QUOTA,
    "ErasureOut": _ERASURE,
}  # fmt: skip
