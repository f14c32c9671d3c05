"""How model calls fail: a pure function from what came back to a class, and a table from the class to the next move.

The class alone decides whether the same deployment is asked again, another one, another model, or nobody. The split
follows Bifrost's `failureclass`; the codes are those of the OpenAI API and its look-alikes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from services.common.logging import redact

MAX_MESSAGE = 400


class FailureClass(StrEnum):
    """Why an attempt failed."""

    TRANSIENT = "transient"
    RATE_LIMITED = "rate_limited"
    QUOTA = "quota"
    CREDENTIAL = "credential"
    REGION = "region"
    MODEL_GONE = "model_gone"
    CONTEXT_WINDOW = "context_window"
    CONTENT_POLICY = "content_policy"
    CALLER_FAULT = "caller_fault"
    TIMEOUT_CONNECT = "timeout_connect"
    TIMEOUT_FIRST_TOKEN = "timeout_first_token"  # noqa: S105 - no password
    TIMEOUT_TOTAL = "timeout_total"
    STALLED = "stalled"
    CUT = "cut"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    # Nobody was asked: the breaker is open, the deployment's own limit is used up, or it cannot take the request as it stands.
    BREAKER_OPEN = "breaker_open"
    SATURATED = "saturated"
    UNFIT = "unfit"


class Move(StrEnum):
    """What may be tried after a failure. RETRY may use the same deployment again, the others may not."""

    RETRY = "retry"
    OTHER_DEPLOYMENT = "other_deployment"
    OTHER_MODEL = "other_model"
    STOP = "stop"


# Only 429, 5xx and connection failures are asked again at the same place. A deployment that stayed silent is not: the
# next answer would cost the caller the same wait. CONTEXT_WINDOW and CONTENT_POLICY move on only to models that the
# configuration names for them.
MOVES: Mapping[FailureClass, Move] = {
    FailureClass.TRANSIENT: Move.RETRY,
    FailureClass.RATE_LIMITED: Move.RETRY,
    FailureClass.CUT: Move.RETRY,
    FailureClass.QUOTA: Move.OTHER_DEPLOYMENT,
    FailureClass.CREDENTIAL: Move.OTHER_DEPLOYMENT,
    FailureClass.REGION: Move.OTHER_DEPLOYMENT,
    FailureClass.MODEL_GONE: Move.OTHER_DEPLOYMENT,
    FailureClass.TIMEOUT_CONNECT: Move.OTHER_DEPLOYMENT,
    FailureClass.TIMEOUT_FIRST_TOKEN: Move.OTHER_DEPLOYMENT,
    FailureClass.TIMEOUT_TOTAL: Move.OTHER_DEPLOYMENT,
    FailureClass.STALLED: Move.OTHER_DEPLOYMENT,
    FailureClass.MALFORMED: Move.OTHER_DEPLOYMENT,
    FailureClass.UNKNOWN: Move.OTHER_DEPLOYMENT,
    FailureClass.BREAKER_OPEN: Move.OTHER_DEPLOYMENT,
    FailureClass.SATURATED: Move.OTHER_DEPLOYMENT,
    FailureClass.UNFIT: Move.OTHER_DEPLOYMENT,
    FailureClass.CONTEXT_WINDOW: Move.OTHER_MODEL,
    FailureClass.CONTENT_POLICY: Move.OTHER_MODEL,
    FailureClass.CALLER_FAULT: Move.STOP,
}

# No provider heard of the call, unless the failure has a status; what one said that did says more about why it failed.
NOBODY_ASKED = frozenset({FailureClass.BREAKER_OPEN, FailureClass.SATURATED, FailureClass.UNFIT})


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt. `message` is the provider's, redacted and short; it reaches callers only for their own faults."""

    failure_class: FailureClass
    message: str = ""
    status: int = 0
    code: str = ""
    param: str = ""
    retry_after_s: float | None = None

    @property
    def asked(self) -> bool:
        """Whether a provider heard of the attempt. A request that cannot be made may have turned out to be so by its answer."""
        return self.failure_class not in NOBODY_ASKED or self.status > 0


class UpstreamFault(Exception):
    """Raised by an upstream when an attempt failed. `usage` is in OpenAI's shape, where the provider bills the failed attempt.

    `sent` are the chunks of a stream that came in the same read before what failed it: nobody gets them, and they are billed.
    """

    def __init__(self, failure: Failure, usage: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{failure.failure_class}: {failure.message}")
        self.failure = failure
        self.usage = usage
        self.sent: Sequence[Any] = ()


_CONTEXT_CODES = frozenset({"context_length_exceeded", "string_above_max_length", "context_window_exceeded"})
_CONTEXT_TEXT = re.compile(
    r"maximum context length|context (?:window|length|size)|prompt is too long|too many (?:input )?tokens|input is too long"
    r"|exceeds? the (?:model'?s? )?(?:maximum|limit of) .{0,30}tokens",
    re.I,
)
_POLICY_CODES = frozenset({"content_policy_violation", "content_filter", "moderation_blocked", "responsible_ai_policy_violation"})
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"})
_CREDENTIAL_CODES = frozenset({"invalid_api_key", "account_deactivated", "invalid_authentication", "authentication_error"})
_REGION_CODES = frozenset({"unsupported_country_region_territory", "region_not_supported"})
_MODEL_CODES = frozenset({"model_not_found", "model_not_available", "model_decommissioned", "deploymentnotfound"})
_RATE_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "tokens_exceeded", "too_many_requests"})
_CALLER_TYPES = frozenset({"invalid_request_error", "invalid_request"})


def _of_code(code: str) -> FailureClass | None:
    for codes, found in (
        (_CONTEXT_CODES, FailureClass.CONTEXT_WINDOW),
        (_POLICY_CODES, FailureClass.CONTENT_POLICY),
        (_QUOTA_CODES, FailureClass.QUOTA),
        (_CREDENTIAL_CODES, FailureClass.CREDENTIAL),
        (_REGION_CODES, FailureClass.REGION),
        (_MODEL_CODES, FailureClass.MODEL_GONE),
        (_RATE_CODES, FailureClass.RATE_LIMITED),
    ):
        if code in codes:
            return found
    return None


def _of_status(status: int) -> FailureClass:
    if status in (408, 409, 425) or (500 <= status < 600 and status != 501):
        return FailureClass.TRANSIENT
    match status:
        case 429:
            return FailureClass.RATE_LIMITED
        case 401 | 403:
            return FailureClass.CREDENTIAL
        case 402:
            return FailureClass.QUOTA
        case 404 | 410:
            return FailureClass.MODEL_GONE
        case 451:
            return FailureClass.REGION
        case _ if 400 <= status < 500 and status != 407:
            return FailureClass.CALLER_FAULT
    return FailureClass.UNKNOWN


def error_of(body: bytes) -> Mapping[str, Any] | None:
    """The error object of a JSON body `{"error": {…}}` or `{"error": "text"}`, None where there is none."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return error_in(data)


def error_in(data: Any) -> Mapping[str, Any] | None:
    """The same for parsed JSON; some providers wrap the error in a list."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return None
    error = data.get("error")
    if isinstance(error, dict):
        return error
    return {"message": error} if isinstance(error, str) and error else None


def classify(status: int, error: Mapping[str, Any] | None, retry_after_s: float | None = None) -> Failure:
    """The failure that an HTTP answer with this status and error object means; status 200 is an error inside a success."""
    error = error or {}
    raw_code, raw_type = error.get("code"), error.get("type")
    # Some gateways put the upstream's HTTP status into `code`.
    if status < 300 and isinstance(raw_code, int) and 400 <= raw_code < 600:
        status = raw_code
    code = str(raw_code).lower() if isinstance(raw_code, str) else ""
    kind = str(raw_type).lower() if isinstance(raw_type, str) else ""
    message = error.get("message")
    message = message if isinstance(message, str) else ""
    found = _of_code(code) or (FailureClass.QUOTA if kind in _QUOTA_CODES else None)
    if found is None and status < 500 and status != 429 and _CONTEXT_TEXT.search(message):
        found = FailureClass.CONTEXT_WINDOW
    if found is None and status < 300:
        found = _of_code(kind) or (FailureClass.CALLER_FAULT if kind in _CALLER_TYPES else FailureClass.TRANSIENT)
    if found is None:
        found = _of_status(status)
    param = error.get("param")
    return Failure(
        found,
        message=redact(message[:MAX_MESSAGE]),
        status=status,
        code=code[:64],
        param=param[:128] if isinstance(param, str) else "",
        retry_after_s=retry_after_s,
    )
