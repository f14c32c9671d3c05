"""A ledger and a registry for tests of the admin API."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any

from services.common.accounts import NO_LIMITS, LimitSet
from services.llm_gateway.accounting.lines import Counts
from services.llm_gateway.accounting.states import Budget
from services.llm_gateway.adapters.ledger import DayReport, Page
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment, Group, Registry


class Lines:
    """A ledger of given lines, at times that no store's clock would give them."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    async def spend(self, tenant: str, scope: str, id_: str, limits: LimitSet = NO_LIMITS) -> list[Budget]:
        """All of it in any period."""
        sums = sum(x["cost_nanousd"] for x in self.kept if x["tenant"] == tenant and (scope == "tenant" or x[scope] == id_))
        return [Budget(scope, id_, "", None, sums, 0)]

    async def lines(self, tenant: str, *, start_ms=None, end_ms=None, key_id="", call_id="", limit=100, cursor="", **wanted: str) -> Page:
        """Oldest first; the cursor is a position."""
        wanted = {name: value for name, value in {**wanted, "key": key_id, "call_id": call_id, "tenant": tenant}.items() if value}
        found = [
            line
            for line in sorted(self.kept, key=lambda line: line["at"])
            if (start_ms or 0) <= line["at"] < (end_ms or 1 << 60) and all(line[name] == value for name, value in wanted.items())
        ]
        first = int(cursor or 0)
        return Page(found[first : first + limit], str(first + limit) if len(found) > first + limit else "")

    async def reports(self, tenant: str, first: date, last: date, *, key_id="", **wanted: str) -> AsyncIterator[DayReport]:
        """A report for each line."""
        for line in (await self.lines(tenant, key_id=key_id, limit=1000, **wanted)).lines:
            day = datetime.fromtimestamp(line["at"] / 1000, UTC).date()
            if first <= day <= last:
                counts = Counts(1, line["input_tokens"], line["output_tokens"], cost_nanousd=line["cost_nanousd"])
                yield DayReport(day, line["key"], line["user"], line["team"], line["model"], counts)

    def add(self, at: int, cost: int, **more: Any) -> None:
        """One line."""
        base = {"id": f"l{len(self.kept)}", "call_id": f"c{len(self.kept)}", "tenant": "default", "user": "ana", "team": "", "key": "key_x"}
        tokens = {"model": "main", "input_tokens": 3, "output_tokens": 4, "latency_ms": 250, "status": "ok", "operation": "chat"}
        self.kept.append({**base, **tokens, "at": at, "cost_nanousd": cost, **more})


def registry() -> Registry:
    """Two models; one deployment has a secret."""
    main = Deployment(
        "d1", "main", "openai", "openai", "sim-1", "chat", "http://user:pw@up", "sk-upstream", prices=Prices(2_500_000, known=True)
    )
    other = Deployment("d2", "other", "openai", "openai", "sim-2", "chat", "http://up")
    return Registry({"main": Group("main", 0, (main,)), "other": Group("other", 1, (other,))})
