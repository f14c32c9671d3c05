"""What a response shows of its request: out of the acceptance in the log, and of what that does not tell out of a label of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway.surfaces.native.models import MAX_LABELS

# Label of the run that keeps what only the request says. It goes with the caller's own, where these leave room.
LABEL = "bulkhead.response"
_NUMBERS = ("max_output_tokens", "max_tool_calls", "temperature")
_NOTHING: Mapping[str, Any] = {
    "background": False, "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "previous_response_id": None,
    "temperature": None, "tools": [], "tool_choice": "auto",
}  # fmt: skip


def labels_with(labels: Mapping[str, str], said: Mapping[str, Any]) -> Mapping[str, str]:
    """`labels` of a run with what `said` says; without it where they are as many as there may be, or it says nothing."""
    told = {name: value for name, value in said.items() if value not in (None, False)}
    if not told or len(labels) >= MAX_LABELS:
        return labels
    return {**labels, LABEL: orjson.dumps(told).decode()}


def asked_of(run: pb.Run) -> dict[str, Any]:
    """What is known of the request of a run without its log. `instructions` is not None where there are any."""
    labels = dict(run.metadata)
    found = {**_NOTHING, "metadata": None, "text": {"format": {"type": "text"}}}
    told = _label(labels.pop(LABEL, ""))
    found["metadata"] = labels or None
    for name in _NUMBERS:
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    if isinstance(told.get("previous_response_id"), str):
        found["previous_response_id"] = told["previous_response_id"]
    found["background"] = told.get("background") is True
    found["instructions"] = "" if told.get("instructions") is True else None
    return found


def told_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the acceptance of a run tells of its client's tools and of the form of its answer, as far as it does."""
    found: dict[str, Any] = {}
    if data.get("client_tools"):
        found["tools"] = [
            {
                "type": "function", "name": tool.get("name", ""), "description": tool.get("description") or None,
                "parameters": tool.get("parameters") or {}, "strict": bool(tool.get("strict")),
            }
            for tool in data["client_tools"]
        ]  # fmt: skip
    if choice := data.get("tool_choice"):
        found["tool_choice"] = choice
        if isinstance(choice, dict):
            found["tool_choice"] = {"type": "function", "name": (choice.get("function") or {}).get("name", "")}
    if form := data.get("response_format"):
        found["text"] = {"format": {"type": form.get("type", "text"), **(form.get("json_schema") or {})}}
    return found


def as_accepted(tools: Sequence[pb.ClientTool], choice: bytes, form: bytes) -> dict[str, Any]:
    """The same of a request, in the shape of its acceptance."""
    found: dict[str, Any] = {
        "client_tools": [
            {
                "name": tool.name, "description": tool.description, "parameters": orjson.loads(tool.parameters_json or b"{}"),
                "strict": tool.strict,
            }
            for tool in tools
        ],
    }  # fmt: skip
    return found | {name: orjson.loads(json) for name, json in (("tool_choice", choice), ("response_format", form)) if json}


def _label(value: str) -> Mapping[str, Any]:
    """A label that somebody else has given this name says nothing."""
    try:
        found = orjson.loads(value) if value else {}
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
