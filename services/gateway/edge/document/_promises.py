"""What holds for many routes and is declared at none: headers of requests and of answers."""

from collections.abc import Iterable, Mapping
from typing import Any

from services.gateway.edge.route import GuardedRoute

# These POST and DELETE what they always refuse, or answer only what is there already.
_CHANGE_NOTHING = frozenset({
    "POST /v1/conversations/{conversation_id}",
    "POST /v1/conversations/{conversation_id}/items",
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}",
})  # fmt: skip
IDEMPOTENCY_KEY: Mapping[str, Any] = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "description": "The same key and body within a day answer the same thing and do nothing more; another body is refused with 422.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}, "example": "order-4711",
}  # fmt: skip
LAST_EVENT_ID: Mapping[str, Any] = {
    "name": "Last-Event-ID", "in": "header", "required": False,
    "description": "The `id` of the last event that was seen; wins over `after`.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"}, "example": "3",
}  # fmt: skip
HEADERS: Mapping[str, Any] = {
    "RateLimit-Policy": {
        "description": "What the caller's tier allows, where it has limits: requests (q) in a window of seconds (w). Draft 10 of the IETF.",
        "schema": {"type": "string"}, "example": '"requests_per_minute";q=60;w=60, "requests_per_day";q=1000;w=86400',
    },
    "RateLimit": {
        "description": "What is left of it (r), and the seconds until there is one more (t).",
        "schema": {"type": "string"}, "example": '"requests_per_minute";r=59;t=1, "requests_per_day";r=700;t=87',
    },
    "Retry-After": {
        "description": "Where time lifts the refusal: when to come back, in seconds.", "schema": {"type": "integer", "minimum": 1},
        "example": 12,
    },
    "x-request-id": {"description": "The request's, or made for it.", "schema": {"type": "string"}, "example": "4f9d2c5b0e6a4b7f"},
}  # fmt: skip
_WITH_DELAY = frozenset({409, 429, 503})


def changes(route: GuardedRoute, method: str) -> bool:
    """Whether a route changes something, and with it takes an idempotency key. Whoever needs nothing but to read changes nothing, where
    the route does not keep keys all the same; of visitors nobody knows whose keys theirs would be."""
    scopes = route.needs.scopes
    reads = bool(scopes) and all(scope.endswith(":read") for scope in scopes)
    changing = method != "GET" and (route.needs.keyed or not reads) and not route.needs.visitors
    return changing and f"{method} {route.path_format}" not in _CHANGE_NOTHING


def headers_of(status: int, *, guarded: bool) -> dict[str, Any]:
    """References to the headers that an answer with this status has, or may have."""
    names = ["x-request-id"]
    if guarded and status != 401:
        # Nobody's limits are known before it is known who asks.
        names += ["RateLimit-Policy", "RateLimit"]
    if guarded and status in _WITH_DELAY:
        names.append("Retry-After")
    return references(names)


def references(names: Iterable[str]) -> dict[str, Any]:
    """Headers of an answer, as they refer to those of the components."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
