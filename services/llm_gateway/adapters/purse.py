"""The purse in Valkey: every reserve, settlement and release is one Lua function over all that pay for the call.

purse = ValkeyPurse(state, Plans(accounts, tier_policy, Subjects(state)))
await purse.start()                       # the sweeper, which books what crashed processes left open
ticket = await purse.reserve(ask)         # BudgetExceeded, QuotaExceeded, Overloaded
purse.settle(ticket, usage, status="ok", latency_s=0.8)
await purse.drain(10.0)                   # at shutdown, after the last call: settlements that are still on their way
await purse.stop()
"""

import itertools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import Overloaded
from services.common.identity import Principal
from services.common.valkey import Library
from services.common.valkey_replicas import Lasting, asked, longest_wait_s, refusal
from services.llm_gateway.accounting import BudgetStates, Plan, Plans, Threshold, run_holder
from services.llm_gateway.accounting.lines import Entry, about_of, corrected, settled
from services.llm_gateway.accounting.plans import RUN_KEPT_MS, Holder, prefix
from services.llm_gateway.accounting.refusals import budget_exceeded, quota_exceeded
from services.llm_gateway.accounting.views import left_of, states_of
from services.llm_gateway.adapters.ledger import LEDGERS
from services.llm_gateway.adapters.purse_store import Deadlines, Outbox, Sending
from services.llm_gateway.adapters.purse_sweeper import Sweeper
from services.llm_gateway.adapters.store_breaker import StoreBreaker
from services.llm_gateway.money import NOTHING, Usage
from services.llm_gateway.ports import Ask, LimitState, Ticket

# Tenants that may have reservations, with the time they were last named, and all that have a ledger.
TENANTS = "llm:{purse}:tenants"
# A process says again that a tenant may have reservations; a tenant that nobody named for much longer is forgotten.
ANNOUNCED_S = 60.0
# A call that is on its way to the store for longer than this has been lost with its connection.
VOID_KEPT_MS = 10 * 60 * 1000
LEFT_FRESH_S = 5.0
log = structlog.get_logger("bulkhead.purse")
_meter = get_meter("bulkhead.llm")
_thresholds = _meter.create_counter("bulkhead_budget_thresholds_total", description="Budgets that reached 80 or 100 % of their limit.")
_refusals = _meter.create_counter("bulkhead_purse_refusals_total", description="Reserves that were refused, by scope and limit.")
_corrections = _meter.create_counter("bulkhead_purse_corrections_total", description="Lost reservations that were settled after all.")
_missing = _meter.create_counter("bulkhead_purse_missing_total", description="Settlements whose reservation the store does not have.")


@dataclass(frozen=True, slots=True)
class LedgerBounds:
    """How much of the past a tenant's ledger keeps: about so many lines, and the daily reports of so long, with so many entries a day."""

    lines: int = 1_000_000
    reports: timedelta = timedelta(days=92)
    report_entries: int = 10_000


@dataclass(slots=True)
class _Open:
    """What a ticket needs to end."""

    plan: Plan
    holders: Sequence[Holder]
    keys: list[str]
    limits: bytes
    run_ms: int
    until: float


class ValkeyPurse:
    """Implements ports.Purse. `timeout_s` bounds the wait for a reserve; a store that is slower refuses calls (budgets fail closed).

    A reservation counts once `replicas` have it on disk, for which there is more time. Whoever is promoted has it then, so that its end,
    which is sent until replicas have it, finds it there and is booked once.

    A threshold of a budget is told as the event budget_threshold, as a metric, and to `on_threshold`. `client` should have a time limit
    of a second or two for each answer: it ends what the store has swallowed.
    """

    def __init__(
        self,
        client: redis.Redis,
        plans: Plans,
        *,
        replicas: int = 0,
        timeout_s: float = 0.05,
        bounds: LedgerBounds = LedgerBounds(),
        on_threshold: Callable[[Threshold], None] | None = None,
        sweep_every_s: float = 5.0,
        backlog: int = 50_000,
    ) -> None:
        self._library = Library(client, Path(__file__).with_name("purse.lua"))
        self._plans = plans
        self._on_threshold = on_threshold
        self._lasting = Lasting(self._library, replicas)
        self._deadlines = Deadlines(timeout_s + longest_wait_s(replicas))
        self._breaker = StoreBreaker("money")
        self._outbox = Outbox(self._lasting, backlog)
        self._bounds = (bounds.lines, bounds.report_entries, int(bounds.reports.total_seconds() * 1000))
        self._announced: dict[str, float] = {}
        self._open: dict[str, _Open] = {}
        self._name = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._sweeper = Sweeper(self._library, TENANTS, self._bounds, sweep_every_s, self._tell, self._forget_stale)

    async def start(self) -> None:
        """Starts the sweeper."""
        self._sweeper.start()

    async def drain(self, timeout_s: float) -> int:
        """Waits for settlements and releases to reach the store; answers how many have not."""
        return await self._outbox.drain(timeout_s)

    async def stop(self) -> None:
        """Ends the background work. Call `drain` before."""
        self._deadlines.stop()
        await self._sweeper.stop()
        await self._outbox.stop()

    async def sweep(self) -> int:
        """Books what has expired, once; answers how many reservations that were. The sweeper does it by itself."""
        return await self._sweeper.sweep()

    async def reserve(self, ask: Ask, *, ticket_id: str = "") -> Ticket:
        """Takes the upper bound from every holder, or from none. A caller that must find the ticket again after a crash names it itself.

        A store whose memory is full refuses all but the calls of runs, as their tokens tell.
        Raises PermissionDenied (MODEL_NOT_ALLOWED), BudgetExceeded, QuotaExceeded, or Overloaded (STORE_UNAVAILABLE).
        """
        plan = self._plans.known(ask.principal, ask.group) or await self._plans.find(ask.principal, ask.group)
        if not self._breaker.admit():
            raise Overloaded("the state store is slow or away", reason="STORE_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "state"})
        made = _opened(plan, ask)
        id_ = ticket_id or f"{self._name}.{next(self._numbers):x}"
        base = prefix(plan.tenant)
        args = [id_, ask.cost_nanousd, ask.tokens, ask.requests, int(ask.expires_s * 1000), made.limits, about_of(plan, ask), made.run_ms]
        now = time.monotonic()
        if self._announced.get(plan.tenant, 0.0) < now:
            await self._announce(plan.tenant, now)
        function = "purse_reserve_of_run_v1" if ask.principal.run_id else "purse_reserve_v1"
        future = self._lasting.submit(function, [base + "open", base + "alerts", *made.keys], args)
        self._deadlines.watch(future)
        try:
            answer = await future
        except BaseException as error:
            # The store may have it, or get it yet.
            self._outbox.put(Sending("purse_void_v1", [base + "open", *made.keys], [id_, made.limits, made.run_ms, VOID_KEPT_MS]))
            if (refused := await refusal(self._library.client, error)) is not None:
                self._breaker.failed()
                raise refused from error
            raise
        self._breaker.succeeded()
        if answer == 1:
            self._open[id_] = made
            return Ticket(id_, ask)
        return self._limited(made, id_, ask, answer)

    def _limited(self, made: _Open, id_: str, ask: Ask, answer: Any) -> Ticket:
        """The ticket of a call that limits hold for. Raises what refuses it."""
        if answer == 0:
            raise Overloaded("the reserve came too late", reason="STORE_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "state"})
        if answer[0] == -1:
            _, index, window, spent, held, limit, ends_s, alerts = answer
            self._tell(made.plan.tenant, made.holders, alerts)
            made.plan.account.left, made.plan.account.seen_at = 0.0, time.monotonic()
            _refusals.add(1, {"scope": made.holders[index].scope, "limit": "budget"})
            raise budget_exceeded(made.holders[index], window, spent, held, limit, ends_s)
        if answer[0] == -2:
            _, index, quota, limit, remaining, wait_ms = answer
            error = quota_exceeded(made.holders[index], quota, limit, remaining, wait_ms)
            _refusals.add(1, {"scope": made.holders[index].scope, "limit": error.metadata["policy"]})
            raise error
        self._open[id_] = made
        _, left, requests, requests_left, requests_ms, tokens, tokens_left, tokens_ms = answer
        if left >= 0:
            made.plan.account.left, made.plan.account.seen_at = left / 1e6, time.monotonic()
        limits = ()
        if requests >= 0:
            limits = (LimitState("requests", requests, requests_left, requests_ms / 1000),)
        if tokens >= 0:
            limits = (*limits, LimitState("tokens", tokens, tokens_left, tokens_ms / 1000))
        return Ticket(id_, ask, limits)

    async def _announce(self, tenant: str, now: float) -> None:
        future = self._lasting.submit("purse_announce_v1", [TENANTS, LEDGERS], [tenant])
        self._deadlines.watch(future)
        try:
            await asked(self._library.client, future)
        except Overloaded:
            self._breaker.failed()
            raise
        if len(self._announced) > 10_000:
            self._announced.clear()
        self._announced[tenant] = now + ANNOUNCED_S

    async def adopt(self, ticket_id: str, ask: Ask) -> Ticket:
        """The ticket of a reservation that another process has made: whoever goes on with its work can end it. Raises as `reserve`."""
        plan = self._plans.known(ask.principal, ask.group) or await self._plans.find(ask.principal, ask.group)
        self._open[ticket_id] = _opened(plan, ask)
        return Ticket(ticket_id, ask)

    def settle(self, ticket: Ticket, usage: Usage, *, status: str, latency_s: float, metadata: Mapping[str, Any] | None = None) -> None:
        """Ends the ticket with what it cost. One that has ended already stays as it ended."""
        made = self._open.pop(ticket.id, None)
        if made is None:
            log.debug("ticket_ended_before", ticket=ticket.id)
            return
        entry = settled(made.plan, ticket.id, ticket.ask, usage, status, latency_s, metadata)
        self._end("purse_settle_v1", made, ticket, usage, entry, partial(self._ended, made, ticket, usage, status, True))

    def release(self, ticket: Ticket) -> None:
        """Ends the ticket of an attempt that cost nothing; its request stays counted."""
        made = self._open.pop(ticket.id, None)
        if made is None:
            log.debug("ticket_ended_before", ticket=ticket.id)
            return
        self._end("purse_settle_v1", made, ticket, NOTHING, Entry(b"", b""), partial(self._ended, made, ticket, NOTHING, "released", False))

    def _end(self, function: str, made: _Open, ticket: Ticket, usage: Usage, entry: Entry, answered: Callable[[Any], None]) -> None:
        base = prefix(made.plan.tenant)
        keys = [base + "open", base + "lost", base + "ledger", base + "alerts", base + "report:", *made.keys]
        lines, entries, kept_ms = self._bounds
        tokens = usage.input + usage.output
        args = [
            ticket.id, usage.cost_nanousd, tokens, made.limits, made.run_ms, entry.line, lines, made.plan.report, entry.counts,
            entries, made.plan.report_rest, kept_ms,
        ]  # fmt: skip
        self._outbox.put(Sending(function, keys, args, answered))

    def _ended(self, made: _Open, ticket: Ticket, usage: Usage, status: str, billed: bool, answer: Any) -> None:
        if answer == 1:
            return
        if answer == 0:
            # Sent twice, most likely: the first answer was lost with its connection.
            _missing.add(1)
            log.info("reservation_missing", ticket=ticket.id, tenant=made.plan.tenant, cost_nanousd=usage.cost_nanousd)
        elif answer[0] == -1:
            _corrections.add(1)
            log.warning("reservation_corrected", ticket=ticket.id, tenant=made.plan.tenant, status=status)
            entry = corrected(made.plan, ticket.id, ticket.ask, usage, status, answer[1], answer[2], billed=billed)
            self._end("purse_correct_v1", made, ticket, usage, entry, partial(self._alerted, made))
        else:
            self._tell(made.plan.tenant, made.holders, answer)

    def _alerted(self, made: _Open, answer: Any) -> None:
        if isinstance(answer, list):
            self._tell(made.plan.tenant, made.holders, answer)

    def _tell(self, tenant: str, holders: Sequence[Holder], alerts: Sequence[Sequence[int]]) -> None:
        for index, window, percent, spent, limit in alerts:
            holder = holders[index]
            reached = Threshold(tenant, holder.scope, holder.id, holder.period_of(window), percent, spent, limit)
            log.warning(
                "budget_threshold", tenant=tenant, scope=reached.scope, scope_id=reached.scope_id, period=reached.period,
                percent=percent or "soft", spent_usd=spent / 1e9, limit_usd=limit / 1e9,
            )  # fmt: skip
            _thresholds.add(1, {"scope": reached.scope, "percent": str(percent or "soft")})
            if self._on_threshold is not None:
                self._on_threshold(reached)

    def _forget_stale(self) -> None:
        """Tickets that nobody ended and that have long expired."""
        now = time.monotonic()
        for id_ in [id_ for id_, made in self._open.items() if made.until < now]:
            del self._open[id_]

    async def budget_left(self, principal: Principal) -> float:
        """The smallest share (0 to 1) that is left of the caller's money budgets, at most LEFT_FRESH_S old; 1 without any.

        Raises Overloaded when the store is away.
        """
        plan = self._plans.known(principal, "") or await self._plans.find(principal, "")
        if plan.account.seen_at + LEFT_FRESH_S < time.monotonic():
            plan.account.left = left_of(plan.holders, await self._look(plan.holders)) if any(h.caps.money() for h in plan.holders) else 1.0
            plan.account.seen_at = time.monotonic()
        return plan.account.left

    async def budgets(self, principal: Principal, run_id: str = "", group: str = "") -> BudgetStates:
        """All that limits the caller (with `run_id` its run, with `group` a model) as it stands. Raises Overloaded without a store."""
        plan = self._plans.known(principal, group) or await self._plans.find(principal, group)
        holders = [*plan.holders, run_holder(plan.tenant, run_id, None)] if run_id else plan.holders
        return states_of(holders, await self._look(holders))

    async def _look(self, holders: Sequence[Holder]) -> Sequence[Sequence[int]]:
        keys, limits = [holder.key for holder in holders], b"".join(holder.caps.packed() for holder in holders)
        return (await self._lasting.passing("purse_look_v1", keys, [limits]))[1:]


def _opened(plan: Plan, ask: Ask) -> _Open:
    holders, keys, limits, run_ms = plan.holders, list(plan.keys), plan.limits, 0
    if ask.run_id and ask.run_budget_microusd is not None:
        run = run_holder(plan.tenant, ask.run_id, ask.run_budget_microusd)
        holders, limits, run_ms = (*holders, run), limits + run.caps.packed(), RUN_KEPT_MS
        keys.append(run.key)
    return _Open(plan, holders, keys, limits, run_ms, time.monotonic() + ask.expires_s + 3600)
