"""The AG-UI route in our own OpenAPI document."""

from typing import Any

from services.gateway.client_tools import MOST_TOOLS
from services.gateway.surfaces.native.models import ID_PATTERN

_ERROR = {
    "type": "object",
    "description": "The event that tells of errors in the protocol.",
    "required": ["type", "message", "code", "metadata"],
    "properties": {
        "type": {"const": "RUN_ERROR"}, "message": {"type": "string"}, "code": {"type": "string"}, "metadata": {"type": "object"},
    },
}  # fmt: skip
_STATUSES = {
    400: "The request is not valid.", 401: "No valid API key.", 403: "A scope is missing.", 404: "No such agent or thread.",
    409: "The thread waits for answers, somebody has answered before, or the run is no other's.", 413: "The body is too large.",
    415: "Unsupported media type.", 422: "The body is not valid, or asks for what is not supported.", 429: "A limit is used up.",
    500: "Internal error.", 502: "An upstream failed.", 503: "Not available now.", 504: "Not done in time.",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}} for status, text in _STATUSES.items()
}
_STREAM = {"schema": {"type": "object", "description": "One AG-UI 1.0 event in each server-sent event, from RUN_STARTED on."}}
ANSWERS: dict[int | str, dict[str, Any]] = {200: {"description": "The events of the run.", "content": {"text/event-stream": _STREAM}}}

_ID = {"type": "string", "pattern": ID_PATTERN}
_TEXT = {"type": "string"}
_OPEN_OBJECT = {"type": "object"}
_MESSAGE = {
    "type": "object",
    "required": ["id", "role"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 512},
        "role": {"enum": ["developer", "system", "assistant", "user", "tool", "activity", "reasoning"]},
        "content": {"description": "A text, a list of parts (user, tool) or an object (activity)."},
        "toolCalls": {"type": "array", "items": _OPEN_OBJECT},
        "toolCallId": _TEXT,
        "activityType": _TEXT,
    },
}
_ANSWER = {
    "type": "object",
    "required": ["interruptId", "status"],
    "properties": {
        "interruptId": _TEXT,
        "status": {"enum": ["resolved", "cancelled"]},
        "payload": {"description": "With `resolved`: what the interrupt's responseSchema describes."},
    },
}
RUN_INPUT = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["threadId", "runId", "messages"],
                    "properties": {
                        "threadId": _ID,
                        "runId": {**_ID, "description": "Asked for again, the run goes on where it stands."},
                        "protocolVersion": _TEXT,
                        "parentRunId": _ID,
                        "state": {"type": "object", "description": "As the run before left it; other keys are refused."},
                        "messages": {"type": "array", "maxItems": 1000, "items": _MESSAGE},
                        "tools": {
                            "type": ["array", "null"],
                            "maxItems": MOST_TOOLS,
                            "description": "Tools that the application runs, each {name, description, parameters: JSON Schema}.",
                        },
                        "context": {
                            "type": "array",
                            "maxItems": 100,
                            "items": {
                                "type": "object",
                                "required": ["description", "value"],
                                "properties": {"description": _TEXT, "value": _TEXT},
                            },
                        },
                        "forwardedProps": {"description": "bulkhead.onBusy and bulkhead.onDisconnect; else without effect."},
                        "resume": {"type": "array", "maxItems": 100, "items": _ANSWER},
                    },
                }
            }
        },
    }
}
