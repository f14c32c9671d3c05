"""Responses and Conversations in our own OpenAPI document."""

from typing import Any

from services.gateway.client_tools import FORMATS, MOST_TOOLS, NAME_PATTERN
from services.gateway.inputs import DETAILS, MOST_ID_CHARS
from services.gateway.surfaces.openai.schema import ERRORS as OPENAI_ERRORS
from services.gateway.surfaces.openai.schema import described
from services.gateway.surfaces.responses.input import PASSED_OVER

ERRORS = OPENAI_ERRORS


def _answer(text: str, kind: str, *required: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": text, **described(kind, *required)}}


_ITEM_ANSWER = {"type": "object", "required": ["id", "type"], "properties": {"id": {"type": "string"}, "type": {"type": "string"}}}
_response_fields = ("id", "created_at", "status", "model", "output", "conversation", "usage", "error", "incomplete_details")
RESPONSE = _answer("The response as it is now.", "response", *_response_fields)
RESPONSE_OR_EVENTS = _answer("The response, or its events with stream: true.", "response", *_response_fields)
RESPONSE_OR_EVENTS[200]["content"]["text/event-stream"] = {
    "schema": {"type": "object", "description": "Server-sent events with `type` and a rising `sequence_number`, without ids."}
}
RESPONSE_DELETED = _answer("Deleted.", "response", "id", "deleted")
ITEMS = _answer("A page of items.", "list", "data", "first_id", "last_id", "has_more")
ITEM: dict[int | str, dict[str, Any]] = {200: {"description": "An item.", "content": {"application/json": {"schema": _ITEM_ANSWER}}}}
CONVERSATION = _answer("The conversation.", "conversation", "id", "created_at", "metadata")
CONVERSATION_DELETED = _answer("Deleted.", "conversation.deleted", "id", "deleted")

_METADATA = {"type": ["object", "null"], "additionalProperties": {"type": "string"}, "description": "Labels, at most 16."}
_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": {"type": "string"}},
}
_IMAGE_PART = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"const": "input_image"},
        "image_url": {"type": ["string", "null"], "description": "A data: URL; nothing is fetched from an address."},
        "file_id": {"type": ["string", "null"], "description": "Id of a blob."},
        "detail": {"enum": [*DETAILS, None]},
    },
}
_FUNCTION_NAME = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_CALL_ID = {"type": "string", "minLength": 1, "maxLength": MOST_ID_CHARS}
_FUNCTION_CALL = {
    "type": "object",
    "required": ["type", "call_id", "name", "arguments"],
    "properties": {
        "type": {"const": "function_call"}, "call_id": _CALL_ID, "name": _FUNCTION_NAME, "arguments": {"type": "string"},
    },
}  # fmt: skip
_RESULT = {
    "type": "object",
    "required": ["type", "call_id", "output"],
    "properties": {
        "type": {"const": "function_call_output"},
        "call_id": _CALL_ID,
        "output": {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [_TEXT_PART, _IMAGE_PART]}}]},
    },
}
_DECISION = {
    "type": "object",
    "required": ["type", "approval_request_id", "approve"],
    "properties": {
        "type": {"const": "mcp_approval_response"},
        "approval_request_id": {"type": "string"},
        "approve": {"type": "boolean"},
        "reason": {"type": ["string", "null"]},
    },
}


def _body(required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {"requestBody": {"required": bool(required), "content": {"application/json": {"schema": schema}}}}


def _text(description: str) -> dict[str, Any]:
    return {"type": ["string", "null"], "description": description}


def _flag(description: str) -> dict[str, Any]:
    return {"type": ["boolean", "null"], "description": description}


_REFERENCE = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "type": {"const": "item_reference"},
        "id": {"type": "string", "description": "An item of what the response goes on from; adds nothing."},
    },
    "additionalProperties": False,
}
_PASSED = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"enum": list(PASSED_OVER)}},
    "description": "Passed over: items of an output that is sent back as a whole.",
}
_ITEM = {"anyOf": [_MESSAGE, _DECISION, _FUNCTION_CALL, _RESULT, _REFERENCE, _PASSED]}
_FUNCTION = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {
        "type": {"const": "function"},
        "name": _FUNCTION_NAME,
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"], "description": "JSON Schema of an object, at most 32 KiB."},
        "strict": {"type": ["boolean", "null"]},
    },
}
_FORMAT = {
    "type": ["object", "null"],
    "required": ["type"],
    "properties": {
        "type": {"enum": list(FORMATS)}, "name": _FUNCTION_NAME, "schema": {"type": "object"}, "strict": {"type": ["boolean", "null"]},
    },
    "description": "The form of the answer, at most 64 KiB; json_schema has a name and a schema.",
}  # fmt: skip
# Of hints.
_NAMED = "Without effect; named in bulkhead.warnings where it asks for something."
_CHOSEN = {"type": "object", "required": ["type", "name"], "properties": {"type": {"const": "function"}, "name": _FUNCTION_NAME}}
RESPONSE_BODY = _body(
    ["model", "input"],
    model={"type": "string", "description": "Name of an agent."},
    input={"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "maxItems": 1000, "items": _ITEM}]},
    tools={"type": ["array", "null"], "maxItems": MOST_TOOLS, "items": _FUNCTION, "description": "Functions that the client calls."},
    tool_choice={"anyOf": [{"enum": ["none", "auto", "required", None]}, _CHOSEN]},
    text={"type": ["object", "null"], "properties": {"format": _FORMAT, "verbosity": _text(_NAMED)}},
    instructions=_text("A system message before the input."),
    stream=_flag("Server-sent events instead of the response."),
    background=_flag("Answer at once; the response is read, or streamed, by its id."),
    store=_flag("false: deleted a day after the last response behind it."),
    previous_response_id=_text("The response to go on behind."),
    conversation={
        "anyOf": [{"type": ["string", "null"]}, {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}]
    },
    max_output_tokens={"type": ["integer", "null"], "minimum": 1, "description": "Of each model call."},
    max_tool_calls={"type": ["integer", "null"], "minimum": 1},
    temperature={"type": ["number", "null"], "minimum": 0, "maximum": 2},
    service_tier={"enum": ["auto", "default", "flex", "priority", "fast", None]},
    metadata=_METADATA,
    include={"type": ["array", "null"], "items": {"type": "string"}, "description": _NAMED},
    parallel_tool_calls=_flag(_NAMED),
    reasoning={"type": ["object", "null"], "description": _NAMED},
    stream_options={"type": ["object", "null"], "description": _NAMED},
    top_p={"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": _NAMED},
    truncation={"enum": ["auto", "disabled", None], "description": _NAMED},
)
CONVERSATION_BODY = _body([], metadata=_METADATA)
ITEMS_BODY = _body(["items"], items={"type": "array", "items": {"type": "object"}})
