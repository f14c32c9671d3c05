"""The OpenAI-compatible routes in our own OpenAPI document."""

from typing import Any

from services.gateway.client_tools import FORMATS, MOST_TOOLS, NAME_PATTERN
from services.gateway.inputs import DETAILS, MOST_ID_CHARS

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


def _named(name: str, **fields: Any) -> dict[str, Any]:
    """A part of a message of this type."""
    return {"type": "object", "required": ["type", name], "properties": {"type": {"const": name}, name: fields or {"type": "string"}}}


_FUNCTION_NAME = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_URL = {"type": "string", "description": "A data: URL; nothing is fetched from an address."}
_IMAGE = {"type": "object", "required": ["url"], "properties": {"url": _URL, "detail": {"enum": [*DETAILS, None]}}}
_CALL = {
    "type": "object",
    "required": ["id", "function"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": MOST_ID_CHARS},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": _FUNCTION_NAME, "arguments": {"type": "string"}},
        },
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                {"type": ["string", "null"]},
                {"type": "array", "items": {"anyOf": [_named("text"), _named("refusal"), _named("image_url", **_IMAGE)]}},
            ],
            "description": "A text or its parts; image_url with role user, null with the role assistant alone.",
        },
        "tool_calls": {"type": ["array", "null"], "items": _CALL, "description": "With role assistant: what it asked the client to call."},
        "tool_call_id": {"type": ["string", "null"], "description": "With role tool: the call that gave the content."},
    },
}
_FUNCTION = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _FUNCTION_NAME,
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"], "description": "JSON Schema of an object, at most 32 KiB."},
        "strict": {"type": ["boolean", "null"]},
    },
}
_TOOLS = {
    "type": ["array", "null"],
    "maxItems": MOST_TOOLS,
    "items": {"type": "object", "required": ["type", "function"], "properties": {"type": {"const": "function"}, "function": _FUNCTION}},
    "description": "Functions that the client calls; the agent's own tools run on the server.",
}
_CHOSEN = {"type": "object", "required": ["name"], "properties": {"name": _FUNCTION_NAME}}
_TOOL_CHOICE = {
    "anyOf": [
        {"enum": ["none", "auto", "required", None]},
        {"type": "object", "required": ["type", "function"], "properties": {"type": {"const": "function"}, "function": _CHOSEN}},
    ]
}
_SCHEMA_OF_ANSWER = {
    "type": "object",
    "required": ["name", "schema"],
    "properties": {"name": _FUNCTION_NAME, "schema": {"type": "object"}, "strict": {"type": ["boolean", "null"]}},
}
_RESPONSE_FORMAT = {
    "type": ["object", "null"],
    "required": ["type"],
    "properties": {"type": {"enum": list(FORMATS)}, "json_schema": _SCHEMA_OF_ANSWER},
    "description": "The form of the answer; at most 64 KiB.",
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
                        "tools": _TOOLS,
                        "tool_choice": _TOOL_CHOICE,
                        "response_format": _RESPONSE_FORMAT,
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
