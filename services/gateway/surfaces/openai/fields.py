"""Reading fields of a loosely typed body, with errors that name the field as OpenAI's `param` does."""

import re
from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidInput
from services.gateway.refusals import unsupported as unsupported
from services.gateway.surfaces.native.models import MAX_LABEL_BYTES, MAX_LABELS


def text(body: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    """A string; empty when absent and not required."""
    value = body.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise InvalidInput.field(name, "must be a string" if value is not None else "is required")
    return value


def boolean(body: Mapping[str, Any], name: str, shown_as: str = "") -> bool:
    """A boolean; False when absent."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidInput.field(shown_as or name, "must be a boolean")
    return value


def number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """A number within bounds."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidInput.field(name, f"must be a number from {least:g} to {most:g}")
    return float(value)


def whole(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    """A whole number within bounds."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInput.field(name, f"must be a whole number of at least {least}")
    return value


def mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object; empty when absent."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput.field(name, "must be an object")
    return value


def labels(body: Mapping[str, Any], more: int = 0) -> dict[str, str]:
    """`metadata`, as labels of a run; `more` is how many of them may be something else."""
    found = mapping(body, "metadata")
    if len(found) > MAX_LABELS + more:
        raise InvalidInput.field("metadata", f"must have at most {MAX_LABELS} entries")
    for key, value in found.items():
        if not isinstance(value, str):
            raise InvalidInput.field(f"metadata.{key[:64]}", "must be a string")
        if not key or len(key.encode()) > MAX_LABEL_BYTES or len(value.encode()) > MAX_LABEL_BYTES:
            raise InvalidInput.field("metadata", f"keys and values must have up to {MAX_LABEL_BYTES} bytes")
    return dict(found)


def matches(name: str, value: str, pattern: str) -> str:
    """A string of the given form."""
    if not re.fullmatch(pattern, value):
        raise InvalidInput.field(name, f"must match {pattern}")
    return value
