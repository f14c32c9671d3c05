"""Errors in the form of the OpenAI API: `{"error": {message, type, param, code}}`, with the status that clients branch on."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.common.errors import (
    BudgetExceeded,
    BulkheadError,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    UpstreamFailed,
)

_TYPES: Mapping[type[BulkheadError], str] = {
    InvalidInput: "invalid_request_error",
    NotFound: "invalid_request_error",
    Unauthenticated: "authentication_error",
    PermissionDenied: "permission_error",
    QuotaExceeded: "rate_limit_error",
    BudgetExceeded: "insufficient_quota",
}
_CODES: Mapping[str, str] = {
    "QUOTA_EXCEEDED": "rate_limit_exceeded",
    "UNAUTHENTICATED": "invalid_api_key",
    "EXPIRED_API_KEY": "invalid_api_key",
    "SCOPE_MISSING": "insufficient_scope",
}


class Refused(Exception):
    """A request that HTTP itself has an answer for: no such route, too large, not JSON."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.close = close or status == 413


def body_of(message: str, kind: str, code: str | None, param: str | None = None, **more: Any) -> bytes:
    """The error body; `more` are members beside the four that clients know."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code, **more}})


def error_body(error: BulkheadError) -> bytes:
    """The body for a domain error."""
    kind = _TYPES.get(type(error), "server_error")
    param = error.metadata.get("param")
    message = error.message
    if param is None and error.violations:
        param = error.violations[0].field
    code: str | None = _CODES.get(error.reason, error.reason.lower())
    if error.reason == "INVALID_INPUT":
        code = None
    elif error.reason == "REQUEST_REFUSED":
        code = error.metadata.get("upstream_code")
    elif error.reason == "MODEL_NOT_FOUND":
        param = "model"
        message = f"The model {error.metadata.get('model', '')!r} does not exist or you do not have access to it."
    more = {"failure_class": error.metadata["failure_class"]} if "failure_class" in error.metadata else {}
    return body_of(message, kind, code, param, **more)


def error_headers(error: BulkheadError) -> list[tuple[bytes, bytes]]:
    """Retry-After, and a word to SDKs that would repeat what the gateway has repeated already."""
    found: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        found.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        found.append((b"retry-after-ms", str(round(error.retry_after_s * 1000)).encode()))
    if isinstance(error, UpstreamFailed | DeadlineExceeded) or (isinstance(error, Overloaded) and "failure_class" in error.metadata):
        found.append((b"x-should-retry", b"false"))
    return found
