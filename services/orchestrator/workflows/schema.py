"""The part of JSON Schema 2020-12 that the answer of a model step can be held to. What it does not know is refused when it is loaded."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MOST_PROBLEMS = 8
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer()),
}
# Each with the type that it speaks of, what is measured, and how that must stand to the bound.
_BOUNDS: Mapping[str, tuple[str, Callable[[Any], Any], Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda value: value, operator.ge),
    "maximum": ("number", lambda value: value, operator.le),
    "exclusiveMinimum": ("number", lambda value: value, operator.gt),
    "exclusiveMaximum": ("number", lambda value: value, operator.lt),
    "minLength": ("string", len, operator.ge),
    "maxLength": ("string", len, operator.le),
    "minItems": ("array", len, operator.ge),
    "maxItems": ("array", len, operator.le),
}
KNOWN = {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "description", "title", *_BOUNDS}


def schema_problems(schema: Any, where: str = "") -> Iterator[str]:
    """All that is wrong with a schema, each with its path."""
    at = where or "schema"
    if not isinstance(schema, Mapping):
        yield f"{at}: must be an object"
        return
    for name in schema:
        if name not in KNOWN:
            yield f"{at}.{name}: is not supported; there are {', '.join(sorted(KNOWN))}"
    types = schema.get("type", [])
    for kind in [types] if isinstance(types, str) else types if isinstance(types, list) else [types]:
        if kind not in _TYPES:
            yield f"{at}.type: there is no type {kind!r}"
    for name in _BOUNDS:
        if name in schema and not _TYPES["number"](schema[name]):
            yield f"{at}.{name}: must be a number"
    if not isinstance(schema.get("enum", []), list) or schema.get("enum", [0]) == []:
        yield f"{at}.enum: must be a list of at least one value"
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        yield f"{at}.properties: must be an object"
        properties = {}
    for name, part in properties.items():
        yield from schema_problems(part, f"{at}.properties.{name}")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        yield f"{at}.required: must be a list of names"
    if not isinstance(schema.get("additionalProperties", True), bool):
        yield f"{at}.additionalProperties: must be true or false"
    if "items" in schema:
        yield from schema_problems(schema["items"], f"{at}.items")


def misfits(schema: Mapping[str, Any], value: Any) -> list[str]:
    """Where a value does not fit: the path and what is expected there, never the value itself; the first few."""
    found: list[str] = []
    for misfit in _misfits(schema, value, "answer"):
        found.append(misfit)
        if len(found) == MOST_PROBLEMS:
            break
    return found


def _misfits(schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
    if types := schema.get("type"):
        allowed = [types] if isinstance(types, str) else types
        if not any(_TYPES[kind](value) for kind in allowed):
            yield f"{where}: must be of the type {' or '.join(allowed)}"
            return
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        yield f"{where}: must be one of {schema['enum']}"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{where}: must be {schema['const']!r}"
    for name, (kind, measure, fits) in _BOUNDS.items():
        if name in schema and _TYPES[kind](value) and not fits(measure(value), schema[name]):
            yield f"{where}: {name} is {schema[name]}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{where}.{name}: is missing" for name in schema.get("required", ()) if name not in value)
        for name, part in value.items():
            if name in properties:
                yield from _misfits(properties[name], part, f"{where}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{where}: has a property that is not allowed; there are {', '.join(properties)}"
    if isinstance(value, list) and "items" in schema:
        for index, part in enumerate(value):
            yield from _misfits(schema["items"], part, f"{where}.{index}")


def _same(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left == right
