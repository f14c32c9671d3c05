"""The OpenAI-compatible routes in our own OpenAPI document."""

from typing import Any

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    400: "The request is not valid, or asks for what is not supported.", 401: "No valid API key.", 403: "A scope is missing.",
    404: "No such model.", 409: "Somebody else is at it, or the run was cancelled.", 413: "The body is too large.",
    415: "Unsupported media type.", 422: "The idempotency key was used with another body.", 429: "A limit or a budget is used up.",
    500: "Internal error.", 502: "An upstream failed.", 503: "Not available now.", 504: "Not done in time.",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}} for status, text in _STATUSES.items()
}


def described(kind: str, *required: str) -> dict[str, Any]:
    """The content of an answer that is an OpenAI object of this kind with these fields."""
    return {
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["object", *required], "properties": {"object": {"const": kind}}},
            }
        }
    }


_completion = described("chat.completion", "id", "created", "model", "choices", "usage")
_completion["content"]["text/event-stream"] = {"schema": {"type": "object", "description": "Chunks as server-sent events, then [DONE]."}}
COMPLETION: dict[int | str, dict[str, Any]] = {200: {"description": "The completion, or its chunks with stream: true.", **_completion}}
MODELS: dict[int | str, dict[str, Any]] = {200: {"description": "The agents as models.", **described("list", "data")}}
MODEL: dict[int | str, dict[str, Any]] = {200: {"description": "An agent as a model.", **described("model", "id", "created", "owned_by")}}

_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                    },
                },
            ]
        },
    },
}
CHAT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "messages"],
                    "properties": {
                        "model": {"type": "string", "description": "Name of an agent."},
                        "messages": {"type": "array", "minItems": 1, "maxItems": 1000, "items": _MESSAGE},
                        "stream": {"type": ["boolean", "null"]},
                        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
                        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
                        "max_tokens": {"type": ["integer", "null"], "minimum": 1},
                        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
                        "metadata": {
                            "type": ["object", "null"],
                            "additionalProperties": {"type": "string"},
                            "description": "thread_id names a session; on_disconnect: cancel ends the run with the connection.",
                        },
                    },
                }
            }
        },
    }
}
