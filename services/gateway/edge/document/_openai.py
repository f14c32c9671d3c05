"""Examples of what the routes in OpenAI's shape answer, by route, and of the probes."""

from collections.abc import Mapping
from typing import Any

_RUN, _THREAD = "run_7c9e6679742540de944be07fc1f90ae7", "support-4711"
_BEYOND = {"run_id": _RUN, "thread_id": _THREAD, "citations": [], "warnings": []}
_MODEL = {"id": "assistant", "object": "model", "created": 0, "owned_by": "bulkhead", "description": "Answers with sources."}
_COMPLETION = {
    "id": f"chatcmpl-{_RUN}", "object": "chat.completion", "created": 1769860800, "model": "assistant",
    "choices": [
        {
            "index": 0, "message": {"role": "assistant", "content": "It is 42.", "refusal": None, "annotations": []}, "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 412, "completion_tokens": 63, "total_tokens": 475},
    "bulkhead": _BEYOND,
}  # fmt: skip
_SAID = {
    "id": f"msg_{_RUN}.0", "type": "message", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": "It is 42.", "annotations": [], "logprobs": []}],
}  # fmt: skip
_ASKED = {
    "id": f"msg_{_RUN}.i0", "type": "message", "role": "user", "status": "completed",
    "content": [{"type": "input_text", "text": "What is 6 * 7?"}],
}  # fmt: skip
_RESPONSE = {
    "id": f"resp_{_RUN}", "object": "response", "created_at": 1769860800, "completed_at": 1769860802, "status": "completed", "error": None,
    "incomplete_details": None, "model": "assistant", "output": [_SAID], "conversation": {"id": f"conv_{_THREAD}"},
    "metadata": {"ticket": "4711"}, "previous_response_id": None, "parallel_tool_calls": True, "service_tier": "default",
    "background": None, "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "reasoning": None, "temperature": None,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": None, "truncation": "disabled",
    "usage": {
        "input_tokens": 412, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 63,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 475,
    },
    "bulkhead": {**_BEYOND, "approvals": [], "reason": None},
}  # fmt: skip
_CONVERSATION = {"id": f"conv_{_THREAD}", "object": "conversation", "created_at": 1769860800, "metadata": {"ticket": "4711"}}


def _items(*found: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"object": "list", "data": list(found), "first_id": found[0]["id"], "last_id": found[-1]["id"], "has_more": False}


ANSWERS: Mapping[str, Any] = {
    "POST /v1/chat/completions": _COMPLETION,
    "GET /v1/models": {"object": "list", "data": [_MODEL]},
    "GET /v1/models/{model}": _MODEL,
    "POST /v1/responses": _RESPONSE,
    "GET /v1/responses/{response_id}": _RESPONSE,
    "DELETE /v1/responses/{response_id}": {"id": f"resp_{_RUN}", "object": "response", "deleted": True},
    "POST /v1/responses/{response_id}/cancel": {**_RESPONSE, "status": "cancelled", "completed_at": None, "output": []},
    "GET /v1/responses/{response_id}/input_items": _items(_ASKED),
    "POST /v1/conversations": _CONVERSATION,
    "GET /v1/conversations/{conversation_id}": _CONVERSATION,
    "POST /v1/conversations/{conversation_id}": _CONVERSATION,
    "DELETE /v1/conversations/{conversation_id}": {"id": f"conv_{_THREAD}", "object": "conversation.deleted", "deleted": True},
    "GET /v1/conversations/{conversation_id}/items": _items(_SAID, _ASKED),
    "POST /v1/conversations/{conversation_id}/items": _items(_ASKED),
    "GET /v1/conversations/{conversation_id}/items/{item_id}": _SAID,
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": _CONVERSATION,
    "GET /health": {"status": "ok"},
    "GET /ready": {"status": "ready", "failing": {}, "config_refused": []},
}  # fmt: skip
