"""How often a client may do something on one connection."""

import time


class Pace:
    """A token bucket that goes into debt: who goes on after a refusal pays for that too."""

    def __init__(self, per_s: float, burst: float, debt: float) -> None:
        """`burst` may come at once; beyond `debt` refusals, less what time has paid, it is a flood."""
        self._per_s, self._burst, self._debt = per_s, burst, debt
        self._level = burst
        self._at = time.monotonic()

    def take(self, cost: float = 1) -> float:
        """Seconds until there is room again, 0 where there is now. What costs more than may come at once costs as much as that."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_s) - min(cost, self._burst)
        self._at = now
        return 0.0 if self._level >= 0 else -self._level / self._per_s

    @property
    def flooded(self) -> bool:
        """Whether the debt is more than is put up with."""
        return self._level < -self._debt
