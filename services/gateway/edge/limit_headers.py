"""RateLimit and RateLimit-Policy, structured fields of draft-ietf-httpapi-ratelimit-headers-10.

RateLimit-Policy: "requests_per_minute";q=60;w=60, "requests_per_day";q=1000;w=86400    # what holds: requests a window of seconds
RateLimit: "requests_per_minute";r=59;t=1, "requests_per_day";r=700;t=87                # left, and the seconds until there is more
"""

import math
import re
from collections.abc import Sequence

from services.common.errors import QuotaExceeded
from services.common.limits import Bucket, Level
from services.gateway.edge.exchange import Exchange

POLICY, LEFT = "ratelimit-policy", "ratelimit"
# What may stand between the quotes of a structured field without being escaped; names of policies come from other services as well.
_NAME = re.compile(r"[a-z0-9_.-]{1,64}\Z")


def policies(buckets: Sequence[Bucket]) -> str:
    """What holds for the caller, whatever is left of it."""
    return ", ".join(f'"{bucket.policy}";q={bucket.capacity};w={math.ceil(bucket.period_s)}' for bucket in buckets)


def left(buckets: Sequence[Bucket], levels: Sequence[Level]) -> str:
    """What is left of it. A policy that is full has no `t`; beside one that is short no other has, for none may name a later time than
    Retry-After does (section 6)."""
    short = any(level.short for level in levels)
    return ", ".join(
        f'"{bucket.policy}";r={0 if level.short else level.left}' + (_after(level.wait_s) if level.short or not short else "")
        for bucket, level in zip(buckets, levels, strict=True)
    )


def tell_of(error: QuotaExceeded, about: Exchange) -> None:
    """Adds to the answer the limit that a service behind the gateway refused by, beside those of the gateway's own."""
    policy = error.metadata.get("policy", "")
    if not _NAME.match(policy):
        return
    if any(name == LEFT.encode() and f'"{policy}";'.encode() in value for name, value in about.answer_headers):
        return
    about.answer_also(LEFT, f'"{policy}";r=0' + (_after(error.retry_after_s) if error.retry_after_s else ""))


def _after(seconds: float) -> str:
    return f";t={max(1, math.ceil(seconds))}" if seconds > 0 else ""
