"""What the admin API reads of the ledger, and what a holder has spent."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from services.common.accounts import NO_LIMITS, LimitSet
from services.llm_gateway.accounting.states import Budget
from services.llm_gateway.adapters.ledger import DayReport, Page


class SpendBook(Protocol):
    """The readers of a ledger; adapters/ledger.py is one. Everything raises Overloaded when the store is away."""

    async def lines(
        self,
        tenant: str,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        key_id: str = "",
        user: str = "",
        team: str = "",
        model: str = "",
        call_id: str = "",
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        """A page of lines. Raises InvalidInput for a cursor that is none."""
        ...

    async def spend(self, tenant: str, scope: str, id_: str, limits: LimitSet = NO_LIMITS) -> Sequence[Budget]:
        """What was spent in all and in periods, with that of `limits`."""
        ...

    def reports(
        self, tenant: str, first: date, last: date, *, key_id: str = "", user: str = "", team: str = "", model: str = ""
    ) -> AsyncIterator[DayReport]:
        """Sums of days, both inclusive."""
        ...


@dataclass(frozen=True, slots=True)
class Spent:
    """Nano-USD in the budget's present period and in all; the end of the period in Unix seconds, 0 without one."""

    now: int = 0
    total: int = 0
    resets_at: int = 0


NOTHING_SPENT = Spent()


async def spent_by(book: SpendBook, tenant: str, scope: str, id_: str, limits: LimitSet) -> Spent:
    """What a holder has spent; as in LiteLLM, `now` begins anew with the budget."""
    budgets = await book.spend(tenant, scope, id_, limits)
    total = next((budget.spent_nanousd for budget in budgets if not budget.period), 0)
    limited = next((budget for budget in budgets if budget.limit_nanousd is not None), None)
    return Spent(total, total) if limited is None else Spent(limited.spent_nanousd, total, limited.resets_at)
