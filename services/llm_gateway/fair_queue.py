"""Who goes next when a deployment is full: tenants in turn by what their calls cost and what their tier weighs.

Deficit round robin (Shreedhar and Varghese 1996), with the quantum of each round chosen as the smallest that lets somebody go: no
number to tune, and no tenant sends a burst because another's call is large. Within a tenant it is first come, first served.
Low-priority calls go when nobody else waits, shared out in the same way.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any


class Full(Exception):
    """There is no room to wait. `ahead` is how many calls would have gone first, as far as that can be told."""

    def __init__(self, ahead: int) -> None:
        super().__init__(f"{ahead} calls wait already")
        self.ahead = ahead


class Waiter:
    """A call that waits. `cost` is any unit, the same for all of one queue; `ticket` is the caller's own."""

    __slots__ = ("cost", "low_priority", "tenant", "ticket")

    def __init__(self, tenant: str, cost: float, low_priority: bool, ticket: Any) -> None:
        self.tenant = tenant
        self.cost = cost
        self.low_priority = low_priority
        self.ticket = ticket


class _Backlog:
    __slots__ = ("deficit", "waiters", "weight")

    def __init__(self, weight: float) -> None:
        self.deficit = 0.0
        self.weight = weight
        self.waiters: deque[Waiter] = deque()


class FairQueue:
    """A bounded queue: `per_tenant` calls of each tenant, `total` in all.

    When all room is taken, a tenant that waits with fewer calls displaces the newest call of the one that waits with most, and a
    call of normal priority any of low priority.
    """

    def __init__(self, per_tenant: int, total: int) -> None:
        self._per_tenant = per_tenant
        self._total = total
        self._normal: dict[str, _Backlog] = {}
        self._low: dict[str, _Backlog] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiter]:
        for backlogs in (self._normal, self._low):
            for backlog in backlogs.values():
                yield from backlog.waiters

    def ahead_of(self, tenant: str, *, low_priority: bool = False) -> int:
        """How many calls go before one that the tenant would add now, if all weigh and cost the same."""
        backlogs = self._low if low_priority else self._normal
        own = len(backlogs[tenant].waiters) if tenant in backlogs else 0
        ahead = sum(min(len(b.waiters), own + 1) for name, b in backlogs.items() if name != tenant) + own
        return ahead + (sum(len(b.waiters) for b in self._normal.values()) if low_priority else 0)

    def add(
        self, tenant: str, ticket: Any, *, weight: float = 1.0, cost: float = 1.0, low_priority: bool = False
    ) -> tuple[Waiter, Waiter | None]:
        """Puts a call in the queue; answers it, and the call that had to leave for it, if one had to. Raises Full."""
        backlogs = self._low if low_priority else self._normal
        backlog = backlogs.get(tenant)
        own = len(backlog.waiters) if backlog else 0
        if own >= self._per_tenant:
            raise Full(self.ahead_of(tenant, low_priority=low_priority))
        displaced = None
        if self._count >= self._total:
            displaced = self._displaced(own, low_priority)
            if displaced is None:
                raise Full(self.ahead_of(tenant, low_priority=low_priority))
            self.discard(displaced)
            backlog = backlogs.get(tenant)
        if backlog is None:
            backlog = backlogs[tenant] = _Backlog(weight)
        backlog.weight = weight
        waiter = Waiter(tenant, max(cost, 1.0), low_priority, ticket)
        backlog.waiters.append(waiter)
        self._count += 1
        return waiter, displaced

    def pop(self) -> Waiter | None:
        """The call that goes next, None when nobody waits."""
        backlogs = self._normal or self._low
        if not backlogs:
            return None
        chosen, quantum = "", float("inf")
        for tenant, backlog in backlogs.items():
            needed = (backlog.waiters[0].cost - backlog.deficit) / backlog.weight
            if needed < quantum:
                chosen, quantum = tenant, needed
                if needed <= 0:
                    break
        if quantum > 0:
            for backlog in backlogs.values():
                backlog.deficit += quantum * backlog.weight
        # Its turn is over: among those that may go, it comes last.
        backlog = backlogs.pop(chosen)
        waiter = backlog.waiters.popleft()
        backlog.deficit = max(backlog.deficit - waiter.cost, 0.0)
        if backlog.waiters:
            backlogs[chosen] = backlog
        self._count -= 1
        return waiter

    def discard(self, waiter: Waiter) -> bool:
        """Takes a call out; False when it was not there any more."""
        backlogs = self._low if waiter.low_priority else self._normal
        backlog = backlogs.get(waiter.tenant)
        if backlog is None or waiter not in backlog.waiters:
            return False
        backlog.waiters.remove(waiter)
        self._count -= 1
        if not backlog.waiters:
            del backlogs[waiter.tenant]
        return True

    def _displaced(self, own: int, low_priority: bool) -> Waiter | None:
        if self._low and not low_priority:
            return max(self._low.values(), key=lambda b: len(b.waiters)).waiters[-1]
        backlogs = self._low if low_priority else self._normal
        if not backlogs:
            return None
        longest = max(backlogs.values(), key=lambda b: len(b.waiters))
        return longest.waiters[-1] if len(longest.waiters) > own + 1 else None
