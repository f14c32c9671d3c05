"""Which deployment of a group comes next."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.llm_gateway.registry import Deployment


class Balancer:
    """Counts what is in flight at each deployment of this process.

    `least-busy` is the power of two choices (Mitzenmacher 2001) over in-flight calls a unit of weight; `simple-shuffle`
    draws by weight.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._in_flight: Counter[str] = Counter()

    def pick(self, candidates: Sequence[Deployment], strategy: str) -> Deployment:
        """One of `candidates`, of the lowest order among them."""
        if len(candidates) == 1:
            return candidates[0]
        lowest = min(d.order for d in candidates)
        candidates = [d for d in candidates if d.order == lowest]
        first = self._draw(candidates)
        if strategy == "simple-shuffle":
            return first
        second = self._draw([d for d in candidates if d is not first] or candidates)
        return min(first, second, key=lambda d: self._in_flight[d.id] / d.weight)

    def _draw(self, candidates: Sequence[Deployment]) -> Deployment:
        return self._chance.choices(candidates, weights=[d.weight for d in candidates])[0]

    @contextmanager
    def busy(self, deployment: Deployment) -> Iterator[None]:
        """Counts one call while it lasts."""
        self._in_flight[deployment.id] += 1
        try:
            yield
        finally:
            self._in_flight[deployment.id] -= 1
            if not self._in_flight[deployment.id]:
                del self._in_flight[deployment.id]

    def in_flight(self, deployment: Deployment) -> int:
        """Calls in flight."""
        return self._in_flight[deployment.id]
