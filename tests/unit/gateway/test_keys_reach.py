"""No key that is made over HTTP may do more than its maker: over scopes, tiers, tenants, users, teams, ends and limits."""

import time
from dataclasses import replace
from decimal import Decimal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.accounts import NO_LIMITS, KeyRecord, LimitSet
from services.common.errors import BulkheadError, InvalidInput, NotFound, PermissionDenied
from services.common.limits import TierPolicy, parse_policies
from services.common.testing import ROOT
from services.gateway.surfaces.native import keys_reach as reach

FILE = yaml.safe_load((ROOT / "k8s/environments/local/config/policies.yaml").read_text())
ASKED = ("runs:read", "runs:write", "keys:write", "admin", "*")
POLICY = st.builds(
    TierPolicy,
    requests_per_minute=st.sampled_from([None, 1, 2]),
    money_per_day_usd=st.sampled_from([None, Decimal("0.1"), Decimal(1)]),
    concurrent_runs=st.sampled_from([None, 1, 2]),
    queued_runs=st.integers(0, 2),
    delayed_runs=st.integers(0, 2),
    approve_tools=st.sampled_from([(), ("a",), ("a", "b")]),
    approve_above_usd=st.sampled_from([None, Decimal(1)]),
)
KEY = st.builds(
    KeyRecord,
    st.sampled_from(["", "key_1", "key_2"]), st.sampled_from(["acme", "globex"]), st.sampled_from(["ana", "bo"]),
    st.sampled_from(["", "blue"]), st.sampled_from(["free", "pro", "unknown"]),
    st.lists(st.sampled_from(ASKED), unique=True).map(tuple),
    expires_at=st.sampled_from([0.0, 1e10, 2e10]),
    limits=st.sampled_from([NO_LIMITS, LimitSet(models=("m",)), LimitSet(models=("m", "n")), LimitSet(max_budget_microusd=5)]),
)  # fmt: skip
TWEAKED = (
    "requests_per_minute", "money_per_day_usd", "concurrent_runs", "queued_runs", "delayed_runs", "approve_tools", "approve_above_usd",
)  # fmt: skip
CHANGED = st.sets(st.sampled_from(["tenant", "user", "team", "tier", "scopes", "expires_at", "limits", "key_id"]), max_size=2)


def may(key, scope):
    return not key.principal().missing([scope])


def uses(policy):
    """How much of each thing a tier lets be done; more is more."""
    endless = Decimal("inf")

    def up_to(value):
        return endless if value is None else Decimal(value)

    return {
        "requests": up_to(policy.requests_per_minute),
        "money": up_to(policy.money_per_day_usd),
        "at work": up_to(policy.concurrent_runs),
        # Where any number is at work, none waits.
        "accepted": up_to(policy.concurrent_runs) + policy.queued_runs,
        "delayed": policy.delayed_runs,
        "unasked a": "a" not in policy.approve_tools,
        "unasked b": "b" not in policy.approve_tools,
        "unasked money": up_to(policy.approve_above_usd),
    }


@settings(max_examples=400, deadline=None)
@given(
    own=KEY.map(lambda key: replace(key, key_id="key_1")), other=KEY, changed=CHANGED, free=POLICY, pro=POLICY,
    token=st.sampled_from([False, False, True]),
)  # fmt: skip
def test_what_is_within_reach_may_nothing_that_the_maker_may_not(own, other, changed, free, pro, token):
    # Much like the maker's: what differs in everything is refused for anything.
    tiers = {"free": free, "pro": pro}
    key = replace(own, **{"key_id": "", **{name: getattr(other, name) for name in changed}})
    now = time.time()
    if token:
        own = replace(own, key_id="", expires_at=now + reach.MOST_BY_TOKEN.total_seconds(), limits=NO_LIMITS)
    maker = reach.maker_of(own.principal(), None if token else own, now)
    try:
        reach.require_reach(maker, key, tiers)
    except (PermissionDenied, NotFound):
        return
    assert key.tenant == own.tenant
    if key.key_id and key.key_id == own.key_id:
        return
    administers = may(own, "admin")
    assert key.user == own.user or administers
    assert key.team == own.team or administers
    for scope in (*ASKED, "anything"):
        assert may(own, scope) or not may(key, scope)
    mine, theirs = (uses(tiers.get(one.tier, free)) for one in (key, own))
    assert key.tier == own.tier or all(mine[name] <= theirs[name] for name in mine)
    assert own.expires_at == 0 or 0 < key.expires_at <= own.expires_at
    # A budget is counted by key, so that two keys spend it twice.
    assert own.limits.max_budget_microusd is None
    for model in "mno":
        assert own.limits.allows(model) or not key.limits.allows(model)


@settings(max_examples=400, deadline=None)
@given(tier=POLICY, changes=POLICY, names=st.sets(st.sampled_from(sorted(TWEAKED)), max_size=2))
def test_a_tier_within_another_lets_nothing_be_done_more(tier, changes, names):
    other = tier.model_copy(update={name: getattr(changes, name) for name in names})
    mine, theirs = uses(tier), uses(other)
    if reach.within(tier, other):
        assert all(mine[name] <= theirs[name] for name in mine)
    # And it is not refused for nothing, but where what waits makes up for what is at work.
    elif tier.queued_runs <= other.queued_runs:
        assert not all(mine[name] <= theirs[name] for name in mine)


@settings(max_examples=100, deadline=None)
@given(own=KEY.map(lambda key: replace(key, key_id="key_1")), policy=POLICY)
def test_a_key_without_limits_makes_its_like(own, policy):
    own = replace(own, limits=NO_LIMITS, scopes=(*own.scopes, "keys:write"))
    like = replace(own, key_id="")
    reach.require_reach(reach.maker_of(own.principal(), own, time.time()), like, {"free": policy})
    less = replace(like, scopes=(), expires_at=1e9)
    reach.require_reach(reach.maker_of(own.principal(), own, time.time()), less, {"free": policy})


@pytest.mark.parametrize("name", ["dev", "prod", "test"])
def test_the_tiers_that_are_shipped_stand_one_below_the_other(name):
    tiers = parse_policies(FILE, policy_set=name).sets[name]
    order = ("free", "pro", "enterprise")
    for low, tier in enumerate(order):
        for high, other in enumerate(order):
            assert reach.within(tiers[tier], tiers[other]) is (low <= high), (tier, other)


def test_each_limit_of_a_tier_is_looked_at():
    # A limit that is added to tiers and forgotten here would be handed out to whoever makes a key.
    looked_at = {*reach._UPPER, *reach._COUNTS, "queued_runs", "approve_tools"}
    assert set(TierPolicy.model_fields) == looked_at


def test_a_name_that_is_no_tier_today_is_nobodys_to_give():
    who, tiers = KeyRecord("key_1", "acme", "ana", tier="gone").principal(), {"free": TierPolicy()}
    reach.require_tier("free", who, tiers)
    reach.require_tier("gone", who, tiers)
    with pytest.raises(InvalidInput) as refused:
        reach.require_tier("platinum", who, tiers)
    assert refused.value.violations[0].field == "tier"


@pytest.mark.parametrize(
    ("own", "key", "reason"),
    [
        ({}, {"scopes": ("runs:write",)}, "SCOPE_MISSING"),
        ({}, {"scopes": ("*",)}, "SCOPE_MISSING"),
        ({"scopes": ("runs:read", "admin")}, {"team": "blue", "scopes": ()}, ""),
        ({}, {"team": "blue"}, "SCOPE_MISSING"),
        ({"team": "blue"}, {}, "SCOPE_MISSING"),
        ({}, {"user": "bo"}, "NOT_FOUND"),
        ({"scopes": ("runs:read", "admin")}, {"user": "bo"}, ""),
        ({"scopes": ("*",)}, {"tenant": "globex"}, "NOT_FOUND"),
        ({"tier": "free"}, {"tier": "pro"}, "TIER_NOT_HELD"),
        ({"tier": "pro"}, {"tier": "free"}, ""),
        ({"expires_at": 9e9}, {}, "KEY_OUTLASTS_CALLER"),
        ({"expires_at": 9e9}, {"expires_at": 9e9 + 1}, "KEY_OUTLASTS_CALLER"),
        ({"expires_at": 9e9}, {"expires_at": 9e9}, ""),
        ({"limits": LimitSet(requests_per_minute=1)}, {}, "KEY_LIMITED"),
        ({"limits": LimitSet(models=("m",))}, {}, "KEY_LIMITED"),
        ({"limits": LimitSet(models=("m",))}, {"limits": LimitSet(models=("m",))}, ""),
        ({"limits": LimitSet(requests_per_minute=1)}, {"key_id": "key_1"}, ""),
    ],
)
def test_why_a_key_is_out_of_reach(own, key, reason):
    base = KeyRecord("key_1", "acme", "ana", tier="pro", scopes=("runs:read",))
    own, key = replace(base, **own), replace(base, **{"key_id": "", **key})
    tiers = {"free": TierPolicy(max_steps=1), "pro": TierPolicy(max_steps=2)}
    try:
        reach.require_reach(reach.maker_of(own.principal(), own, time.time()), key, tiers)
        found = ""
    except BulkheadError as error:
        found = error.reason
    assert found == reason
