"""Examples of bodies: of the native API by the name of their model, of the others by their route."""

from collections.abc import Mapping
from typing import Any

BODIES: Mapping[str, Any] = {
    "ThreadCreate": {"thread_id": "support-4711", "metadata": {"ticket": "4711"}, "ttl_ms": 604800000},
    "ThreadFork": {"at": {"run_id": "run_7c9e6679742540de944be07fc1f90ae7", "step": 1}, "continue_run": True},
    "ThreadRollback": {"to": {"beginning": True}},
    "RunCreate": {
        "input": "How does a pod drain?", "agent": "assistant", "limits": {"deadline_ms": 60000, "max_steps": 10},
        "metadata": {"ticket": "4711"}, "on_busy": "enqueue", "tool_choice": "auto",
        "client_tools": [
            {"name": "pick_date", "description": "Asks the user for a day.", "parameters": {"type": "object", "properties": {}}}
        ],
    },
    "RunCancel": {"reason": "asked twice"},
    "RunStop": {},
    "RunSteer": {"text": "Only what changed since version 2."},
    "PlanUpdate": {"version": 1, "steps": [{"title": "look", "status": "done"}, {"title": "tell", "status": "pending"}]},
    "ToolCallCancel": {"continuation": "substitute", "result": {"value": 42}},
    "RunsCancel": {"filter": {"agent": "assistant", "statuses": ["queued"]}, "reason": "no longer needed"},
    "DocumentCreate": {"title": "Handbook", "text": "# Operations\n\nA pod drains within 25 s.", "document_id": "handbook"},
    "DocumentSearch": {"query": "How long does a pod drain?", "limit": 5},
    "MemoryCreate": {"text": "Prefers answers in German.", "importance": 0.8, "kind": "fact"},
    "MemorySearch": {"query": "language", "limit": 5},
    "AgentChat": {"user_input": "What is 6 * 7?", "session_id": "support-4711"},
    "ApprovalDecide": {"verb": "edit", "arguments": {"to": "bo@example.com"}, "reason": "another recipient"},
    "FeedbackCreate": {"run_id": "run_7c9e6679742540de944be07fc1f90ae7", "rating": 5, "thumbs": "up"},
    "ScheduleCreate": {
        "timing": {"cron": "0 9 * * MON-FRI", "time_zone": "Europe/Lisbon"}, "input": "What is new?", "name": "morning news",
        "agent": "assistant",
    },
    "ScheduleChange": {"overlap_policy": "queue", "expected_version": 1},
    "WebhookCreate": {"url": "https://example.com/hook", "event_types": ["run.finished", "run.failed"], "description": "ticket system"},
    "WebhookRotate": {"overlap_ms": 3600000},
    "HookCreate": {"agent": "assistant", "instructions": "Sort this ticket.", "description": "ticket system"},
    "HookRotate": {"overlap_ms": 3600000},
    "POST /v1/hooks/{hook}": {"type": "ticket.opened", "data": {"ticket": "4711"}},
    "POST /v1/blobs": {"any": "value"},
    "LinkCreate": {"lifetime_s": 600},
    "KeyCreate": {"scopes": ["runs:read", "runs:write"], "name": "ticket system", "expires_at": "2099-01-31T12:00:00Z"},
    "KeyUpdate": {"name": "ticket system, old"},
    "KeyRotate": {"overlap_ms": 3600000},
    "ErasureCreate": {"user": "zoe"},
    "POST /v1/chat/completions": {
        "model": "assistant", "messages": [{"role": "user", "content": "What is 6 * 7?"}], "metadata": {"thread_id": "support-4711"},
        "tools": [{"type": "function", "function": {"name": "pick_date", "parameters": {"type": "object", "properties": {}}}}],
    },
    "POST /v1/responses": {"model": "assistant", "input": "What is 6 * 7?", "metadata": {"ticket": "4711"}},
    "POST /v1/conversations": {"metadata": {"ticket": "4711"}},
    "POST /v1/conversations/{conversation_id}": {"metadata": {"ticket": "4711"}},
    "POST /v1/conversations/{conversation_id}/items": {"items": [{"type": "message", "role": "user", "content": "What is 6 * 7?"}]},
    "POST /ag-ui/{agent}": {
        "threadId": "support-4711", "runId": "run-1", "state": {}, "tools": [], "context": [], "forwardedProps": {},
        "messages": [{"id": "m1", "role": "user", "content": "What is 6 * 7?"}],
    },
}  # fmt: skip
