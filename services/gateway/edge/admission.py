"""Who is calling, what they may do, and how often."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from services.common.accounts import Accounts
from services.common.config import ConfigFile
from services.common.errors import Unauthenticated
from services.common.identity import Minter, Principal
from services.common.limits import Bucket, BucketsShort, Level, Policies, TokenBuckets, request_buckets
from services.common.rpc import context as call_context
from services.gateway.edge import limit_headers
from services.gateway.edge.exchange import Exchange
from services.gateway.edge.standing import Standing
from services.gateway.oidc import Tokens, is_token

MINUTE_S = 60
# Of one blob through all of its links: pages that show it to many have it from a cache of their own.
VISITS_PER_MINUTE = 300


class Admission:
    """Authenticates a request and takes it from the caller's rate limits, which are per user.

    Without the state store nobody is admitted (Overloaded): neither keys nor limits can be checked.
    """

    def __init__(
        self, accounts: Accounts, tokens: Tokens, minter: Minter, buckets: TokenBuckets, policies: ConfigFile[Policies], policy_set: str
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self._minter = minter
        self._buckets = buckets
        self._policies = policies
        self._policy_set = policy_set
        self._standing = Standing(self._whose)

    async def admit(self, exchange: Exchange, scopes: Sequence[str]) -> Principal:
        """Makes the caller the principal of the current call, with internal tokens for the calls that follow.

        Raises Unauthenticated, PermissionDenied, QuotaExceeded or Overloaded.
        """
        given = credential(exchange.headers)
        principal = await self._whose(given)
        exchange.tenant = principal.tenant
        exchange.watch = partial(self._standing.watch, given)
        # What is refused for a scope counts as well: it is work, and the answer says how much is left like any other.
        await self._take(principal, exchange)
        principal.require(*scopes)
        context = call_context.current() or call_context.CallContext(request_id=exchange.request_id, canary=exchange.canary)
        # What a request begins may outlast a token: a wait, a stream, the cancel when its client leaves.
        call_context.enter(replace(context, principal=principal, mint=partial(self._minter.mint, principal)))
        return principal

    async def visit(self, exchange: Exchange, thing: str) -> None:
        """Takes a request of whoever comes without credentials from what `thing`, an id of ours, allows to all of them together.

        Raises QuotaExceeded or Overloaded.
        """
        bucket = Bucket(f"rate:{{link:{thing}}}:minute", VISITS_PER_MINUTE, MINUTE_S, "link_requests_per_minute")
        try:
            await self._buckets.take([bucket], when_full=True)
        except BucketsShort:
            exchange.answer(limit_headers.POLICY, limit_headers.policies([bucket]))
            raise

    async def _whose(self, credential: str) -> Principal:
        if not (self._tokens.taken and is_token(credential)):
            return await self._accounts.resolve(credential)
        principal = await self._tokens.principal(credential)
        await self._accounts.confirm_holders(principal)
        return principal

    async def _take(self, principal: Principal, exchange: Exchange) -> None:
        buckets = request_buckets(principal, self._policies.current.tier(self._policy_set, principal.tier))
        if not buckets:
            return
        exchange.answer(limit_headers.POLICY, limit_headers.policies(buckets))
        try:
            # Where the store's memory is full, reading goes on, and so do answers to runs and their cancels. What is new is refused by
            # whoever would keep it.
            levels: Sequence[Level] = await self._buckets.take(buckets, when_full=True)
        except BucketsShort as error:
            exchange.answer(limit_headers.LEFT, limit_headers.left(buckets, error.levels))
            raise
        exchange.answer(limit_headers.LEFT, limit_headers.left(buckets, levels))


def credential(headers: dict[str, str]) -> str:
    """The API key or token of a request. Raises Unauthenticated when there is none."""
    given = headers.get("authorization", "")
    if given:
        scheme, _, key = given.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("the Authorization header must be `Bearer <API key>`", reason="API_KEY_MISSING")
        return key.strip()
    if key := headers.get("x-api-key", "").strip():
        return key
    raise Unauthenticated("an API key is needed: `Authorization: Bearer bh_…`", reason="API_KEY_MISSING")
