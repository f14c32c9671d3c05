"""How long a provider asks to be left alone: every form that is in use."""

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

# Values of x-ratelimit-reset above this are points in time (Unix seconds), below it they are durations.
_EPOCH_S = 1_000_000_000
_LONGEST_S = 24 * 3600.0


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds to wait (0 or more) by `retry-after-ms`, `x-ms-retry-after-ms`, `retry-after` (seconds or HTTP date) or
    `x-ratelimit-reset` (seconds or Unix time), in that order; None without a usable one. `now_s` is Unix time.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        wait = _number(headers.get(name))
        if wait is not None:
            return _bounded(wait / 1000)
    value = headers.get("retry-after")
    if value is not None:
        wait = _number(value)
        if wait is None:
            wait = _date(value, now_s)
        if wait is not None:
            return _bounded(wait)
    wait = _number(headers.get("x-ratelimit-reset"))
    if wait is None:
        return None
    return _bounded(wait - now_s if wait > _EPOCH_S else wait)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date(value: str, now_s: float) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() - now_s


def _bounded(wait_s: float) -> float:
    return min(max(wait_s, 0.0), _LONGEST_S)
