"""Errors as answers: RFC 9457 problems on native routes, OpenAI's envelope on OpenAI routes, AG-UI's event on its own, never mixed."""

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from services.common.errors import BudgetExceeded, BulkheadError, Internal, PermissionDenied, QuotaExceeded, Unauthenticated
from services.gateway.edge.exchange import Exchange, exchange, shown_path
from services.gateway.edge.limit_headers import tell_of
from services.gateway.refusals import BodyTimeout, BodyTooLarge, MethodNotAllowed, RangeNotSatisfiable, ResumeGap

# When to come back after a 503 that does not say so itself: what is away is looked for anew by then.
COME_BACK_S = 1.0
OPENAI_PREFIXES = ("/v1/chat", "/v1/models", "/v1/responses", "/v1/conversations")
AG_UI_PREFIX = "/ag-ui/"
PROBLEM = "application/problem+json"
_TITLES = {
    400: "The request is not valid", 401: "Authentication is needed", 403: "Not allowed", 404: "Not found",
    405: "Method not allowed", 408: "The body did not come in time", 409: "Conflict", 410: "No longer available",
    413: "The body is too large", 415: "Unsupported media type", 416: "No such range", 422: "The body is not valid",
    429: "A limit is used up", 499: "The client is gone", 500: "Internal error", 502: "An upstream failed", 503: "Not available now",
    504: "Not done in time",
}  # fmt: skip
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# Metadata that callers may see; the rest is for logs.
_SHOWN = (
    "policy", "limit", "period_s", "missing_scopes", "oldest_available", "service", "store", "run_id", "thread_id", "error_id",
    "verb", "decided_by", "decided_at_ms", "decided_reason", "run_status", "state", "arguments_digest", "expired_at_ms", "version",
    "offer", "agent", "agent_version", "tool", "last_seq",
)  # fmt: skip


def is_openai(path: str) -> bool:
    """Whether errors of this path use OpenAI's envelope."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in OPENAI_PREFIXES)


def is_ag_ui(path: str) -> bool:
    """Whether errors of this path are events of AG-UI."""
    return path.startswith(AG_UI_PREFIX)


def problem_type(reason: str) -> str:
    """The stable `type` of a problem."""
    return f"urn:bulkhead:problem:{reason.lower().replace('_', '-')}"


def told(error: BulkheadError) -> dict[str, Any]:
    """What an error says of itself in every form that it takes: as a problem, and as the last event of a stream."""
    body = {"detail": error.message, "reason": error.reason, "retryable": error.retryable}
    return {**body, **error.members} if isinstance(error, ResumeGap) else body


def problem(error: BulkheadError, about: Exchange, path: str) -> dict[str, Any]:
    """The problem object of RFC 9457, with `errors` for single fields."""
    body: dict[str, Any] = {
        "type": problem_type(error.reason),
        "title": _TITLES.get(error.http_status, "Error"),
        "status": error.http_status,
        **told(error),
        "instance": shown_path(path),
        "request_id": about.request_id,
        "trace_id": about.trace_id,
    }
    body.update({name: error.metadata[name] for name in _SHOWN if name in error.metadata})
    if isinstance(error, QuotaExceeded) and "policy" in error.metadata:
        # As of draft-ietf-httpapi-ratelimit-headers-10, section 5.1.
        body["violated-policies"] = error.metadata.get("violated_policies", error.metadata["policy"]).split(", ")
    if (wait_s := retry_after_s(error)) is not None:
        body["retry_after_ms"] = math.ceil(wait_s * 1000)
    if error.violations:
        body["errors"] = [{"field": v.field, "detail": v.description} for v in error.violations]
    return body


def openai_error(error: BulkheadError) -> dict[str, Any]:
    """The error object of OpenAI's API: message, type, param, code."""
    status = error.http_status
    kind = _OPENAI_TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    code = error.reason.lower()
    if isinstance(error, BudgetExceeded) or error.reason == "BUDGET_EXCEEDED":
        kind = code = "insufficient_quota"
    elif isinstance(error, QuotaExceeded):
        code = "rate_limit_exceeded"
    param = error.violations[0].field if error.violations else None
    return {"message": _message(error), "type": kind, "param": param, "code": code}


def _message(error: BulkheadError) -> str:
    """The message where there is room for one field and no list: what is wrong with it belongs there."""
    first = error.violations[0] if error.violations else None
    return error.message if first is None or first.description in error.message else f"{first.field}: {first.description}"


def ag_ui_error(error: BulkheadError) -> dict[str, Any]:
    """The event RUN_ERROR of AG-UI; what it has no field for is in its metadata."""
    more: dict[str, Any] = {"retryable": error.retryable, **{name: error.metadata[name] for name in _SHOWN if name in error.metadata}}
    if error.violations:
        more["errors"] = [{"field": v.field, "detail": v.description} for v in error.violations]
    return {"type": "RUN_ERROR", "message": _message(error), "code": error.reason, "metadata": {"bulkhead": more}}


def retry_after_s(error: BulkheadError) -> float | None:
    """When to come back, in seconds: whatever is refused for load says so. None where time alone changes nothing."""
    if error.retry_after_s is None and error.http_status == 503 and error.retryable:
        return COME_BACK_S
    return error.retry_after_s


def error_headers(error: BulkheadError) -> dict[str, str]:
    """Headers that belong to the error itself."""
    headers: dict[str, str] = {"cache-control": "no-store"}
    if (wait_s := retry_after_s(error)) is not None:
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
    if isinstance(error, Unauthenticated):
        invalid = ', error="invalid_token"' if error.reason not in ("UNAUTHENTICATED", "API_KEY_MISSING") else ""
        headers["www-authenticate"] = f'Bearer realm="bulkhead"{invalid}'
    elif isinstance(error, PermissionDenied) and "missing_scopes" in error.metadata:
        scopes = error.metadata["missing_scopes"].replace(", ", " ")
        headers["www-authenticate"] = f'Bearer realm="bulkhead", error="insufficient_scope", scope="{scopes}"'
    elif isinstance(error, MethodNotAllowed):
        headers["allow"] = error.metadata.get("allow", "")
    elif isinstance(error, BodyTooLarge | BodyTimeout):
        headers["connection"] = "close"
    elif isinstance(error, RangeNotSatisfiable):
        headers["content-range"] = f"bytes */{error.size}"
    return headers


def refusal(request: Any, error: BulkheadError) -> Response:
    """The answer for `error` in the form of the surface that the request is for."""
    scope: Mapping[str, Any] = getattr(request, "scope", request)
    about = exchange(scope)
    about.error = error.reason
    if isinstance(error, QuotaExceeded):
        tell_of(error, about)
    headers = error_headers(error)
    if is_openai(scope["path"]):
        # The SDK repeats by status unless told; a run that was accepted must not be started twice by it.
        headers["x-should-retry"] = "true" if error.retryable and "run_id" not in error.metadata else "false"
        content = orjson.dumps({"error": openai_error(error)})
        return Response(content, error.http_status, headers, "application/json")
    if is_ag_ui(scope["path"]):
        return Response(orjson.dumps(ag_ui_error(error)), error.http_status, headers, "application/json")
    content = orjson.dumps(problem(error, about, scope["path"]))
    return Response(content, error.http_status, headers, PROBLEM)


def internal(request: Any) -> Response:
    """The answer for what nobody foresaw: an opaque id that the log line carries as well."""
    error_id = exchange(request).error_id
    return refusal(request, Internal(f"internal error {error_id}", metadata={"error_id": error_id}))
