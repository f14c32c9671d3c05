"""What a response shows of its request: out of the acceptance in the log, and of what that does not tell out of a label of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway.surfaces.native.models import MAX_LABEL_BYTES, MAX_LABELS

# Label of the run that keeps what only the request says. It goes with the caller's own, where these leave room.
LABEL = "bulkhead.response"
# Bytes that the list of what has no effect takes of the label beside its names, with a last one that says of how many there was no room:
# no body has more. The name of a label counts, too.
_AROUND_NAMES = len(LABEL) + len(',"ignored":[]') + len('"4194304 more"')
_NUMBERS = ("max_output_tokens", "max_tool_calls", "temperature")
_NOTHING: Mapping[str, Any] = {
    "background": False, "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "previous_response_id": None,
    "temperature": None, "tools": [], "tool_choice": "auto",
}  # fmt: skip


def named(names: Sequence[str], said: Mapping[str, Any]) -> list[str]:
    """`names` of what has no effect as far as the label has room for them beside what it `said`; of the others how many they are."""
    room = MAX_LABEL_BYTES - _AROUND_NAMES - len(_dumped(said))
    for count, name in enumerate(names):
        room -= len(orjson.dumps(name)) + len(",")
        if room < 0:
            return [*names[:count], f"{len(names) - count} more"]
    return list(names)


def labels_with(labels: Mapping[str, str], said: Mapping[str, Any]) -> Mapping[str, str]:
    """`labels` of a run with what `said` says; without it where they are as many as there may be, or it says nothing."""
    told = _dumped(said)
    return {**labels, LABEL: told.decode()} if told != b"{}" and len(labels) < MAX_LABELS else labels


def _dumped(said: Mapping[str, Any]) -> bytes:
    return orjson.dumps({name: value for name, value in said.items() if value is not None and value is not False and value != []})


def asked_of(run: pb.Run) -> dict[str, Any]:
    """What is known of the request of a run without its log. `instructions` is not None where there are any; `ignored` are the names of
    what had no effect."""
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
    names = told.get("ignored")
    found["ignored"] = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
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
