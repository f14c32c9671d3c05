"""What tools and JSON Schemas of a request must be before any provider hears of them.

Schemas are checked for their form alone: keywords that are known must be of their type, unknown ones are nobody's business. Source:
JSON Schema 2020-12, Core and Validation.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from services.common.errors import InvalidInput

MAX_DEPTH = 64
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
# Wider than OpenAI's ^[a-zA-Z0-9_-]{1,64}$: other providers take dots, colons and longer names. Never white space or control characters.
_NAME = re.compile(r"[\w.:/\-]{1,128}", re.A)
_CHOICES = frozenset({"none", "auto", "required", "any"})
_PER_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties")
_SCHEMAS = frozenset((*_PER_NAME, *_LISTS, *_SINGLE))
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})


def _is_type(value: Any) -> bool:
    if isinstance(value, str):
        return value in _TYPES
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name in _TYPES for name in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == int(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# Older drafts have a boolean `required` in a property, which providers still take.
_KEYWORDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"must be one of {', '.join(sorted(_TYPES))}, or a list of these"),
    "required": (lambda value: isinstance(value, bool) or _is_names(value), "must be a list of names"),
    "enum": (lambda value: isinstance(value, list), "must be a list"),
    "description": (lambda value: isinstance(value, str), "must be a string"),
    "$ref": (lambda value: isinstance(value, str), "must be a string"),
    "pattern": (lambda value: isinstance(value, str), "must be a string"),
    **dict.fromkeys(_COUNTS, (_is_count, "must be a whole number of at least 0")),
}


def check_schema(schema: Any, where: str, depth: int = 0) -> None:
    """Checks the form of a JSON Schema. Raises InvalidInput that names the first wrong keyword."""
    if isinstance(schema, bool) and depth:
        return
    if not isinstance(schema, Mapping):
        raise InvalidInput.field(where, "must be a JSON Schema object")
    if depth > MAX_DEPTH:
        raise InvalidInput.field(where, f"must not be nested deeper than {MAX_DEPTH}")
    for name, value in schema.items():
        if name in _SCHEMAS:
            _check_inner(name, value, f"{where}.{name}", depth + 1)
        elif (known := _KEYWORDS.get(name)) is not None and value is not None and not known[0](value):
            raise InvalidInput.field(f"{where}.{name}", known[1])


def _check_inner(name: str, value: Any, where: str, depth: int) -> None:
    if value is None:
        return
    if name in _PER_NAME:
        if not isinstance(value, Mapping):
            raise InvalidInput.field(where, "must be an object of schemas")
        for key, inner in value.items():
            check_schema(inner, f"{where}.{key}"[:256], depth)
    elif name in _LISTS or (name == "items" and isinstance(value, list)):
        if not isinstance(value, list):
            raise InvalidInput.field(where, "must be a list of schemas")
        for number, inner in enumerate(value):
            check_schema(inner, f"{where}[{number}]", depth)
    else:
        check_schema(value, where, depth)


def check_parameters(schema: Any, where: str) -> None:
    """The schema of a tool's arguments: those of an object. Raises InvalidInput."""
    check_schema(schema, where)
    kind = schema.get("type")
    if kind is not None and kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidInput.field(f"{where}.type", "must be object: tools take named arguments")


def check_names(names: list[str], where: Callable[[int], str]) -> None:
    """Names of tools: words of up to 128 characters, none twice. Raises InvalidInput."""
    for number, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise InvalidInput.field(where(number), "must be 1 to 128 letters, digits, or any of _ - . : /")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        for number, name in enumerate(names):
            if name in seen:
                raise InvalidInput.field(where(number), "must not be the name of another tool")
            seen.add(name)


def check_choice(choice: Any, names: list[str] | None, where: str) -> None:
    """OpenAI's tool_choice; `names` are those of the functions on offer, None without any tool. Raises InvalidInput."""
    if not isinstance(choice, str | Mapping):
        raise InvalidInput.field(where, "must be a string or an object")
    if isinstance(choice, str) and choice not in _CHOICES:
        raise InvalidInput.field(where, "must be none, auto, required, or an object that names a function")
    if names is None:
        if choice not in ("none", "auto"):
            raise InvalidInput.field(where, "is only allowed when tools are given")
        return
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = choice.get("function")
        if isinstance(function, Mapping) and function.get("name") not in names:
            raise InvalidInput.field(where, "must name one of the tools")
