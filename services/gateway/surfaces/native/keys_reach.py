"""What a caller may do with which keys: nobody gets a key, or the secret of one, that may more than they may themselves.

Whoever came with a key is measured by its record, whoever came with a token of an outside issuer by the token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from services.common.accounts import NO_LIMITS, KeyRecord, LimitSet
from services.common.errors import InvalidInput, NotFound, PermissionDenied
from services.common.identity import Principal
from services.common.limits import TierPolicy

ADMIN = "admin"
# Who leaves an issuer gets no tokens any more; what a token made must not stay for good.
MOST_BY_TOKEN = timedelta(days=30)
# None does not limit.
_UPPER = (
    "requests_per_minute", "requests_per_day", "tool_calls_per_minute", "concurrent_runs", "task_seconds", "max_steps", "max_tool_calls",
    "max_run_tokens", "tokens_per_minute", "tokens_per_day", "money_per_day_usd", "model_parallel", "approve_above_usd", "retention_days",
    "thread_ttl_days",
)  # fmt: skip
_COUNTS = ("delayed_runs", "queue_weight")


@dataclass(frozen=True, slots=True)
class Maker:
    """Who asks for a key. `ends_at` is in Unix seconds, 0 for never; `limits` are those of the caller's own key."""

    principal: Principal
    ends_at: float = 0.0
    limits: LimitSet = NO_LIMITS


def maker_of(principal: Principal, own: KeyRecord | None, now: float) -> Maker:
    """The caller, by the record of their key as it is, None for one who came with a token. `now` in Unix seconds."""
    if own is None:
        return Maker(principal, now + MOST_BY_TOKEN.total_seconds())
    return Maker(own.principal(), own.expires_at, own.limits)


def require_seen(who: Principal, key: KeyRecord) -> None:
    """One's own keys, and with `admin` those of the tenant; all others are not there: NotFound."""
    if key.tenant != who.tenant or (key.user != who.user and who.missing([ADMIN])):
        raise NotFound("no such key")


def require_hold(who: Principal, key: KeyRecord) -> None:
    """To rename or end a key takes its scopes: one that may little cannot end the one that would end it.

    Raises NotFound, PermissionDenied.
    """
    require_seen(who, key)
    who.require(*key.scopes)


def require_reach(maker: Maker, key: KeyRecord, tiers: Mapping[str, TierPolicy]) -> None:
    """Raises PermissionDenied unless the caller may do themselves all that `key` may, and for as long; NotFound as `require_seen`.

    `key` is about to be made, or to get a new secret. The caller's own key is always within reach.
    """
    who = maker.principal
    require_hold(who, key)
    if key.key_id and key.key_id == who.key_id:
        return
    if key.team != who.team:
        who.require(ADMIN)
    if key.tier != who.tier and not _tier_within(key.tier, who.tier, tiers):
        raise PermissionDenied("the tier allows more than the caller's own", reason="TIER_NOT_HELD")
    if maker.ends_at and not 0 < key.expires_at <= maker.ends_at:
        raise PermissionDenied("the key would outlast what the caller came with", reason="KEY_OUTLASTS_CALLER")
    # Money and counts of a key are counted by key: a second one would have them once more.
    if replace(maker.limits, models=()) != NO_LIMITS:
        raise PermissionDenied("a key with limits of its own gives no other", reason="KEY_LIMITED")
    if maker.limits.models and not (key.limits.models and set(key.limits.models) <= set(maker.limits.models)):
        raise PermissionDenied("the key may ask models that the caller's own may not", reason="KEY_LIMITED")


def require_tier(tier: str, who: Principal, tiers: Mapping[str, TierPolicy]) -> None:
    """Raises InvalidInput for a name that is no tier now: what it may tomorrow nobody knows."""
    if tier != who.tier and tier not in tiers:
        raise InvalidInput.field("tier", "is no tier of this installation")


def within(tier: TierPolicy, other: TierPolicy) -> bool:
    """Whether a tier allows in nothing more than another. Tiers have no order of their own, so each of their limits is looked at."""
    for name in _UPPER:
        mine, theirs = getattr(tier, name), getattr(other, name)
        if theirs is not None and (mine is None or mine > theirs):
            return False
    if other.concurrent_runs is not None and tier.queued_runs > other.queued_runs:
        return False
    return all(getattr(tier, name) <= getattr(other, name) for name in _COUNTS) and set(other.approve_tools) <= set(tier.approve_tools)


def _tier_within(tier: str, held: str, tiers: Mapping[str, TierPolicy]) -> bool:
    # A name that is no tier has the limits of `free` today.
    return within(tiers.get(tier, tiers["free"]), tiers.get(held, tiers["free"]))
