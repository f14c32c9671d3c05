"""How budgets and limits stand, for callers, operators and alerts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """One money budget, in nano-USD. `period` is empty for the total; `resets_at` is in Unix seconds, 0 without a period.

    `limit_nanousd` is None where nothing limits and only the spending is known.
    """

    scope: str
    scope_id: str
    period: str
    limit_nanousd: int | None
    spent_nanousd: int
    reserved_nanousd: int
    resets_at: int = 0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One rate limit. `kind` is requests_per_minute, tokens_per_minute, tokens_per_day or concurrency."""

    scope: str
    scope_id: str
    kind: str
    limit: int
    remaining: int


@dataclass(frozen=True, slots=True)
class BudgetStates:
    """What limits a caller, and how it stands."""

    budgets: tuple[Budget, ...] = ()
    limits: tuple[RateLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class Threshold:
    """A budget has reached a share of its limit; told once for each period, limit and share. `percent` is 80 or 100, or 0 for the
    soft budget.
    """

    tenant: str
    scope: str
    scope_id: str
    period: str
    percent: int
    spent_nanousd: int
    limit_nanousd: int
