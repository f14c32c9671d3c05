"""The purse's way to its store: a time limit for what callers wait for, an outbox for what nobody waits for."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from opentelemetry.metrics import get_meter

from services.common.tasks import end
from services.common.valkey import ValkeyTimeoutError as StoreTimeout
from services.common.valkey import look_again
from services.common.valkey_replicas import Lasting, TooFewReplicas, lost_its_place, refused

# What a settlement that a store refuses for another reason is worth; it would be refused for ever.
MOST_REFUSALS = 5
RETRY_FIRST_S, RETRY_MOST_S = 0.1, 2.0
RESENT_AT_ONCE = 500
log = structlog.get_logger("bulkhead.purse")
_meter = get_meter("bulkhead.llm")
_retried = _meter.create_counter("bulkhead_purse_resent_total", description="Settlements that were sent again after the store was away.")
_dropped = _meter.create_counter(
    "bulkhead_purse_dropped_total", description="Settlements that were given up; they expire at their reserve."
)


class Deadlines:
    """One time limit for many futures with one timer: what is not done `timeout_s` after `watch` fails with StoreTimeout.

    When the loop itself was held up, answers may lie unread in their sockets; they are given the same time again.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._watched: deque[tuple[float, asyncio.Future]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, future: asyncio.Future) -> None:
        """Puts the limit on `future`."""
        loop = asyncio.get_running_loop()
        self._watched.append((loop.time() + self._timeout_s, future))
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop, again: bool = False) -> None:
        now, watched = loop.time(), self._watched
        while watched and watched[0][1].done():
            watched.popleft()
        if not watched:
            self._timer = None
            return
        if not again and now - watched[0][0] > self._timeout_s / 2:
            self._timer = loop.call_later(self._timeout_s, partial(self._look, again=True), loop)
            return
        while watched and (watched[0][1].done() or watched[0][0] <= now):
            _, future = watched.popleft()
            if not future.done():
                future.set_exception(StoreTimeout("the store did not answer in time"))
        self._timer = loop.call_at(watched[0][0], self._look, loop) if watched else None

    def stop(self) -> None:
        """Ends the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(slots=True)
class Sending:
    """A call that must reach the store. `answered` gets its answer, which is 0 where there was nothing left to do.

    `first` is what the primary answered when it did it, and too few replicas had that; nobody has been told of it.
    """

    name: str
    keys: list[Any]
    args: list[Any]
    answered: Callable[[Any], None] | None = None
    refusals: int = 0
    first: Any = None


class Outbox:
    """Sends what nobody waits for, and sends it again while the store is away, or too few replicas have it. Every call in it must be
    idempotent.

    `most` bounds what waits; what is beyond it is given up with an error in the log, and its reservation expires.
    """

    def __init__(self, lasting: Lasting, most: int = 50_000) -> None:
        self._lasting = lasting
        self._most = most
        self._waiting: deque[Sending] = deque()
        self._under_way = 0
        self._task: asyncio.Task | None = None
        self._idle: asyncio.Event | None = None
        # The store that was asked last may be the primary no more.
        self._elsewhere = False

    def __len__(self) -> int:
        return len(self._waiting) + self._under_way

    def put(self, sending: Sending) -> None:
        """Sends it now, or behind what waits already."""
        if self._waiting:
            self._keep(sending)
        else:
            self._send(sending)

    async def drain(self, timeout_s: float) -> int:
        """Waits until everything has reached the store; answers how much has not after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                # Others may put more between the moment at which it was empty and this one.
                while len(self):
                    self._idle = self._idle or asyncio.Event()
                    await self._idle.wait()
        return len(self)

    async def stop(self) -> None:
        """Stops sending; what waits is given up, and its reservations expire."""
        task, self._task = self._task, None
        await end((task,))
        if self._waiting:
            log.error("purse_settlements_left", count=len(self._waiting))
            _dropped.add(len(self._waiting), {"reason": "stopped"})
            self._waiting.clear()

    def _send(self, sending: Sending) -> asyncio.Future:
        self._under_way += 1
        future = self._lasting.submit(sending.name, sending.keys, sending.args)
        future.add_done_callback(partial(self._done, sending))
        return future

    def _done(self, sending: Sending, future: asyncio.Future) -> None:
        self._under_way -= 1
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or refused(error):
            self._elsewhere = self._elsewhere or lost_its_place(error)
            if isinstance(error, TooFewReplicas):
                sending.first = error.answer or sending.first
            self._keep(sending)
        elif error is not None:
            sending.refusals += 1
            if sending.refusals >= MOST_REFUSALS:
                log.error("purse_settlement_refused", function=sending.name, error=str(error)[:300])
                _dropped.add(1, {"reason": "refused"})
            else:
                self._keep(sending)
        elif sending.answered is not None:
            # Another primary may have had it to do again, and has the last word.
            sending.answered(future.result() or sending.first or 0)
        if self._idle is not None and not len(self):
            self._idle.set()
            self._idle = None

    def _keep(self, sending: Sending) -> None:
        if len(self._waiting) >= self._most:
            log.error("purse_settlement_dropped", function=sending.name, waiting=self._most)
            _dropped.add(1, {"reason": "too_many"})
            return
        self._waiting.append(sending)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._resend(), name="purse-outbox")

    async def _resend(self) -> None:
        pause_s = RETRY_FIRST_S
        while self._waiting:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            if self._elsewhere:
                self._elsewhere = False
                await look_again(self._lasting.library.client)
            first = self._waiting.popleft()
            await asyncio.wait([self._send(first)])
            if self._waiting and self._waiting[-1] is first:
                # The one that was tried stays the first.
                self._waiting.rotate(1)
                pause_s = min(pause_s * 2, RETRY_MOST_S)
                continue
            _retried.add(1)
            pause_s = RETRY_FIRST_S
            while self._waiting:
                batch = [self._send(self._waiting.popleft()) for _ in range(min(RESENT_AT_ONCE, len(self._waiting)))]
                _retried.add(len(batch))
                done, _ = await asyncio.wait(batch)
                if any(refused(future.exception()) for future in done):
                    break
