"""A second request to another deployment when the first one takes longer than it mostly does, within a budget.

Source of the idea: Dean and Barroso, "The Tail at Scale" (2013), hedged requests. The first answer wins, the other request is
cancelled; what both have cost is charged.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from services.common.errors import BulkheadError
from services.common.tasks import end
from services.llm_gateway.failures import UpstreamFault

T = TypeVar("T")
# First-token times that are remembered of a deployment, and how many of them a percentile needs.
REMEMBERED = 200
NEEDED = 20
PERCENTILE = 0.95
# Deployments that are remembered; a registry has fewer.
MOST_DEPLOYMENTS = 10_000


class Hedge:
    """Knows how long deployments mostly take, and how much second requests may cost in all."""

    def __init__(self, extra_cost: float) -> None:
        """`extra_cost` is the share (0 to 1) of the cost of first requests that second ones may add to it."""
        self._share = extra_cost
        self._times: dict[str, deque[float]] = {}
        self._percentiles: dict[str, tuple[int, float]] = {}
        self._seen: dict[str, int] = {}
        self._answers = 0
        self._cost_nanousd = 0
        self._second_nanousd = 0.0

    def observe(self, deployment_id: str, first_token_s: float, cost_nanousd: int) -> None:
        """An attempt gave its first token, and its answer has cost that much."""
        times = self._times.get(deployment_id)
        if times is None:
            if len(self._times) >= MOST_DEPLOYMENTS:
                return
            times = self._times[deployment_id] = deque(maxlen=REMEMBERED)
        times.append(first_token_s)
        self._seen[deployment_id] = self._seen.get(deployment_id, 0) + 1
        self._answers += 1
        self._cost_nanousd += cost_nanousd

    def after_s(self, deployment_id: str) -> float | None:
        """Seconds after which a second request is worth it; None while too little is known of the deployment."""
        times = self._times.get(deployment_id)
        if times is None or len(times) < NEEDED:
            return None
        seen = self._seen[deployment_id]
        known = self._percentiles.get(deployment_id)
        if known is None or seen - known[0] >= NEEDED:
            known = (seen, sorted(times)[min(int(len(times) * PERCENTILE), len(times) - 1)])
            self._percentiles[deployment_id] = known
        return known[1]

    def take(self) -> bool:
        """Whether a second request is within the budget, at the mean cost of an answer; if so, it is counted."""
        if not self._answers:
            return False
        mean = self._cost_nanousd / self._answers
        if self._second_nanousd + mean > self._share * self._cost_nanousd:
            return False
        self._second_nanousd += mean
        return True


async def race(
    first: Coroutine[Any, Any, T],
    second: Callable[[], Coroutine[Any, Any, T] | None],
    after_s: float,
    discard: Callable[[T], Awaitable[None]],
) -> tuple[T, bool]:
    """The first success of the two, and whether it is the second's. `second` is asked for after `after_s` seconds of silence and may
    decline; `discard` is given a success that came too late.

    Raises the first request's error when both fail. A request that lost, or that nobody waits for any more, is cancelled.
    """
    tasks = [asyncio.create_task(first)]
    winner: asyncio.Task[T] | None = None
    try:
        await asyncio.wait(tasks, timeout=after_s)
        if not tasks[0].done() and (other := second()) is not None:
            tasks.append(asyncio.create_task(other))
        waiting = set(tasks)
        while waiting and winner is None:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task not in done or winner is not None:
                    continue
                error = task.exception()
                if error is None:
                    winner = task
                elif not isinstance(error, UpstreamFault) and (task is tasks[0] or not isinstance(error, BulkheadError)):
                    raise error  # no provider's fault; but one that only forbids a second request is nobody's
        return (winner or tasks[0]).result(), winner is not None and winner is not tasks[0]
    finally:
        ending = asyncio.create_task(_ended([task for task in tasks if task is not winner], discard))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            # Nobody is left to take the answer, and both requests have to be ended all the same, however often this is cancelled.
            left: set[asyncio.Future[None]] = {ending}
            if winner is not None:
                left.add(asyncio.ensure_future(discard(winner.result())))
            while left:
                with suppress(asyncio.CancelledError):
                    _, left = await asyncio.wait(left)
            raise


async def _ended(tasks: Sequence[asyncio.Task[T]], discard: Callable[[T], Awaitable[None]]) -> None:
    await end(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is None:
            await discard(task.result())
