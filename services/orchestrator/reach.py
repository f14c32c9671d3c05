"""When the state store could be reached: who could not prolong a lease while nobody reached the store is not lost for that."""

import math
import time
from collections.abc import Callable


class Reach:
    """What one process that asks the store all the time knows of its absences.

    After an absence in which leases may have run out, owners get the time of a lease, from the store's return on, to prolong them. Then
    who has not done so is lost: a run that takes its owners away is given up all the same, only later.
    """

    def __init__(self, silent_s: float = math.inf, grace_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`silent_s` without an answer is an absence, and `grace_s` what owners get after one."""
        self._silent_s, self._grace_s, self._clock = silent_s, grace_s, clock
        self._heard: float | None = None
        self._began, self._until = math.inf, -math.inf

    def heard(self) -> None:
        """The store has just answered."""
        now = self._clock()
        if self._heard is not None and now - self._heard > self._silent_s:
            self._began, self._until = self._heard, now + self._grace_s
        self._heard = now

    def grace_s(self, expired_s: float) -> float:
        """How much longer the owner may prolong a lease that ran out `expired_s` ago; 0 where it has had the time."""
        now = self._clock()
        return max(0.0, self._until - now) if now - expired_s >= self._began else 0.0
