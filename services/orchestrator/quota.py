"""What the orchestrator's limits leave of a tenant's quota."""

from dataclasses import dataclass
from typing import Protocol

from services.common.config import ConfigFile
from services.common.identity import Principal
from services.common.limits import Policies


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Runs of a tenant: with a slot, waiting for one, and with a start that lies ahead."""

    concurrent: int
    queued: int
    delayed: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What is used and what the tier allows; None: no limit."""

    tier: str
    used: Occupancy
    concurrent_runs: int | None
    queued_runs: int
    delayed_runs: int
    task_seconds: float | None


class QuotaStore(Protocol):
    """Raises Overloaded while the state store is away."""

    async def occupancy(self, tenant: str) -> Occupancy:
        """What the tenant uses now."""
        ...


class Quotas:
    """The use case."""

    def __init__(self, store: QuotaStore, policies: ConfigFile[Policies], policy_set: str) -> None:
        self._store, self._policies, self._policy_set = store, policies, policy_set

    async def of(self, caller: Principal) -> Quota:
        """The quota of the caller's tenant, by the caller's tier. Raises Overloaded."""
        tier = self._policies.current.tier(self._policy_set, caller.tier)
        used = await self._store.occupancy(caller.tenant)
        return Quota(caller.tier, used, tier.concurrent_runs, tier.queued_runs, tier.delayed_runs, tier.task_seconds)
