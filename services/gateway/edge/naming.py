"""Fields as a route calls them: what a service behind it refuses is named as the client wrote it, or not at all."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from services.common.errors import BulkheadError

# What is at the top of every request.
HEADERS = ("Idempotency-Key", "Last-Event-ID", "x-request-timeout-ms")
# How protos and services call a thing, and how routes do; the first name that a route has is meant.
_ALIASES: Mapping[str, Sequence[str]] = {
    "page_size": ("limit",), "page_token": ("after",), "after_seq": ("after",), "idempotency_key": ("Idempotency-Key",),
    "new_thread_id": ("thread_id",), "thread_id": ("session_id",), "session_id": ("thread_id",), "text": ("content", "user_input"),
    "input": ("user_input",), "checkpoint": ("at", "to"), "ttl": ("ttl_ms",), "dwell": ("dwell_ms",), "deadline": ("deadline_ms",),
    "interval": ("interval_ms",), "jitter": ("jitter_ms",), "overlap": ("overlap_policy", "overlap_ms"), "catch_up": ("catch_up_policy",),
    "expected_version": ("version",), "result_json": ("result",), "arguments_json": ("arguments",), "top_k": ("limit",),
    "decision": ("verb",), "outcome": ("verb",), "delegate": ("to",), "name": ("agent",), "lifetime": ("lifetime_s",),
    "parameters_json": ("parameters",), "tool_choice_json": ("tool_choice",), "response_format_json": ("response_format",),
}  # fmt: skip
# Messages within a request whose fields stand at the top of a body.
_AROUND = frozenset({"decision", "definition", "document", "edit", "filter", "memories", "start"})
_BETWEEN = re.compile(r"[.\[\]/]+")
# Whatever stands below, as in a mapping of the caller's.
ANYTHING: Mapping[str, Any] = {}
Tree = Mapping[str, Any]


def tree_of(annotation: Any) -> Tree | None:
    """The names below a field of this type; None where there are none, ANYTHING where they are the caller's."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return tree_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        inner = [tree_of(one) for one in get_args(annotation) if one is not NoneType]
        return next((one for one in inner if one is not None), None)
    if origin in (list, tuple):
        return tree_of(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {field.alias or name: tree_of(field.annotation) for name, field in annotation.model_fields.items()}
    return ANYTHING if annotation is Any or origin is dict or annotation is dict else None


def named(field: str, tree: Tree) -> str:
    """`field` of a service as a route with these names calls it; '' where it has no such thing."""
    at: Tree | None = tree
    found: list[str] = []
    parts = [part for part in _BETWEEN.split(field) if part]
    for position, part in enumerate(parts, 1):
        if at is ANYTHING or (found and part.isdigit()):
            found.append(part)
            continue
        if at is None:
            break
        around = part in _AROUND and part not in at and position < len(parts)
        name = None if around else next((name for name in (part, *_ALIASES.get(part, ())) if name in at), None)
        if name is not None:
            found.append(name)
            at = at[name]
            if at is None and name != part:
                # A thing of another kind: what stands below it there is nowhere here.
                break
        elif not around and not part.isdigit():
            break
    return ".".join(found)


def as_the_route_says(error: BulkheadError, tree: Tree) -> BulkheadError:
    """The same error with its fields and the beginning of its message in the names of a route; what has none is told without a name."""
    violations = []
    for violation in error.violations:
        name = named(violation.field, tree)
        if error.message.startswith(f"{violation.field}: "):
            error.message = f"{name}: {violation.description}" if name else violation.description
        if name:
            violations.append(replace(violation, field=name))
    error.violations = tuple(violations)
    return error
