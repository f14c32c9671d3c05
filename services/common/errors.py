"""The one table of domain errors: what they are called, how they travel, and whether they count against the SLO.

Servicers and domain code raise these and never touch a status code. `to_status` and `from_status` carry them across
gRPC as `google.rpc.Status` with ErrorInfo, BadRequest, RetryInfo and QuotaFailure; HTTP surfaces read `http_status`.
Source of the table: design page "contracts", section Errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "bulkhead"
# gRPC takes 8 KiB of metadata for certain, and the status travels there in base64 beside its message: one that is too long
# would reach the caller as RESOURCE_EXHAUSTED, which is another error altogether.
MAX_STATUS_BYTES = 4096
MAX_MESSAGE_BYTES = 512
MAX_VIOLATIONS = 32


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong, and why. It never repeats the rejected value."""

    field: str
    description: str


class BulkheadError(Exception):
    """An error with a safe message and a stable reason in UPPER_SNAKE_CASE.

    `metadata` holds short strings that a caller may branch on or show; never secrets, prompts or personal data.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    counts_against_slo: ClassVar[bool] = True
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})


class InvalidInput(BulkheadError):
    """The request is wrong and will stay wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    counts_against_slo = False
    default_reason = "INVALID_INPUT"

    @classmethod
    def field(cls, field: str, description: str) -> "InvalidInput":
        """An InvalidInput for a single field."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class Unauthenticated(BulkheadError):
    """Nobody knows who is calling."""

    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    counts_against_slo = False
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(BulkheadError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    counts_against_slo = False
    default_reason = "PERMISSION_DENIED"

    @classmethod
    def scopes(cls, missing: Sequence[str]) -> "PermissionDenied":
        """A PermissionDenied that names the missing scopes."""
        names = ", ".join(sorted(missing))
        return cls(f"missing scope: {names}", reason="SCOPE_MISSING", metadata={"missing_scopes": names})


class NotFound(BulkheadError):
    """It is not there, or not the caller's: the two are not told apart."""

    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    counts_against_slo = False
    default_reason = "NOT_FOUND"


class Gone(BulkheadError):
    """It was there and has passed its retention; metadata `oldest_available` says what still is."""

    code = grpc.StatusCode.OUT_OF_RANGE
    http_status = 410
    counts_against_slo = False
    default_reason = "GONE"


class Conflict(BulkheadError):
    """Somebody else is at it, or it is in another state; the caller decides whether to try again."""

    code = grpc.StatusCode.ABORTED
    http_status = 409
    counts_against_slo = False
    default_reason = "CONFLICT"


class IdempotencyMismatch(BulkheadError):
    """The idempotency key was used before with another body."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 422
    counts_against_slo = False
    default_reason = "IDEMPOTENCY_MISMATCH"


class FailedPrecondition(BulkheadError):
    """The request is right and what it needs is not in place; metadata names it. Waiting does not help, an administrator may."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409
    counts_against_slo = False
    default_reason = "FAILED_PRECONDITION"


class QuotaExceeded(BulkheadError):
    """A limit of the caller's tier; metadata `policy` names it and `retry_after_s` says when to come back."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    retryable = True
    counts_against_slo = False
    default_reason = "QUOTA_EXCEEDED"


class BudgetExceeded(BulkheadError):
    """No money or tokens left; waiting does not help."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    counts_against_slo = False
    default_reason = "BUDGET_EXCEEDED"


class Overloaded(BulkheadError):
    """We cannot take it now, or a store that we need is away."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    retryable = True
    default_reason = "OVERLOADED"


class UpstreamFailed(BulkheadError):
    """Something outside of Bulkhead failed; metadata `failure_class` says how."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 502
    retryable = True
    default_reason = "UPSTREAM_FAILED"


class DeadlineExceeded(BulkheadError):
    """The time that the caller gave has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    retryable = True
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(BulkheadError):
    """The caller went away."""

    code = grpc.StatusCode.CANCELLED
    http_status = 499
    counts_against_slo = False
    default_reason = "CANCELLED"


class Internal(BulkheadError):
    """Anything else. The message is for users; what happened stands in the log under `metadata['error_id']`."""


_BY_REASON: Mapping[str, type[BulkheadError]] = {
    cls.default_reason: cls
    for cls in (
        InvalidInput, Unauthenticated, PermissionDenied, NotFound, Gone, Conflict, IdempotencyMismatch,
        FailedPrecondition, QuotaExceeded, BudgetExceeded, Overloaded, UpstreamFailed, DeadlineExceeded, Cancelled, Internal,
    )
}  # fmt: skip
_BY_CODE: Mapping[grpc.StatusCode, type[BulkheadError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.OUT_OF_RANGE: Gone,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: IdempotencyMismatch,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QuotaExceeded,
    grpc.StatusCode.UNAVAILABLE: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}
# Travels beside the reason, so that a domain's own reason keeps the class it was raised with.
_KIND = "kind"


def _pack(message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str, size: int) -> str:
    """The longest beginning of `text` that takes at most `size` bytes of UTF-8."""
    return text.encode()[:size].decode(errors="ignore")


def to_status(error: BulkheadError, trace_id: str = "") -> status_pb2.Status:
    """`error` as google.rpc.Status with its details; `trace_id` (32 hex digits) travels in ErrorInfo."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        if info.ByteSize() < MAX_STATUS_BYTES // 4:
            info.metadata[key] = _cut(value, 512)
    info.metadata[_KIND] = error.default_reason
    if trace_id:
        info.metadata["trace_id"] = trace_id
    details = [_pack(info)]
    if error.violations:
        request = error_details_pb2.BadRequest()
        for violation in error.violations[:MAX_VIOLATIONS]:
            if request.ByteSize() < MAX_STATUS_BYTES // 4:
                request.field_violations.add(field=_cut(violation.field, 256), description=_cut(violation.description, 512))
        details.append(_pack(request))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_pack(retry))
    if isinstance(error, QuotaExceeded):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=error.metadata.get("policy", ""), description=_cut(error.message, MAX_MESSAGE_BYTES))
        details.append(_pack(quota))
    number = code_pb2.Code.Value(error.code.name)
    return status_pb2.Status(code=number, message=_cut(error.message, MAX_MESSAGE_BYTES), details=details)


def from_status(status: status_pb2.Status) -> BulkheadError:
    """The domain error that `to_status` packed; an unknown status becomes the error of its code."""
    reason, metadata, violations, retry_after_s = None, {}, [], None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest()
            detail.Unpack(request)
            violations = [FieldViolation(v.field, v.description) for v in request.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    cls = _BY_REASON.get(metadata.pop(_KIND, ""))
    if cls is None:
        name = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
        cls = _BY_CODE.get(grpc.StatusCode[name], Internal)
    return cls(status.message, reason=reason, violations=violations, retry_after_s=retry_after_s, metadata=metadata)


def from_rpc_error(error: grpc.RpcError, service: str) -> BulkheadError:
    """The domain error behind a failed call to `service`; transport failures become Overloaded with reason UNREACHABLE."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status()
            status.ParseFromString(value)
            return from_status(status)
    code = error.code()
    if code == grpc.StatusCode.UNAVAILABLE:
        return Overloaded(f"{service} cannot be reached", reason="UNREACHABLE", metadata={"service": service})
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{service} did not answer in time", metadata={"service": service})
    if code == grpc.StatusCode.CANCELLED:
        return Cancelled(f"the call to {service} was cancelled", metadata={"service": service})
    cls = _BY_CODE.get(code, Internal)
    # The peer's own text may hold internals (a codec's exception, say), so it stays in the peer's log.
    return cls(f"{service} refused the call ({code.name.lower()})", metadata={"service": service})
