"""Headers that some routes take, or answer with, and others do not: which, where, and what they say."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.gateway.edge.route import LONGEST_TIMEOUT_MS, GuardedRoute

# Of a thread or run that a client names itself.
ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"


def _taken(name: str, description: str, schema: Mapping[str, Any], example: Any) -> Mapping[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema, "example": example}


TIMEOUT = _taken(
    "x-request-timeout-ms", "How long the answer may take, in milliseconds; then 504, or the end of a stream. What was begun goes on.",
    {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS}, 30000,
)  # fmt: skip
_PREFER = _taken(
    "Prefer", "`wait=N`: answer 200 when the run has ended, or 202 after N seconds, at most 300.", {"type": "string"}, "wait=30"
)
_ON_DISCONNECT = _taken(
    "x-bulkhead-on-disconnect", "What becomes of the run when the client leaves before its end; absent, as the body says, or `continue`.",
    {"type": "string", "enum": ["continue", "cancel"]}, "cancel",
)  # fmt: skip
_THREAD = _taken(
    "x-bulkhead-thread-id", "The thread that the last message goes into; wins over `metadata.thread_id`. Without either no thread is kept.",
    {"type": "string", "pattern": ID_PATTERN}, "support-4711",
)  # fmt: skip
_SEEN = _taken(
    "Last-Event-ID", "The `id` of the last event that was seen, of a run that is taken up again by its `runId`.",
    {"type": "string", "pattern": "^[0-9]{1,19}$"}, "3",
)  # fmt: skip
TAKEN: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "POST /v1/threads/{thread_id}/runs": (_PREFER,),
    "POST /v1/chat/completions": (_THREAD, _ON_DISCONNECT),
    "POST /v1/responses": (_ON_DISCONNECT,),
    "POST /ag-ui/{agent}": (_ON_DISCONNECT, _SEEN),
}

GIVEN: Mapping[str, Any] = {
    "Location": {"description": "Where what was made, or asked for, is.", "schema": {"type": "string"}, "example": "/v1/runs/run_7c9e6679"},
    "Link": {
        "description": "The path of the next page, with `rel=\"next\"` (RFC 8288).", "schema": {"type": "string"},
        "example": '</v1/runs?limit=20&after=eyJhZnRlciI6IDF9>; rel="next"',
    },
    "Idempotent-Replayed": {
        "description": "`true` where the same was asked before under this idempotency key: nothing more was done.",
        "schema": {"type": "string", "const": "true"}, "example": "true",
    },
    "Preference-Applied": {
        "description": "What of `Prefer` was done.", "schema": {"type": "string"}, "example": "wait=30",
    },
    "x-bulkhead-run-id": {"description": "The run that answers.", "schema": {"type": "string"}, "example": "run_7c9e6679"},
    "x-bulkhead-thread-id": {"description": "The thread of that run.", "schema": {"type": "string"}, "example": "support-4711"},
}  # fmt: skip
# Those that are there only where they have something to say.
AT_TIMES = frozenset({"Link", "Idempotent-Replayed", "Preference-Applied"})
_RUN = ("x-bulkhead-run-id", "x-bulkhead-thread-id")
_RUNS = frozenset({
    "POST /v1/threads/{thread_id}/runs", "POST /v1/agents/{agent}/chat", "POST /v1/chat/completions", "POST /v1/responses",
    "POST /ag-ui/{agent}", "GET /v1/responses/{response_id}", "DELETE /v1/responses/{response_id}",
    "POST /v1/responses/{response_id}/cancel", "GET /v1/responses/{response_id}/input_items",
})  # fmt: skip
# These answer 200 in time what they answer 202 otherwise.
_IN_TIME = frozenset({
    "POST /v1/threads/{thread_id}/runs", "POST /v1/agents/{agent}/chat", "POST /v1/runs/{run_id}/cancel", "POST /v1/runs/{run_id}/stop",
})  # fmt: skip
# Services behind them keep idempotency keys and say so.
_TOLD_OF_REPEATS = frozenset({
    "POST /v1/threads/{thread_id}/runs", "POST /v1/agents/{agent}/chat", "POST /v1/chat/completions", "POST /v1/responses", "POST /v1/keys",
    "PATCH /v1/keys/{key_id}", "DELETE /v1/keys/{key_id}", "POST /v1/keys/{key_id}/rotate",
})  # fmt: skip
_FORK = "POST /v1/threads/{thread_id}/fork"


def given(name: str, status: int, operation: Mapping[str, Any], route: GuardedRoute) -> Sequence[str]:
    """The names, of GIVEN, that an answer of an operation (`POST /v1/threads`) may have, below 300: a refusal names the run and its thread
    where they are known by then."""
    found: list[str] = []
    if (status in (201, 202) and not name.startswith("DELETE ")) or (status == 200 and name in _IN_TIME):
        found.append("Location")
    if status == 200 and _is_paged(operation):
        found.append("Link")
    if not name.startswith("GET ") and (route.needs.keyed or name in _TOLD_OF_REPEATS):
        found.append("Idempotent-Replayed")
    if name == "POST /v1/threads/{thread_id}/runs":
        found.append("Preference-Applied")
    if name in _RUNS or name == _FORK:
        found += _RUN
    return found


def _is_paged(operation: Mapping[str, Any]) -> bool:
    schema = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema", {})
    pages: bool = schema.get("$ref", "").endswith("Page")
    return pages and any(one["name"] == "after" for one in operation.get("parameters", ()))
