"""How often a user may ask: the buckets of requests, which every HTTP entry and whoever takes messages for a user shares."""

from services.common.identity import Principal
from services.common.limits._buckets import Bucket
from services.common.limits._policies import TierPolicy

MINUTE_S = 60
DAY_S = 86_400


def request_buckets(principal: Principal, policy: TierPolicy) -> list[Bucket]:
    """The buckets that each request of a user takes from; none where the tier has no limit."""
    # One hash tag, so that a clustered store takes from both in one step.
    owner = f"rate:{{{principal.tenant}:{principal.user}}}"
    found = []
    if policy.requests_per_minute:
        found.append(Bucket(f"{owner}:minute", policy.requests_per_minute, MINUTE_S, "requests_per_minute"))
    if policy.requests_per_day:
        found.append(Bucket(f"{owner}:day", policy.requests_per_day, DAY_S, "requests_per_day"))
    return found
