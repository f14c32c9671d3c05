"""Reading fields of a loosely typed body, with errors that name the field as OpenAI's `param` does."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from services.common.errors import InvalidInput
from services.gateway.refusals import unsupported as unsupported
from services.gateway.surfaces.native.models import MAX_LABEL_BYTES, MAX_LABELS

# Of each field the values that ask for nothing but what is done anyway; `null` does for every field.
Unused = Mapping[str, tuple[Any, ...]]
# What chat completions and responses both have to say of fields. Those that change the shape or the meaning of the answer cannot be left
# out in silence.
REFUSED: Unused = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "stop": ([], ""),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "prediction": (),
}
# Hints on how to sample. They are the agent's to decide; a request that names them is served, and told so.
NO_EFFECT: Unused = {
    "top_p": (1,),
    "seed": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "reasoning_effort": (),
    "verbosity": (),
    "parallel_tool_calls": (True,),
}
# The same of `stream_options`: events are not padded.
STREAM_NO_EFFECT: Unused = {"include_obfuscation": (False,)}
# They say who asks or help a provider's cache; leaving them out changes nothing that a caller could see.
SILENT = frozenset({"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
MOST_NAME_CHARS = 64


def refuse(body: Mapping[str, Any], refused: Unused, why: Mapping[str, str]) -> None:
    """Raises InvalidInput for the first field of `refused` that asks for something; `why` says more of some of them."""
    for name, unused in refused.items():
        if body.get(name) is not None and body[name] not in unused:
            raise unsupported(name, why.get(name, "is not supported"))


def ignored(body: Mapping[str, Any], no_effect: Unused, known: Collection[str], where: str = "") -> list[str]:
    """Names of what is taken without effect, to be told with the answer: the hints that ask for something, then what nobody knows. `where`
    is what stands before them, where the body is an object in it."""
    found = [name for name, unused in no_effect.items() if body.get(name) is not None and body[name] not in unused]
    found += [str(name)[:MOST_NAME_CHARS] for name in body if name not in known and name not in no_effect]
    return [where + name for name in found]


def text(body: Mapping[str, Any], name: str, *, required: bool = False, shown_as: str = "") -> str:
    """A string; empty when absent and not required."""
    value = body.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise InvalidInput.field(shown_as or name, "must be a string" if value is not None else "is required")
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


def strings(body: Mapping[str, Any], name: str) -> list[str]:
    """A list of strings; empty when absent."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidInput.field(name, "must be a list of strings")
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
