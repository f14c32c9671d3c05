"""How often a user may ask: the buckets of requests, which every HTTP entry and whoever takes messages for a user shares."""

from services.common.identity import Principal
from services.common.limits._buckets import Bucket
from services.common.limits._policies import TierPolicy

MINUTE_S = 60
DAY_S = 86_400


def owner_key(principal: Principal) -> str:
    """What keys of a user's buckets begin with: one hash tag, so that a clustered store takes from several in one step."""
    return f"rate:{{{principal.tenant}:{principal.user}}}"


def request_buckets(principal: Principal, policy: TierPolicy) -> list[Bucket]:
    """The buckets that each request of a user takes from; none where the tier has no limit."""
    found = []
    if policy.requests_per_minute:
        found.append(Bucket(f"{owner_key(principal)}:minute", policy.requests_per_minute, MINUTE_S, "requests_per_minute"))
    if policy.requests_per_day:
        found.append(Bucket(f"{owner_key(principal)}:day", policy.requests_per_day, DAY_S, "requests_per_day"))
    return found
