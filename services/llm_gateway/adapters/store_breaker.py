"""Keeps callers from waiting for a store that does not answer. What a refusal means is the caller's affair: budgets fail closed,
caches and limits of deployments open.
"""

import time

import structlog

log = structlog.get_logger("bulkhead.llm")


class StoreBreaker:
    """`after` failures in a row open it for `pause_s` seconds; then one caller finds out, and the others wait for what it sees."""

    def __init__(self, name: str, *, after: int = 3, pause_s: float = 0.5) -> None:
        """`name` says in the log what the store is asked for."""
        self._name = name
        self._after = after
        self._pause_s = pause_s
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether the store is being left alone."""
        return self._failures >= self._after and time.monotonic() < self._until

    def admit(self) -> bool:
        """Whether the store may be asked; after the pause the caller that is told so is the one that finds out."""
        if self._failures < self._after:
            return True
        now = time.monotonic()
        if now < self._until:
            return False
        self._until = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """The store has answered."""
        self._failures = 0

    def failed(self) -> None:
        """The store has not answered."""
        self._failures += 1
        if self._failures == self._after:
            log.warning("store_left_alone", store=self._name, failures=self._failures, pause_s=self._pause_s)
        if self._failures >= self._after:
            self._until = time.monotonic() + self._pause_s
