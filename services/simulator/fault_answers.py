"""Error answers that faults ask for before a model would have said anything."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate

from services.simulator.faults import Faults, count
from services.simulator.refusals import Failure, Refused

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """A whole answer that is no completion; nothing is billed for it. The dialect of the request writes the body."""

    fault: str
    refused: Refused
    headers: tuple[Header, ...]


_CODE_BY_STATUS: Mapping[int, str] = {
    401: "invalid_api_key",
    404: "model_not_found",
    413: "request_too_large",
    429: "rate_limit_exceeded",
}
_MESSAGE_BY_STATUS: Mapping[int, str] = {
    400: "The request is not valid.",
    401: "Incorrect API key provided.",
    403: "You are not allowed to use this model.",
    404: "The model does not exist or you do not have access to it.",
    408: "The request took too long to arrive.",
    409: "The request conflicts with another one.",
    425: "The request came too early.",
    429: "Rate limit reached for requests.",
    500: "The server had an error while processing your request.",
    502: "Bad gateway.",
    503: "The engine is currently overloaded, please try again later.",
    504: "The engine did not answer in time.",
    529: "Overloaded",
}


def error_answer(faults: Faults, now_s: float | None = None) -> ErrorAnswer | None:
    """The error that the faults ask for, None where they ask for none. `now_s` is the epoch, for the forms that hold a date."""
    if "rate_limit" in faults:
        form = str(faults["rate_limit"])
        headers = _wait_headers(form, time.time() if now_s is None else now_s)
        return _answer("rate_limit", 429, headers, kind=Failure.RATE_LIMIT, retry_after_s=_in_body_s(form))
    if "unauthorized" in faults:
        return _answer("unauthorized", 401, (), kind=Failure.BAD_KEY)
    if "forbidden" in faults:
        return _answer("forbidden", 403, ())
    if "insufficient_quota" in faults:
        message = "You exceeded your current quota, please check your plan and billing details."
        return _answer("insufficient_quota", 429, (), message, kind=Failure.QUOTA, code="insufficient_quota")
    if "context_length" in faults:
        message = "This model's maximum context length is 128000 tokens. However, your messages resulted in more tokens."
        return _answer("context_length", 400, (), message, kind=Failure.CONTEXT, code="context_length_exceeded", param="messages")
    if "content_policy" in faults:
        message = "Your request was rejected as a result of our safety system."
        return _answer("content_policy", 400, (), message, kind=Failure.POLICY, code="content_policy_violation")
    status = count(faults, "status")
    if "redirect" in faults:
        asked = status if status is not None and 300 <= status < 400 else 307
        return _answer("redirect", asked, ((b"location", str(faults["redirect"]).encode()),))
    return _answer("status", status, ()) if status is not None else None


def _answer(
    fault: str,
    status: int,
    headers: tuple[Header, ...],
    message: str = "",
    *,
    kind: Failure = Failure.PLAIN,
    code: str | None = None,
    param: str | None = None,
    retry_after_s: float | None = None,
) -> ErrorAnswer:
    refused = Refused(
        message or _MESSAGE_BY_STATUS.get(status, f"The simulator answers {status}, as it was told to."),
        status=status,
        type="insufficient_quota" if kind is Failure.QUOTA else None,
        code=code or _CODE_BY_STATUS.get(status),
        param=param,
        kind=kind,
        retry_after_s=retry_after_s,
    )
    return ErrorAnswer(fault, refused, headers)


def _in_body_s(form: str) -> float | None:
    """The wait that Gemini tells in the body; the other dialects have no place for it."""
    kind, _, text = form.rpartition(":")
    return float(text) if form not in ("none", "junk") and kind in ("", "retry-info") else None


def _wait_headers(form: str, now_s: float) -> tuple[Header, ...]:
    kind, _, text = form.rpartition(":")
    if form == "none" or kind == "retry-info":
        return ()
    if form == "junk":
        return ((b"retry-after", b"soon"),)
    wait_s = float(text)
    plain = text.encode()
    if kind == "date":
        return ((b"retry-after", formatdate(math.ceil(now_s + wait_s), usegmt=True).encode()),)
    if kind == "ms":
        return ((b"retry-after-ms", plain),)
    if kind == "x-ms":
        return ((b"x-ms-retry-after-ms", plain),)
    if kind == "reset":
        return ((b"x-ratelimit-reset", plain),)
    if kind == "reset-epoch":
        return ((b"x-ratelimit-reset", str(math.ceil(now_s + wait_s)).encode()),)
    if kind == "reset-requests":
        return ((b"x-ratelimit-reset-requests", plain + b"s"), (b"x-ratelimit-remaining-requests", b"0"))
    if kind == "anthropic-reset":
        told = datetime.fromtimestamp(math.ceil(now_s + wait_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return ((b"anthropic-ratelimit-requests-reset", told.encode()), (b"anthropic-ratelimit-requests-remaining", b"0"))
    return ((b"retry-after", plain),)
