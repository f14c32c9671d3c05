"""Errors in the form of the Messages API: `{"type": "error", "error": {type, message}, "request_id"}`, with its statuses.

Source: Claude API reference, Errors.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from services.common.errors import (
    BudgetExceeded,
    BulkheadError,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    UpstreamFailed,
)
from services.common.rpc import context as call_context
from services.llm_gateway.model_port.errors import ErrorForm, Refused

_TYPES: Mapping[type[BulkheadError], tuple[str, int]] = {
    Unauthenticated: ("authentication_error", 401),
    PermissionDenied: ("permission_error", 403),
    NotFound: ("not_found_error", 404),
    QuotaExceeded: ("rate_limit_error", 429),
    BudgetExceeded: ("billing_error", 402),
    Overloaded: ("overloaded_error", 529),
    UpstreamFailed: ("api_error", 502),
    DeadlineExceeded: ("timeout_error", 504),
}
_REFUSED = {404: "not_found_error", 413: "request_too_large"}


class MessagesForm(ErrorForm):
    """An ErrorForm whose statuses follow the type of the error."""

    def status(self, error: BulkheadError) -> int:
        """The status that clients of the Messages API expect."""
        return _TYPES.get(type(error), ("", error.http_status))[1]


def error_body(error: BulkheadError) -> bytes:
    """The body for a domain error. `details.error_code` is the reason in lower case."""
    kind, _ = _TYPES.get(type(error), ("api_error" if error.http_status >= 500 else "invalid_request_error", 0))
    message = error.message
    if error.reason == "MODEL_NOT_FOUND":
        message = f"model: {error.metadata.get('model', '')}"
    details: dict[str, Any] = {"error_code": error.reason.lower()}
    if "failure_class" in error.metadata:
        details["failure_class"] = error.metadata["failure_class"]
    return _body(kind, message, details)


def _body(kind: str, message: str, details: Mapping[str, Any]) -> bytes:
    context = call_context.current()
    error = {"type": kind, "message": message, "details": details}
    return orjson.dumps({"type": "error", "error": error, "request_id": None if context is None else context.request_id})


def _refused_body(refused: Refused) -> bytes:
    return _body(_REFUSED.get(refused.status, "invalid_request_error"), refused.message, {"error_code": refused.code})


def _internal_body(error_id: str) -> bytes:
    return _body("api_error", f"internal error {error_id}", {"error_code": "internal"})


def error_event(body: bytes) -> bytes:
    """The last event of a stream that failed."""
    return b"event: error\ndata: " + body + b"\n\n"


ANTHROPIC = MessagesForm(error_body, _refused_body, _internal_body, error_event, request_id_header=b"request-id")
