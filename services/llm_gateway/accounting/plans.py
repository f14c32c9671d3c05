"""From a principal to the holders that pay for its calls, with everything precomputed that does not change from call to call."""

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import orjson

from services.common.accounts import NO_LIMITS, LimitSet, Period, PrincipalLimits
from services.common.errors import PermissionDenied
from services.common.identity import Principal
from services.common.limits import TierPolicy
from services.llm_gateway.accounting.subjects import Subject

NANO_PER_MICRO = 1_000
DAY_S = 86_400
# A change of limits takes effect within this, once the accounts have told it; until then a plan costs one look-up.
FRESH_S = 1.0
# A user who was forgotten and comes back gets a new pseudonym within this time.
SUBJECT_FRESH_S = 60.0
MOST_PLANS = 20_000
# Runs have no record of their own; what they spent is kept this long after their last call.
RUN_KEPT_MS = 7 * 24 * 3600 * 1000
NONE = -1
_LIMITS = struct.Struct("<11d")
UNLIMITED = b"\x00"


class Caps(NamedTuple):
    """What limits one holder, in the order of the Lua side; NONE does not limit. Money in nano-USD.

    `period_length` is the length of the budget period in seconds, or in months below 0; days and months of the calendar (UTC) have
    budgets of their own. `soft` belongs to the window `soft_window` (1 total, 2 day, 3 month, 4 period).
    """

    total: int = NONE
    day: int = NONE
    month: int = NONE
    period: int = NONE
    period_length: int = 0
    tokens_per_day: int = NONE
    requests_per_minute: int = NONE
    tokens_per_minute: int = NONE
    parallel: int = NONE
    soft: int = NONE
    soft_window: int = 0

    def packed(self) -> bytes:
        """The form that the Lua side reads."""
        return UNLIMITED if self == UNCAPPED else b"\x01" + _LIMITS.pack(*self)

    def money(self) -> tuple[tuple[int, int], ...]:
        """Pairs of window and limit of the money budgets that hold."""
        return tuple((window, limit) for window, limit in enumerate(self[:4], 1) if limit >= 0)


UNCAPPED = Caps()


@dataclass(frozen=True, slots=True)
class Holder:
    """One that pays: `scope` is key, user, team, tenant, model or run; a model of a key is `model` with the id `<key>/<model>`."""

    scope: str
    id: str
    key: str
    caps: Caps = UNCAPPED
    period: str = ""

    def period_of(self, window: int) -> str:
        """The name of a window's period; empty for the total."""
        return ("", "", "1d", "1mo", self.period)[window]


@dataclass(slots=True)
class Account:
    """What is known of one payer over all models: the smallest share of its budgets that is left, and when that was."""

    left: float = 1.0
    seen_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Plan:
    """Who pays for calls of one principal to one model group. `line` begins each line of the ledger, `about` ends each reservation.

    `report` is what the sums of a day are kept under, `report_rest` where a day has too many of them.
    """

    tenant: str
    holders: tuple[Holder, ...]
    keys: tuple[str, ...]
    limits: bytes
    subject: Subject
    account: Account
    line: bytes
    about: bytes
    report: bytes
    report_rest: bytes


class LimitsOf(Protocol):
    """What the accounts know (services.common.accounts)."""

    async def limits(self, principal: Principal) -> PrincipalLimits:
        """What limits `principal` beside its tier."""
        ...


class SubjectsOf(Protocol):
    """Keeps the pseudonyms of users."""

    async def of(self, tenant: str, user: str) -> Subject:
        """The user's subject; made when there is none."""
        ...


class Plans:
    """Makes and keeps plans. `tier` answers the policy of a tier, None for none; it is asked again every second."""

    def __init__(self, accounts: LimitsOf, tier: Callable[[str], TierPolicy | None], subjects: SubjectsOf) -> None:
        self._accounts = accounts
        self._tier = tier
        self._subjects = subjects
        self._plans: dict[tuple[str, ...], tuple[float, Plan, PrincipalLimits, TierPolicy | None]] = {}
        self._accounts_of: dict[tuple[str, ...], Account] = {}
        self._subjects_of: dict[tuple[str, str], tuple[float, Subject]] = {}
        self._finding: dict[tuple[str, ...], asyncio.Task[Plan]] = {}

    def known(self, principal: Principal, group: str) -> Plan | None:
        """The plan if it was made or confirmed within the last second."""
        found = self._plans.get((principal.tenant, principal.user, principal.key_id, principal.team, principal.tier, group))
        return found[1] if found is not None and found[0] > time.monotonic() else None

    async def find(self, principal: Principal, group: str) -> Plan:
        """The plan. `group` "" is for no model in particular. Many that ask at once share one look-up.

        Raises PermissionDenied (MODEL_NOT_ALLOWED), Overloaded when the store is away.
        """
        plan = self.known(principal, group)
        if plan is not None:
            return plan
        key = (principal.tenant, principal.user, principal.key_id, principal.team, principal.tier, group)
        finding = self._finding.get(key)
        if finding is None:
            finding = self._finding[key] = asyncio.get_running_loop().create_task(self._find(principal, group))
            finding.add_done_callback(partial(self._found, key))
        return await asyncio.shield(finding)

    def _found(self, key: tuple[str, ...], finding: asyncio.Task) -> None:
        del self._finding[key]
        if not finding.cancelled():
            finding.exception()  # whoever asked may have left; nobody else needs to hear of it

    async def _find(self, principal: Principal, group: str) -> Plan:
        limits = await self._accounts.limits(principal)
        if group and not limits.allows(group):
            raise PermissionDenied("the model is not allowed for this key", reason="MODEL_NOT_ALLOWED", metadata={"model": group[:128]})
        tier = self._tier(principal.tier)
        subject = await self._subject(principal)
        payer = (principal.tenant, principal.user, principal.key_id, principal.team, principal.tier)
        until = time.monotonic() + FRESH_S
        kept = self._plans.get((*payer, group))
        if kept is not None and kept[1].subject is subject and kept[2] == limits and kept[3] == tier:
            plan = kept[1]
        else:
            account = _keep(self._accounts_of, payer, self._accounts_of.get(payer) or Account())
            plan = plan_of(principal, group, limits, tier, subject, account)
        _keep(self._plans, (*payer, group), (until, plan, limits, tier))
        return plan

    async def allows(self, principal: Principal, group: str) -> bool:
        """Whether the principal may ask the model group."""
        return self.known(principal, group) is not None or (await self._accounts.limits(principal)).allows(group)

    def forget_user(self, tenant: str, user: str) -> None:
        """Drops what is kept of a user; other processes do so within SUBJECT_FRESH_S."""
        self._subjects_of.pop((tenant, user), None)
        for key in [key for key in self._plans if key[:2] == (tenant, user)]:
            del self._plans[key]

    async def _subject(self, principal: Principal) -> Subject:
        key = (principal.tenant, principal.user)
        kept = self._subjects_of.get(key)
        now = time.monotonic()
        if kept is None or kept[0] < now:
            found = await self._subjects.of(*key)
            # The same object as before where nothing has changed: plans that hold it stay good.
            kept = _keep(self._subjects_of, key, (now + SUBJECT_FRESH_S, kept[1] if kept is not None and kept[1] == found else found))
        return kept[1]


def _keep(kept: dict, key, value):
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > MOST_PLANS:
        del kept[next(iter(kept))]
    return value


def caps_of(limits: LimitSet, tier: TierPolicy | None = None) -> Caps:
    """Limits of one holder as caps; where a tier limits the same, the lower of both holds."""
    money: dict[int, int] = {}
    window, length = _window(limits)
    if limits.max_budget_microusd is not None:
        money[window] = limits.max_budget_microusd * NANO_PER_MICRO
    tokens_per_day, tokens_per_minute, parallel = limits.tokens_per_day, limits.tokens_per_minute, limits.max_parallel
    if tier is not None:
        if tier.money_per_day_microusd is not None:
            money[2] = min(money.get(2, tier.money_per_day_microusd * NANO_PER_MICRO), tier.money_per_day_microusd * NANO_PER_MICRO)
        tokens_per_day = _lower(tokens_per_day, tier.tokens_per_day)
        tokens_per_minute = _lower(tokens_per_minute, tier.tokens_per_minute)
        parallel = _lower(parallel, tier.model_parallel)
    soft = limits.soft_budget_microusd
    return Caps(
        total=money.get(1, NONE),
        day=money.get(2, NONE),
        month=money.get(3, NONE),
        period=money.get(4, NONE),
        period_length=length if window == 4 and (4 in money or soft is not None) else 0,
        tokens_per_day=_given(tokens_per_day),
        requests_per_minute=_given(limits.requests_per_minute),
        tokens_per_minute=_given(tokens_per_minute),
        parallel=_given(parallel),
        soft=NONE if soft is None else soft * NANO_PER_MICRO,
        soft_window=0 if soft is None else window,
    )


def _window(limits: LimitSet) -> tuple[int, int]:
    """The window of a budget period and its length, in seconds or in months below 0."""
    if not limits.budget_period:
        return 1, 0
    period = Period.parse(limits.budget_period)
    if period.unit == "mo":
        return (3, 0) if period.count == 1 else (4, -period.count)
    return (2, 0) if period.seconds == DAY_S else (4, period.seconds)


def _lower(first: int | None, second: int | None) -> int | None:
    return second if first is None else first if second is None else min(first, second)


def _given(limit: int | None) -> int:
    return NONE if limit is None else limit


def prefix(tenant: str) -> str:
    """What every money key of a tenant begins with."""
    return f"llm:{{{tenant}}}:"


def holder_of(tenant: str, scope: str, id_: str, limits: LimitSet = NO_LIMITS, tier: TierPolicy | None = None, *, name: str = "") -> Holder:
    """The holder of a scope with its limits. `name` stands in its key in place of scope and id: a user is kept by pseudonym, and a
    model of a key is none of the tenant's.
    """
    return Holder(scope, id_, prefix(tenant) + (name or f"{scope}:{id_}"), caps_of(limits, tier), limits.budget_period)


def run_holder(tenant: str, run_id: str, budget_microusd: int | None) -> Holder:
    """The holder of a run, which pays with the others as long as its budget lasts; None for one that is only looked at."""
    caps = UNCAPPED if budget_microusd is None else Caps(total=max(0, budget_microusd) * NANO_PER_MICRO)
    return Holder("run", run_id, f"{prefix(tenant)}run:{run_id}", caps)


def holders_of(principal: Principal, group: str, limits: PrincipalLimits, tier: TierPolicy | None, subject: Subject) -> Sequence[Holder]:
    """All that pay for a call, the narrowest first, so that an error names the limit that is nearest to the caller."""
    tenant, found, models = principal.tenant, [], []
    scopes = [
        ("key", principal.key_id, principal.key_id, limits.key, None),
        ("user", principal.user, subject.pseudonym, limits.user, tier),
        ("team", principal.team, principal.team, limits.team, None),
    ]
    for scope, id_, stored, own, policy in scopes:
        if id_:
            found.append(holder_of(tenant, scope, id_, own, policy, name=f"{scope}:{stored}"))
            if group in own.model_limits:
                name = f"{scope}.model:{stored}/{group}"
                models.append(holder_of(tenant, "model", f"{id_}/{group}", own.model_limits[group], name=name))
    found.append(holder_of(tenant, "tenant", tenant, limits.tenant))
    if group:
        models.append(holder_of(tenant, "model", group, limits.tenant.model_limits.get(group, NO_LIMITS)))
    return [*found, *models]


def report_field(key_id: str, pseudonym: str, team: str, group: str) -> bytes:
    """What a day's sums are kept under."""
    return orjson.dumps((key_id, pseudonym, team, group))


def plan_of(principal: Principal, group: str, limits: PrincipalLimits, tier: TierPolicy | None, subject: Subject, account: Account) -> Plan:
    """The plan of a principal for a model group."""
    holders = tuple(holders_of(principal, group, limits, tier, subject))
    keys = tuple(holder.key for holder in holders)
    who = {"tenant": principal.tenant, "user": subject.pseudonym, "team": principal.team, "key": principal.key_id}
    return Plan(
        tenant=principal.tenant,
        holders=holders,
        keys=keys,
        limits=b"".join(holder.caps.packed() for holder in holders),
        subject=subject,
        account=account,
        line=orjson.dumps({"schema_version": 1, **who, "model": group})[:-1] + b",",
        about=orjson.dumps({**who, "keys": keys}),
        report=report_field(principal.key_id, subject.pseudonym, principal.team, group),
        report_rest=report_field("", "", "", group),
    )
