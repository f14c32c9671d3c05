"""What Gemini's errors mean: `google.rpc.Status` as JSON, with ErrorInfo, RetryInfo, QuotaFailure and BadRequest among its details."""

import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from services.common.logging import redact
from services.llm_gateway.chat import text_of
from services.llm_gateway.failures import MAX_MESSAGE, Failure, FailureClass, classify, error_in
from services.llm_gateway.retry_after import retry_after_s

_STATUSES: Mapping[str, FailureClass] = {
    "RESOURCE_EXHAUSTED": FailureClass.RATE_LIMITED,
    "INVALID_ARGUMENT": FailureClass.CALLER_FAULT,
    "FAILED_PRECONDITION": FailureClass.CALLER_FAULT,
    "OUT_OF_RANGE": FailureClass.CALLER_FAULT,
    "UNAUTHENTICATED": FailureClass.CREDENTIAL,
    "PERMISSION_DENIED": FailureClass.CREDENTIAL,
    "NOT_FOUND": FailureClass.MODEL_GONE,
    "UNAVAILABLE": FailureClass.TRANSIENT,
    "INTERNAL": FailureClass.TRANSIENT,
    "ABORTED": FailureClass.TRANSIENT,
    "CANCELLED": FailureClass.TRANSIENT,
    "UNKNOWN": FailureClass.TRANSIENT,
    "DEADLINE_EXCEEDED": FailureClass.TRANSIENT,
    "UNIMPLEMENTED": FailureClass.UNKNOWN,
    "DATA_LOSS": FailureClass.UNKNOWN,
}
# ErrorInfo.reason, which says more than the status.
_REASONS: Mapping[str, FailureClass] = {
    "API_KEY_INVALID": FailureClass.CREDENTIAL,
    "API_KEY_EXPIRED": FailureClass.CREDENTIAL,
    "API_KEY_SERVICE_BLOCKED": FailureClass.CREDENTIAL,
    "API_KEY_HTTP_REFERRER_BLOCKED": FailureClass.CREDENTIAL,
    "API_KEY_IP_ADDRESS_BLOCKED": FailureClass.CREDENTIAL,
    "ACCESS_TOKEN_EXPIRED": FailureClass.CREDENTIAL,
    "CONSUMER_INVALID": FailureClass.CREDENTIAL,
    "CONSUMER_SUSPENDED": FailureClass.CREDENTIAL,
    "SERVICE_DISABLED": FailureClass.CREDENTIAL,
    "BILLING_DISABLED": FailureClass.QUOTA,
}
# Words for what the status leaves open; the first that is found decides.
_TEXTS: Mapping[str, tuple[tuple[re.Pattern[str], FailureClass], ...]] = {
    "INVALID_ARGUMENT": (
        (re.compile(r"token count.{0,40} exceeds|exceeds the maximum number of (?:input )?tokens", re.I), FailureClass.CONTEXT_WINDOW),
        (re.compile(r"API key (?:not valid|expired|not found)", re.I), FailureClass.CREDENTIAL),
        (re.compile(r"location is not supported", re.I), FailureClass.REGION),
    ),
    "FAILED_PRECONDITION": (
        (re.compile(r"location is not supported|not available in your (?:country|region)", re.I), FailureClass.REGION),
        (re.compile(r"billing|free tier", re.I), FailureClass.QUOTA),
    ),
    "RESOURCE_EXHAUSTED": ((re.compile(r"credits are depleted|spend(?:ing)? (?:cap|limit)|per day", re.I), FailureClass.QUOTA),),
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)s")


def failure_of(status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
    """An answer of another status than 200, or a body of status 200 that is no answer."""
    try:
        error = error_in(orjson.loads(body))
    except orjson.JSONDecodeError:
        error = None
    if error is None and status == 200:
        return Failure(FailureClass.MALFORMED, "the answer is of no known shape", status)
    return _failure(status, error or {}, retry_after_s(headers, time.time()))


def failure_in(error: Mapping[str, Any]) -> Failure:
    """What an error object inside a success means."""
    return _failure(200, error, None)


def _failure(status: int, error: Mapping[str, Any], waits_s: float | None) -> Failure:
    code, name, message = error.get("code"), text_of(error.get("status")), text_of(error.get("message"))
    if status == 200 and isinstance(code, int) and 400 <= code < 600:
        status = code
    details = _objects(error.get("details"))
    reason, param, daily = "", "", False
    for entry in details:
        kind = text_of(entry.get("@type")).rpartition(".")[2]
        if kind == "ErrorInfo":
            reason = reason or text_of(entry.get("reason"))
            metadata = entry.get("metadata")
            daily = daily or (isinstance(metadata, Mapping) and "PerDay" in text_of(metadata.get("quota_limit")))
        elif kind == "RetryInfo":
            waits_s = _seconds(entry.get("retryDelay"), waits_s)
        elif kind == "QuotaFailure":
            daily = daily or any("PerDay" in text_of(found.get("quotaId")) for found in _objects(entry.get("violations")))
        elif kind == "BadRequest" and not param:
            param = next((text_of(found.get("field")) for found in _objects(entry.get("fieldViolations"))), "")
    found = _REASONS.get(reason)
    if found is None and name == "RESOURCE_EXHAUSTED" and daily:
        found = FailureClass.QUOTA  # the delay that comes with it is that of the minute's limit
    if found is None:
        found = next((meant for pattern, meant in _TEXTS.get(name, ()) if pattern.search(message)), None)
    if found is None and not 300 <= status < 400:  # a redirect stays one, whatever its body is called
        found = _STATUSES.get(name)
    if found is None:
        return classify(status, {"message": message}, waits_s)
    return Failure(found, redact(message[:MAX_MESSAGE]), status, (reason or name).lower()[:64], param[:128], waits_s)


def _objects(entries: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def _seconds(delay: Any, otherwise: float | None) -> float | None:
    """A protobuf Duration as JSON writes it: `38s`, `1.5s`."""
    found = _DURATION.fullmatch(delay) if isinstance(delay, str) else None
    return min(float(found[1]), 24 * 3600.0) if found else otherwise
