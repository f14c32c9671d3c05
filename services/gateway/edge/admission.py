"""Who is calling, what they may do, and how often."""

import math
from collections.abc import Sequence
from dataclasses import replace

from services.common.accounts import Accounts
from services.common.config import ConfigFile
from services.common.errors import QuotaExceeded, Unauthenticated
from services.common.identity import Minter, Principal
from services.common.limits import Bucket, Policies, TierPolicy, TokenBuckets
from services.common.rpc import context as call_context
from services.gateway.edge.exchange import Exchange

MINUTE_S = 60
DAY_S = 86_400


class Admission:
    """Authenticates a request and takes it from the caller's rate limits, which are per user.

    Without the state store nobody is admitted (Overloaded): neither keys nor limits can be checked.
    """

    def __init__(self, accounts: Accounts, minter: Minter, buckets: TokenBuckets, policies: ConfigFile[Policies], policy_set: str) -> None:
        self._accounts = accounts
        self._minter = minter
        self._buckets = buckets
        self._policies = policies
        self._policy_set = policy_set

    async def admit(self, exchange: Exchange, scopes: Sequence[str]) -> Principal:
        """Makes the caller the principal of the current call, with an internal token for the calls that follow.

        Raises Unauthenticated, PermissionDenied, QuotaExceeded or Overloaded.
        """
        principal = await self._accounts.resolve(_api_key(exchange.headers))
        exchange.tenant = principal.tenant
        principal.require(*scopes)
        await self._take(principal, exchange)
        context = call_context.current() or call_context.CallContext(request_id=exchange.request_id, canary=exchange.canary)
        call_context.enter(replace(context, principal=principal, token=self._minter.mint(principal)))
        return principal

    async def _take(self, principal: Principal, exchange: Exchange) -> None:
        buckets = _buckets(principal, self._policies.current.tier(self._policy_set, principal.tier))
        if not buckets:
            return
        exchange.answer("ratelimit-policy", ", ".join(f'"{b.policy}";q={b.capacity};w={b.period_s:g}' for b in buckets))
        try:
            left = await self._buckets.take(buckets)
        except QuotaExceeded as error:
            wait_s = math.ceil(error.retry_after_s or 1)
            exchange.answer("ratelimit", f'"{error.metadata.get("policy", "")}";r=0;t={wait_s}')
            raise
        shown = [
            f'"{bucket.policy}";r={rest};t={math.ceil((bucket.capacity - rest) * bucket.period_s / bucket.capacity)}'
            for bucket, rest in zip(buckets, left, strict=True)
        ]
        exchange.answer("ratelimit", ", ".join(shown))


def _buckets(principal: Principal, policy: TierPolicy) -> list[Bucket]:
    # One hash tag, so that a clustered store takes from both in one step.
    owner = f"rate:{{{principal.tenant}:{principal.user}}}"
    found = []
    if policy.requests_per_minute:
        found.append(Bucket(f"{owner}:minute", policy.requests_per_minute, MINUTE_S, "requests_per_minute"))
    if policy.requests_per_day:
        found.append(Bucket(f"{owner}:day", policy.requests_per_day, DAY_S, "requests_per_day"))
    return found


def _api_key(headers: dict[str, str]) -> str:
    """The API key of a request. Raises Unauthenticated when there is none."""
    given = headers.get("authorization", "")
    if given:
        scheme, _, key = given.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("the Authorization header must be `Bearer <API key>`", reason="API_KEY_MISSING")
        return key.strip()
    if key := headers.get("x-api-key", "").strip():
        return key
    raise Unauthenticated("an API key is needed: `Authorization: Bearer bh_…`", reason="API_KEY_MISSING")
