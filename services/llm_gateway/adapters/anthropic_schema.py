"""JSON Schemas within the subset that structured outputs of the Messages API compile.

Objects are closed; constraints that the subset lacks move into the description, where the model still reads them.
Source: Claude API, structured outputs, JSON Schema limitations.
"""

from collections.abc import Mapping
from typing import Any

import orjson

_KEPT = frozenset(
    {"type", "properties", "required", "items", "enum", "const", "anyOf", "allOf", "$ref", "$defs", "definitions", "description"}
)
_ANNOTATIONS = frozenset({"title", "default", "$schema", "$id", "additionalProperties"})
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})
# Deeper schemas are sent as they are, and the provider says what it thinks of them.
MAX_DEPTH = 64


def compilable(schema: Any, depth: int = 0) -> Any:
    """The schema with every object closed and no keyword outside the subset."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return schema
    made: dict[str, Any] = {}
    lost: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
            made[key] = {name: compilable(inner, depth + 1) for name, inner in value.items()}
        elif key in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
            made["anyOf" if key == "oneOf" else key] = [compilable(inner, depth + 1) for inner in value]
        elif key == "items":
            made[key] = compilable(value, depth + 1)
        elif key in _KEPT or (key == "format" and value in _FORMATS) or (key == "minItems" and value in (0, 1)):
            made[key] = value
        elif key not in _ANNOTATIONS:
            lost[key] = value
    kind = schema.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema:
        made["additionalProperties"] = False
    if lost:
        note = orjson.dumps(lost).decode()
        made["description"] = f"{made['description']}\n\n{note}" if isinstance(made.get("description"), str) else note
    return made
