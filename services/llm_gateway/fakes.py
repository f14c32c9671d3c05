"""Ports in memory, for tests: the same rules as the real adapters, checked by the same conformance suite.

purse = InMemoryPurse.of(PrincipalLimits(key=LimitSet(max_budget_microusd=1_000_000)))
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from services.common.accounts import PrincipalLimits
from services.common.identity import Principal
from services.common.limits import TierPolicy
from services.llm_gateway.accounting import BudgetStates, Caps, Holder, Plan, Plans, Subject, Threshold, run_holder
from services.llm_gateway.accounting.lines import about_of, corrected, lost, settled
from services.llm_gateway.accounting.plans import DAY_S
from services.llm_gateway.accounting.refusals import budget_exceeded, quota_exceeded
from services.llm_gateway.accounting.views import NANO_PER_USD, left_of, states_of
from services.llm_gateway.money import NOTHING, Usage
from services.llm_gateway.ports import Ask, LimitState, Ticket

MINUTE_S = 60


class FixedLimits:
    """Accounts whose limits are the same for everybody, and can be changed."""

    def __init__(self, limits: PrincipalLimits) -> None:
        self.current = limits

    async def limits(self, principal: Principal) -> PrincipalLimits:
        """The limits."""
        return self.current


class MemorySubjects:
    """Pseudonyms that end with the process."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Subject] = {}

    async def of(self, tenant: str, user: str) -> Subject:
        """The user's subject."""
        return self._known.setdefault((tenant, user), Subject.new(user))


@dataclass(slots=True)
class _Money:
    """What one holder has spent and used, as the Lua side keeps it."""

    spent: dict[int, int] = field(default_factory=lambda: dict.fromkeys((1, 2, 3, 4), 0))
    began: dict[int, int] = field(default_factory=lambda: dict.fromkeys((1, 2, 3, 4), 0))
    length: int = 0
    held: int = 0
    open: int = 0
    lines: int = 0
    day_tokens: int = 0
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)

    def roll(self, now: float, length: int = 0) -> None:
        """Begins the windows that have come."""
        moment = datetime.fromtimestamp(now, UTC)
        months = (moment.year - 1970) * 12 + moment.month - 1
        if length and length != self.length:
            self.length, self.spent[4], self.began[4] = length, 0, int(now) if length > 0 else months // -length
        period = self.began[4]
        if self.length > 0:
            period += int(max(0, now - period) // self.length) * self.length
        elif self.length < 0:
            period = months // -self.length
        for window, began in ((2, int(now // DAY_S)), (3, months), (4, period)):
            if self.began[window] != began:
                self.began[window], self.spent[window] = began, 0
                if window == 2:
                    self.day_tokens = 0

    def ends(self, window: int) -> int:
        """Where a window ends, in Unix seconds; 0 for the total."""
        began = self.began[window]
        if window == 1 or (window == 4 and not self.length):
            return 0
        if window == 2:
            return (began + 1) * DAY_S
        if window == 4 and self.length > 0:
            return began + self.length
        months = began + 1 if window == 3 else (began + 1) * -self.length
        return int(datetime(1970 + months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp())

    def used(self, kind: str, limit: int, now: float) -> float:
        """What is used of a rate a minute."""
        used, at = self.rates.get(kind, (0.0, now))
        return max(0.0, used - max(0.0, now - at) * limit / MINUTE_S)


@dataclass(slots=True)
class _Reservation:
    plan: Plan
    holders: Sequence[Holder]
    ask: Ask
    at: float
    about: bytes
    began: list[dict[int, int]] = field(default_factory=list)


class InMemoryPurse:
    """Implements ports.Purse. `ledger` holds the lines as they were written, `thresholds` what was told of budgets."""

    def __init__(self, plans: Plans, clock: Callable[[], float] = time.time) -> None:
        self._plans = plans
        self._clock = clock
        self._money: dict[str, _Money] = {}
        self._open: dict[str, _Reservation] = {}
        self._lost: dict[str, _Reservation] = {}
        self._told: dict[tuple[str, int | str], tuple[int, int, int]] = {}
        self._numbers = itertools.count(1)
        self.ledger: list[dict[str, Any]] = []
        self.thresholds: list[Threshold] = []

    @classmethod
    def of(
        cls, limits: PrincipalLimits = PrincipalLimits(), tier: TierPolicy | None = None, clock: Callable[[], float] = time.time
    ) -> "InMemoryPurse":
        """A purse with these limits for everybody."""
        return cls(Plans(FixedLimits(limits), lambda _: tier, MemorySubjects()), clock)

    async def reserve(self, ask: Ask) -> Ticket:
        """Takes from every holder, or from none."""
        plan = self._plans.known(ask.principal, ask.group) or await self._plans.find(ask.principal, ask.group)
        holders = plan.holders
        if ask.run_id and ask.run_budget_microusd is not None:
            holders = (*holders, run_holder(plan.tenant, ask.run_id, ask.run_budget_microusd))
        now, short = self._clock(), None
        for holder in holders:
            money = self._money.setdefault(holder.key, _Money())
            money.roll(now, holder.caps.period_length)
            for window, limit in holder.caps.money() if ask.cost_nanousd else ():
                spent = money.spent[window]
                if spent + money.held + ask.cost_nanousd > limit:
                    if limit and spent >= limit * 0.8:
                        self._alert(plan.tenant, holder, window, limit, spent, 100)
                    raise budget_exceeded(holder, window, spent, money.held, limit, money.ends(window))
            short = short or self._short(holder, money, ask, now)
        if short is not None:
            raise short
        for holder in holders:
            money = self._money[holder.key]
            money.held += ask.cost_nanousd
            money.open += 1
            money.day_tokens += ask.tokens
            for kind, limit, amount in _rates(holder.caps, ask):
                money.rates[kind] = (money.used(kind, limit, now) + amount, now)
        id_ = f"t.{next(self._numbers)}"
        self._open[id_] = _Reservation(plan, holders, ask, now, about_of(plan, ask))
        return Ticket(id_, ask, self._states(holders, now))

    def _short(self, holder: Holder, money: _Money, ask: Ask, now: float) -> Exception | None:
        caps = holder.caps
        if 0 <= caps.parallel < money.open + 1:
            return quota_exceeded(holder, 4, caps.parallel, 0, 1000)
        if 0 <= caps.tokens_per_day < money.day_tokens + ask.tokens:
            wait_ms = -1 if ask.tokens > caps.tokens_per_day else int(((money.began[2] + 1) * DAY_S - now) * 1000)
            return quota_exceeded(holder, 1, caps.tokens_per_day, max(0, caps.tokens_per_day - money.day_tokens), wait_ms)
        for quota, (kind, limit, amount) in zip((2, 3), _rates(caps, ask, all_=True), strict=True):
            used = money.used(kind, limit, now) if limit >= 0 else 0.0
            if limit >= 0 and amount and used + amount > limit:
                wait_ms = -1 if amount > limit else int((used + amount - limit) * MINUTE_S * 1000 / limit) + 1
                return quota_exceeded(holder, quota, limit, max(0, int(limit - used)), wait_ms)
        return None

    def _states(self, holders: Sequence[Holder], now: float) -> tuple[LimitState, ...]:
        found = []
        for kind, name in (("requests", "requests_per_minute"), ("tokens", "tokens_per_minute")):
            limited = [(limit, self._money[h.key].used(kind, limit, now)) for h in holders if (limit := getattr(h.caps, name)) >= 0]
            if limited:
                limit, used = min(limited, key=lambda pair: pair[0] - pair[1])
                found.append(LimitState(kind, limit, max(0, int(limit - used)), used * MINUTE_S / max(limit, 1)))
        return tuple(found)

    def settle(self, ticket: Ticket, usage: Usage, *, status: str, latency_s: float, metadata: Mapping[str, Any] | None = None) -> None:
        """Ends a ticket with its cost, or corrects one that was lost."""
        made = self._open.pop(ticket.id, None)
        if made is not None:
            self._book(made, usage.cost_nanousd, ask_less=1, tokens=usage.input + usage.output - made.ask.tokens, lines=1)
            self._write(settled(made.plan, ticket.id, made.ask, usage, status, latency_s, metadata).line, made.plan)
        else:
            self._correct(ticket, usage, status, billed=True)

    def release(self, ticket: Ticket) -> None:
        """Ends a ticket that cost nothing."""
        made = self._open.pop(ticket.id, None)
        if made is not None:
            self._book(made, 0, ask_less=1, tokens=-made.ask.tokens, lines=0)
        else:
            self._correct(ticket, NOTHING, "released", billed=False)

    def _correct(self, ticket: Ticket, usage: Usage, status: str, *, billed: bool) -> None:
        made = self._lost.pop(ticket.id, None)
        if made is not None:
            ask, delta = made.ask, usage.cost_nanousd - made.ask.cost_nanousd
            self._book(made, delta, ask_less=0, tokens=usage.input + usage.output - ask.tokens, lines=1)
            self._write(corrected(made.plan, ticket.id, ask, usage, status, ask.cost_nanousd, ask.tokens, billed=billed).line, made.plan)

    def _book(self, made: _Reservation, cost: int, *, ask_less: int, tokens: int, lines: int, tell: bool = True) -> None:
        now = self._clock()
        began, made.began = made.began, []
        for index, holder in enumerate(made.holders):
            money = self._money.setdefault(holder.key, _Money())
            money.roll(now)
            money.held = max(0, money.held - ask_less * made.ask.cost_nanousd)
            money.open = max(0, money.open - ask_less)
            money.lines += lines
            if int(made.at // DAY_S) == money.began[2]:
                money.day_tokens = max(0, money.day_tokens + tokens)
            used, at = money.rates.get("tokens", (0.0, 0.0))
            if at:
                money.rates["tokens"] = (max(0.0, used + tokens), at)
            for window in (1, 2, 3, 4):
                if not began or began[index][window] == money.began[window]:
                    money.spent[window] = max(0, money.spent[window] + cost)
            made.began.append(dict(money.began))
            for window, limit in holder.caps.money() if cost > 0 and tell else ():
                if limit and money.spent[window] >= limit * 0.8:
                    self._alert(made.plan.tenant, holder, window, limit, money.spent[window], 80)
            soft, window = holder.caps.soft, holder.caps.soft_window
            if cost > 0 and tell and soft > 0 and money.spent[window] >= soft:
                self._alert(made.plan.tenant, holder, window, soft, money.spent[window], 0)

    def _alert(self, tenant: str, holder: Holder, window: int, limit: int, spent: int, percent: int) -> None:
        level = 1 if percent == 0 else 2 if percent == 100 or spent >= limit else 1
        field_ = (holder.key, "soft" if percent == 0 else window)
        ends = self._money[holder.key].ends(window)
        before = self._told.get(field_, (0, 0, 0))
        reached = before[2] if before[:2] == (ends, limit) else 0
        if level > reached:
            self._told[field_] = (ends, limit, level)
            for percent_ in (0,) if percent == 0 else (80, 100)[reached:level]:
                self.thresholds.append(Threshold(tenant, holder.scope, holder.id, holder.period_of(window), percent_, spent, limit))

    def _write(self, line: bytes, plan: Plan) -> None:
        found = orjson.loads(line)
        found["user"] = plan.subject.user
        if sealed := found.pop("sealed", None):
            found["metadata"] = plan.subject.open(sealed)
        self.ledger.append({"at": int(self._clock() * 1000), **found})

    async def sweep(self) -> int:
        """Books what has expired."""
        now, booked = self._clock(), 0
        for id_, made in list(self._open.items()):
            if made.at + made.ask.expires_s <= now:
                del self._open[id_]
                # Nobody who sweeps knows the limits; the next call that these holders pay for tells what has been reached.
                self._book(made, made.ask.cost_nanousd, ask_less=1, tokens=0, lines=1, tell=False)
                self._write(lost(id_, made.about, made.ask.cost_nanousd, made.ask.tokens).line, made.plan)
                self._lost[id_] = made
                booked += 1
        return booked

    async def drain(self, timeout_s: float) -> int:
        """Nothing is ever under way."""
        return 0

    async def budget_left(self, principal: Principal) -> float:
        """The smallest share that is left."""
        plan = await self._plans.find(principal, "")
        return left_of(plan.holders, self._seen(plan.holders))

    async def budgets(self, principal: Principal, run_id: str = "", group: str = "") -> BudgetStates:
        """All that limits the caller."""
        plan = await self._plans.find(principal, group)
        return states_of(plan.holders, self._seen(plan.holders))

    def _seen(self, holders: Sequence[Holder]) -> list[tuple[int, ...]]:
        now, found = self._clock(), []
        for holder in holders:
            money, caps = self._money.setdefault(holder.key, _Money()), holder.caps
            money.roll(now, caps.period_length)
            spent = money.spent
            found.append(
                (
                    spent[1] // NANO_PER_USD, spent[1] % NANO_PER_USD, money.held, money.open, money.lines, spent[2], money.day_tokens,
                    spent[3], spent[4], math.ceil(money.used("requests", caps.requests_per_minute, now)),
                    math.ceil(money.used("tokens", caps.tokens_per_minute, now)), money.ends(2), money.ends(3), money.ends(4), -1,
                )
            )  # fmt: skip
        return found


def _rates(caps: Caps, ask: Ask, *, all_: bool = False) -> list[tuple[str, int, int]]:
    found = [("requests", caps.requests_per_minute, ask.requests), ("tokens", caps.tokens_per_minute, ask.tokens)]
    return found if all_ else [rate for rate in found if rate[1] >= 0]
