"""Tool calls per minute by tier, as token buckets in the state store."""

import redis.asyncio as redis

from services.common.config import ConfigFile
from services.common.identity import Principal
from services.common.limits import Bucket, Policies, TokenBuckets

PERIOD_S = 60.0
POLICY = "tool_calls_per_minute"


class ToolCallRate:
    """Implements ports.RateLimit: one bucket a user of a tenant. A tier without the limit costs no round trip."""

    def __init__(self, client: redis.Redis, policies: ConfigFile[Policies], policy_set: str) -> None:
        self._buckets = TokenBuckets(client)
        self._policies = policies
        self._policy_set = policy_set

    async def take(self, principal: Principal) -> None:
        """As the port says."""
        limit = self._policies.current.tier(self._policy_set, principal.tier).tool_calls_per_minute
        if limit is not None:
            key = f"tool_rate:{{{principal.tenant}}}:{principal.user}"
            await self._buckets.take([Bucket(key, limit, PERIOD_S, POLICY)], when_full=bool(principal.run_id))
