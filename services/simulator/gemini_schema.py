"""Gemini's own kind of schema, a part of OpenAPI's: type names in capitals, and no keyword beyond those it knows."""

from collections.abc import Mapping
from typing import Any

from services.simulator.refusals import Refused

_MAX_DEPTH = 32
_KNOWN_TEXT = (
    "type format title description nullable enum maxItems minItems properties required minProperties maxProperties minLength maxLength "
    "pattern example anyOf propertyOrdering default items minimum maximum additionalProperties ref defs $ref $defs prefixItems"
)
_KNOWN = frozenset(_KNOWN_TEXT.split())
_TYPES = frozenset(("string", "number", "integer", "boolean", "array", "object", "null"))
_SNAKE: Mapping[str, str] = {
    "any_of": "anyOf",
    "max_items": "maxItems",
    "min_items": "minItems",
    "property_ordering": "propertyOrdering",
    "min_length": "minLength",
    "max_length": "maxLength",
    "additional_properties": "additionalProperties",
}


def plain_schema(value: Any, where: str, depth: int = 0) -> dict[str, Any]:
    """The schema as JSON Schema; raises Refused (400) for a keyword or a type that Gemini does not know."""
    if not isinstance(value, dict):
        raise Refused(f"Invalid value at '{where}': expected a schema.")
    if depth > _MAX_DEPTH:
        raise Refused(f"The schema at '{where}' nests deeper than {_MAX_DEPTH} levels.")
    found: dict[str, Any] = {}
    for given, item in value.items():
        name = _SNAKE.get(given, given)
        if name not in _KNOWN:
            raise Refused(f"Invalid JSON payload received. Unknown name \"{given}\" at '{where}': Cannot find field.")
        if name == "type":
            item = _type(item, where)
        elif name == "items":
            item = plain_schema(item, f"{where}.items", depth + 1)
        elif name == "properties":
            if not isinstance(item, dict):
                raise Refused(f"Invalid value at '{where}.properties': expected an object.")
            item = {key: plain_schema(one, f"{where}.properties[{key}]", depth + 1) for key, one in item.items()}
        elif name == "anyOf":
            if not isinstance(item, list):
                raise Refused(f"Invalid value at '{where}.any_of': expected a list.")
            item = [plain_schema(one, f"{where}.any_of[{index}]", depth + 1) for index, one in enumerate(item)]
        found[name] = item
    return found


def _type(value: Any, where: str) -> Any:
    kinds = value if isinstance(value, list) else [value]
    if not kinds or not all(isinstance(kind, str) and kind.lower() in _TYPES for kind in kinds):
        raise Refused(
            f"Invalid value at '{where}.type' (type.googleapis.com/google.ai.generativelanguage.v1beta.Type), {str(value)[:40]!r}"
        )
    return [kind.lower() for kind in kinds] if isinstance(value, list) else value.lower()
