"""What the store refused when it was due, and gets when it is back."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

import structlog

from services.common.errors import IdempotencyMismatch, Overloaded

WITHIN_S = 60.0
MOST_BYTES = 64 * 1024 * 1024
AT_ONCE = 16
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 2.0
log = structlog.get_logger("bulkhead.llm")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record of a request with this fingerprint. `store` raises Overloaded as long as it is refused; `told` is called once with what
    came of it."""

    print: str
    record: bytes
    store: Callable[[], Awaitable[bool]]
    told: Callable[[bool], None]


class Late:
    """Tries again in the background for `within_s` seconds, with at most `most_bytes` at hand. `working` has the tasks at work.

    One record is tried at a time until the store takes one: a store in trouble is not sent all of them again and again.
    """

    def __init__(self, working: set[asyncio.Task], *, within_s: float = WITHIN_S, most_bytes: int = MOST_BYTES) -> None:
        self._working, self._within_s, self._left = working, within_s, most_bytes
        self._waiting: dict[Hashable, tuple[Waiting, float]] = {}
        self._task: asyncio.Task[None] | None = None

    def found(self, name: Hashable, print_: str) -> bytes | None:
        """The record that waits under a name. Raises IdempotencyMismatch where it is one of another request."""
        if name not in self._waiting:
            return None
        waiting, _ = self._waiting[name]
        if waiting.print != print_:
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        return waiting.record

    def put(self, name: Hashable, waiting: Waiting) -> None:
        """Keeps it until the store has it. What waits under the name already has lost it to this one."""
        self._end(name, False)
        if len(waiting.record) > self._left:
            waiting.told(False)
            return
        self._left -= len(waiting.record)
        self._waiting[name] = waiting, time.monotonic() + self._within_s
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send(), name="late")
            self._working.add(self._task)
            self._task.add_done_callback(self._working.discard)

    def _end(self, name: Hashable, kept: bool) -> None:
        if name in self._waiting:
            waiting, _ = self._waiting.pop(name)
            self._left += len(waiting.record)
            waiting.told(kept)

    async def _send(self) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while self._waiting:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                for name in [name for name, (_, until) in self._waiting.items() if until <= time.monotonic()]:
                    self._end(name, False)
                taken = await self._tried(list(self._waiting.items())[:1])
                while taken and self._waiting:
                    taken = await self._tried(list(self._waiting.items())[:AT_ONCE])
                pause_s = _FIRST_PAUSE_S if taken else min(2 * pause_s, _LAST_PAUSE_S)
        finally:
            for name in list(self._waiting):
                self._end(name, False)

    async def _tried(self, entries: list[tuple[Hashable, tuple[Waiting, float]]]) -> bool:
        # Whether the store took all of them, or refused them for good.
        return all(await asyncio.gather(*(self._tried_one(name, entry) for name, entry in entries)))

    async def _tried_one(self, name: Hashable, entry: tuple[Waiting, float]) -> bool:
        kept = False
        try:
            kept = await entry[0].store()
        except Overloaded:
            if self._waiting.get(name) is entry:
                # Another one is tried next: it may be this one alone that is refused.
                self._waiting[name] = self._waiting.pop(name)
            return False
        except Exception:
            log.exception("replay_not_kept_late")
        if self._waiting.get(name) is entry:
            self._end(name, kept)
        return True
