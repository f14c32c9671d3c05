"""Errors that only an HTTP entry knows; the rest stand in services/common/errors.py."""

from collections.abc import Mapping
from typing import Any

from services.common.errors import BulkheadError, Cancelled, FieldViolation, Gone, InvalidInput


class InvalidBody(InvalidInput):
    """The body is JSON but not what the route takes; violations name the fields."""

    http_status = 422


def unsupported(name: str, why: str = "is not supported", wrong: type[InvalidInput] = InvalidInput) -> InvalidInput:
    """The refusal of something that the protocol of a surface knows and we do not."""
    return wrong(f"{name}: {why}", reason="UNSUPPORTED_PARAMETER", violations=[FieldViolation(name, why)])


class BodyTooLarge(InvalidInput):
    """The body is larger than the route takes."""

    http_status = 413
    default_reason = "BODY_TOO_LARGE"


class UnsupportedMediaType(InvalidInput):
    """The body is of a type that the route does not take."""

    http_status = 415
    default_reason = "UNSUPPORTED_MEDIA_TYPE"


class RangeNotSatisfiable(InvalidInput):
    """The range that is asked for has nothing of the content, whose `size` is in bytes, or is not a single one."""

    http_status = 416
    default_reason = "RANGE_NOT_SATISFIABLE"

    def __init__(self, size: int) -> None:
        super().__init__(f"a single range of bytes is served, of the {size} that there are")
        self.size = size


class BodyTimeout(InvalidInput):
    """The client did not send its body in time."""

    http_status = 408
    default_reason = "BODY_TIMEOUT"


class MethodNotAllowed(InvalidInput):
    """The path exists and takes other methods; metadata `allow` lists them."""

    http_status = 405
    default_reason = "METHOD_NOT_ALLOWED"


class ClientGone(Cancelled):
    """The client closed its connection before the answer; nobody reads what is answered now."""

    default_reason = "CLIENT_GONE"


class ResumeGap(Gone):
    """The log from where the client wants to go on is no longer kept; `members` are those of its problem: where the log begins, and the
    thread as it stands, to go on from."""

    default_reason = "RESUME_GAP"

    def __init__(self, oldest_seq: int, snapshot: Mapping[str, Any]) -> None:
        super().__init__("events this old are no longer kept; go on from the snapshot")
        self.members: Mapping[str, Any] = {"oldest_seq": oldest_seq, "snapshot": snapshot}


class RunFailed(BulkheadError):
    """A run ended without an answer; raised by surfaces that answer with the run's outcome.

    `http_status` follows the run's own reason; metadata `run_id` and `thread_id` say which run.
    """

    default_reason = "RUN_FAILED"

    def __init__(self, message: str, *, reason: str, status: int, retryable: bool, run_id: str, thread_id: str) -> None:
        super().__init__(message, reason=reason, metadata={"run_id": run_id, "thread_id": thread_id})
        self.http_status = status
        self.retryable = retryable


# How the reason of a failed run reads as an HTTP status; any other is 502 where a new run may work, else 500.
_STATUS_OF_REASON = {
    "INVALID_INPUT": 400,
    "CONTEXT_LENGTH_EXCEEDED": 400,
    "CONTENT_FILTERED": 400,
    "CONTENT_FILTER": 400,
    "PERMISSION_DENIED": 403,
    "SCOPE_MISSING": 403,
    "NOT_FOUND": 404,
    "MODEL_NOT_FOUND": 404,
    "RUN_CANCELLED": 409,
    "QUOTA_EXCEEDED": 429,
    "RATE_LIMITED": 429,
    "BUDGET_EXCEEDED": 429,
    "OVERLOADED": 503,
    "UNREACHABLE": 503,
    "STORE_UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "UPSTREAM_TIMEOUT": 504,
    # A model that does not keep to the form that was asked for, as an upstream that fails.
    "OUTPUT_SCHEMA": 502,
}


def run_failed(reason: str, message: str, retryable: bool, *, run_id: str, thread_id: str) -> RunFailed:
    """The error for a run that failed with `reason` (UPPER_SNAKE)."""
    reason = reason or "RUN_FAILED"
    status = _STATUS_OF_REASON.get(reason, 502 if retryable else 500)
    return RunFailed(message or "the run failed", reason=reason, status=status, retryable=retryable, run_id=run_id, thread_id=thread_id)
