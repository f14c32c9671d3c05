"""From what the store knows of holders to what people read."""

from collections.abc import Sequence

from services.llm_gateway.accounting.plans import Holder
from services.llm_gateway.accounting.states import Budget, BudgetStates, RateLimit

NANO_PER_USD = 10**9


def spent_of(seen: Sequence[int], window: int) -> tuple[int, int]:
    """Spent nano-USD and end (Unix seconds, 0 for none) of a window of one holder."""
    usd, nano, _, _, _, day, _, month, period, _, _, day_ends, month_ends, period_ends, _ = seen
    return ((usd * NANO_PER_USD + nano, 0), (day, day_ends), (month, month_ends), (period, period_ends))[window - 1]


def left_of(holders: Sequence[Holder], seen: Sequence[Sequence[int]]) -> float:
    """The smallest share that is left of any money budget; 1 without one."""
    shares = [1.0]
    for holder, found in zip(holders, seen, strict=True):
        for window, limit in holder.caps.money():
            shares.append((limit - spent_of(found, window)[0] - found[2]) / limit if limit else 0.0)
    return max(0.0, min(shares))


def states_of(holders: Sequence[Holder], seen: Sequence[Sequence[int]]) -> BudgetStates:
    """Budgets and limits that hold."""
    budgets, limits = [], []
    for holder, found in zip(holders, seen, strict=True):
        money = holder.caps.money()
        if holder.scope == "run" and found[14] >= 0:
            money = ((1, found[14]),)
        for window, limit in money:
            spent, ends_s = spent_of(found, window)
            budgets.append(Budget(holder.scope, holder.id, holder.period_of(window), limit, spent, found[2], ends_s))
        caps = holder.caps
        for kind, limit, used in (
            ("requests_per_minute", caps.requests_per_minute, found[9]),
            ("tokens_per_minute", caps.tokens_per_minute, found[10]),
            ("tokens_per_day", caps.tokens_per_day, found[6]),
            ("concurrency", caps.parallel, found[3]),
        ):
            if limit >= 0:
                limits.append(RateLimit(holder.scope, holder.id, kind, limit, max(0, limit - used)))
    return BudgetStates(tuple(budgets), tuple(limits))


def spending_of(holder: Holder, seen: Sequence[int]) -> list[Budget]:
    """What a holder has spent in all, this day, this month and in its own period, with the limits where there are any."""
    limits = dict(holder.caps.money())
    windows = [1, 2, 3, *([4] if holder.caps.period_length else [])]
    found = []
    for window in windows:
        spent, ends_s = spent_of(seen, window)
        found.append(Budget(holder.scope, holder.id, holder.period_of(window), limits.get(window), spent, seen[2], ends_s))
    return found
