"""Errors in the form of the OpenAI API: `{"error": {message, type, param, code}}`, with the status that clients branch on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services.common.errors import (
    BudgetExceeded,
    BulkheadError,
    Conflict,
    DeadlineExceeded,
    Gone,
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    UpstreamFailed,
)
from services.llm_gateway.model_port.terms import MAX_COST

_TYPES: Mapping[type[BulkheadError], str] = {
    InvalidInput: "invalid_request_error",
    NotFound: "invalid_request_error",
    Gone: "invalid_request_error",
    Conflict: "invalid_request_error",
    IdempotencyMismatch: "invalid_request_error",
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
    elif error.reason == "MAX_COST_EXCEEDED":
        param = MAX_COST
    elif error.reason in ("MODEL_MODE_MISMATCH", "MODEL_NOT_ALLOWED"):
        param = "model"
    elif error.reason == "MODEL_NOT_FOUND":
        param = "model"
        message = f"The model {error.metadata.get('model', '')!r} does not exist or you do not have access to it."
    more = {"failure_class": error.metadata["failure_class"]} if "failure_class" in error.metadata else {}
    return body_of(message, kind, code, param, **more)


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How a surface says that something went wrong: each function answers a body.

    `of` renders a domain error, `refused` a request that HTTP has an answer for, `internal` a failure known only by its id. `event`
    frames a body as the last event of a stream that has begun.
    """

    of: Callable[[BulkheadError], bytes]
    refused: Callable[[Refused], bytes]
    internal: Callable[[str], bytes]
    event: Callable[[bytes], bytes]
    # Statuses that the surface's clients expect in place of the table's.
    statuses: Mapping[str, int] | None = None
    # Where the surface's clients look for the request id, beside x-request-id.
    request_id_header: bytes = b""

    def status(self, error: BulkheadError) -> int:
        """The HTTP status of a domain error, by its reason where the surface has one of its own."""
        return error.http_status if self.statuses is None else self.statuses.get(error.reason, error.http_status)


def _refused_body(refused: Refused) -> bytes:
    return body_of(refused.message, "invalid_request_error", refused.code, refused.param)


def _internal_body(error_id: str) -> bytes:
    return body_of(f"internal error {error_id}", "server_error", "internal")


def _event(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"


OPENAI = ErrorForm(error_body, _refused_body, _internal_body, _event)


def error_headers(error: BulkheadError) -> list[tuple[bytes, bytes]]:
    """Retry-After, and a word to SDKs that would repeat what the gateway has repeated already, or what no repeat can help."""
    found: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        found.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        found.append((b"retry-after-ms", str(round(error.retry_after_s * 1000)).encode()))
    if isinstance(error, UpstreamFailed | DeadlineExceeded | BudgetExceeded) or (
        isinstance(error, Overloaded) and "failure_class" in error.metadata
    ):
        found.append((b"x-should-retry", b"false"))
    return found
