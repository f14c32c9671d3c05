"""Deterministic repair of arguments that only have the wrong JSON type: "5" → 5, "true" → true, "[1,2]" → list, 5 → [5].

The validator is the guide: only a place that it rejects for its type is touched, and only where the value has exactly
one reading in the type that is asked for. Whatever remains wrong is left to the violations.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from services.tool_executor.schemas import Schema, pointer

# A list inside a string may hold strings that are numbers, so one pass is not enough; deeper nesting than this is no accident.
MAX_PASSES = 3
MAX_PLACES = 32
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_NOTHING = object()


def coerce(schema: Schema, value: Any) -> tuple[Any, list[str]]:
    """`value` with types repaired, and the JSON Pointers of what was changed. The argument itself is not modified."""
    changed: list[str] = []
    for _ in range(MAX_PASSES):
        places = _rejected_types(schema, value)
        before = len(changed)
        for path, types in places[:MAX_PLACES]:
            replacement = _converted(_at(value, path), types)
            if replacement is not _NOTHING:
                value = _with(value, path, replacement)
                changed.append(pointer(path))
        if len(changed) == before:
            break
    return value, list(dict.fromkeys(changed))


def _rejected_types(schema: Schema, value: Any) -> list[tuple[list[str | int], Sequence[str]]]:
    found: list[tuple[list[str | int], Sequence[str]]] = []
    for error in schema.errors(value):
        kind = error.kind
        if kind.name == "type":
            found.append((list(error.instance_path), kind.types))
        elif kind.name in ("anyOf", "oneOf") and hasattr(kind, "context"):
            # Every branch must reject this very place for its type: else a branch was meant and failed for another reason.
            path = list(error.instance_path)
            branches = [[e for e in branch if e.kind.name == "type" and list(e.instance_path) == path] for branch in kind.context]
            if branches and all(branches):
                found.append((path, [t for branch in branches for t in branch[0].kind.types]))
    return found


def _converted(value: Any, types: Sequence[str]) -> Any:
    for name in _ORDER:
        if name in types:
            converted = _ORDER[name](value)
            if converted is not _NOTHING:
                return converted
    return _NOTHING


def _integer(value: Any) -> Any:
    if isinstance(value, str) and _INTEGER.fullmatch(text := value.strip()):
        return int(text)
    if isinstance(value, str) and _NUMBER.fullmatch(text := value.strip()) and float(text).is_integer() and abs(float(text)) < 2**53:
        return int(float(text))
    return _NOTHING


def _number(value: Any) -> Any:
    if not isinstance(value, str) or not _NUMBER.fullmatch(text := value.strip()):
        return _NOTHING
    if _INTEGER.fullmatch(text):
        return int(text)
    number = float(text)
    return number if math.isfinite(number) else _NOTHING


def _boolean(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.strip().lower(), _NOTHING) if isinstance(value, str) else _NOTHING


def _null(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("null", "none") else _NOTHING


def _parsed(value: Any, kind: type) -> Any:
    if isinstance(value, str):
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            return _NOTHING
        if isinstance(parsed, kind):
            return parsed
    return _NOTHING


def _array(value: Any) -> Any:
    parsed = _parsed(value, list)
    if parsed is not _NOTHING:
        return parsed
    return _NOTHING if value is None else [value]


def _object(value: Any) -> Any:
    return _parsed(value, dict)


def _string(value: Any) -> Any:
    return orjson.dumps(value).decode() if isinstance(value, (int, float)) and not isinstance(value, bool) else _NOTHING


# From the narrowest reading to the widest.
_ORDER: Mapping[str, Callable[[Any], Any]] = {
    "integer": _integer, "number": _number, "boolean": _boolean, "null": _null, "object": _object, "array": _array, "string": _string,
}  # fmt: skip


def _at(value: Any, path: list[str | int]) -> Any:
    for part in path:
        value = value[part]
    return value


def _with(value: Any, path: list[str | int], replacement: Any) -> Any:
    if not path:
        return replacement
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = _with(value[path[0]], path[1:], replacement)  # type: ignore[index]
    return copy
