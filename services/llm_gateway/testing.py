"""Doors that are always open, for unit tests of what stands behind them."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.common.identity import Principal
from services.llm_gateway.accounting.states import BudgetStates
from services.llm_gateway.failures import Failure
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask, DeploymentState, Load, Permit, Ticket
from services.llm_gateway.registry import Deployment


class OpenGate:
    """Lets every call pass at once; draws by weight among the lowest order, with the chance that is given."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.inside = 0

    def pick(self, candidates: Sequence[Deployment], strategy: str, load: Load) -> Deployment | None:
        """One of the candidates."""
        lowest = min(d.order for d in candidates)
        first = [d for d in candidates if d.order == lowest]
        return self._chance.choices(first, weights=[d.weight for d in first])[0]

    def retry_after_s(self, candidates: Sequence[Deployment]) -> float:
        """No time at all."""
        return 0.0

    async def enter(self, deployment: Deployment, load: Load) -> Permit:
        """Leave to ask."""
        self.inside += 1
        return Permit(deployment)

    def state(self, deployments: Iterable[Deployment]) -> list[DeploymentState]:
        """As good as can be."""
        return [DeploymentState(d.group, d.id, "closed", 0.0, self.inside, 0, 0.0, 0.0) for d in deployments]

    def leave(self, permit: Permit, failure: Failure | None, *, latency_s: float = 0.0, tokens: int = 0, cancelled: bool = False) -> None:
        """One call less."""
        self.inside -= 1


class OpenPurse:
    """Reserves without a bound and keeps what was settled, as (ticket, usage, status)."""

    def __init__(self) -> None:
        self.open: dict[str, Ticket] = {}
        self.settled: list[tuple[Ticket, Usage, str]] = []
        self.released: list[Ticket] = []

    async def reserve(self, ask: Ask) -> Ticket:
        """A ticket."""
        ticket = Ticket(f"{ask.call_id}/{ask.number}", ask)
        assert ticket.id not in self.open
        self.open[ticket.id] = ticket
        return ticket

    def settle(self, ticket: Ticket, usage: Usage, *, status: str, latency_s: float, metadata: Mapping[str, Any] | None = None) -> None:
        """Ends a ticket."""
        del self.open[ticket.id]
        self.settled.append((ticket, usage, status))

    def release(self, ticket: Ticket) -> None:
        """Ends a ticket."""
        del self.open[ticket.id]
        self.released.append(ticket)

    async def budgets(self, principal: Principal, run_id: str = "") -> BudgetStates:
        """None."""
        return BudgetStates()

    async def budget_left(self, principal: Principal) -> float:
        """All of it."""
        return 1.0
