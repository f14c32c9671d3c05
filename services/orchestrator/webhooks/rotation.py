"""The secrets of a webhook, or of a hook, and how a new one takes the place of those until now."""

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from services.common.errors import FieldViolation
from services.common.idempotency import Claim, fingerprint

DEFAULT_OVERLAP = timedelta(hours=24)
MOST_OVERLAP = timedelta(days=7)


class Secret(NamedTuple):
    """What messages are signed with; `until_ms` ends it, 0 never does. `by` stands for the idempotency key that made it, where that is
    kept."""

    secret: str
    until_ms: int = 0
    by: str = ""


def valid(secrets: Sequence[Secret], now_ms: int) -> list[str]:
    """Those that count at this time, in the same order."""
    return [one.secret for one in secrets if not one.until_ms or one.until_ms > now_ms]


def mark_of(claim: Claim, print_: str) -> str:
    """What stands beside a secret for the idempotency key that made it and the body that it came with; empty where there is none."""
    return fingerprint(claim.key, print_)[:32] if claim.key else ""


def made_by(secrets: Sequence[Secret], by: str, now_ms: int) -> str | None:
    """The secret that was made under a key; None where it has ended since."""
    found = next((one for one in secrets if one.by == by), None)
    return None if found is None or 0 < found.until_ms <= now_ms else found.secret


def overlap_violations(overlap: timedelta | None) -> list[FieldViolation]:
    """What is wrong with the time that earlier secrets go on for; empty is well."""
    if overlap is None or timedelta() <= overlap <= MOST_OVERLAP:
        return []
    return [FieldViolation("overlap", f"must be from 0 to {MOST_OVERLAP.days} days")]


def ending(secrets: Sequence[Secret], overlap: timedelta, now_ms: int) -> list[Secret]:
    """Those that go on beside a new one, each for `overlap` at most."""
    until = now_ms + int(overlap.total_seconds() * 1000)
    # One that ends sooner already goes on to do so.
    old = [one._replace(until_ms=min(until, one.until_ms or until)) for one in secrets]
    return [one for one in old if one.until_ms > now_ms]
