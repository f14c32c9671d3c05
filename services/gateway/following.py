"""Following a log across restarts of whoever serves it: no event twice, none left out."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

import structlog
from bulkhead.orchestrator.v1.orchestrator_pb2 import Event

from services.common.errors import BulkheadError, Cancelled, InvalidInput, Overloaded
from services.gateway.ports import EventSource, Subject

TERMINAL = frozenset({"run_finished", "run_failed", "run_cancelled"})
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
log = structlog.get_logger("bulkhead.gateway")


class Follower:
    """Opens streams on a source again and again, each from the last number that was passed on."""

    def __init__(self, source: EventSource, *, reconnect_s: float = 30.0, silence_s: float = 45.0) -> None:
        """`reconnect_s` bounds the search for somebody who serves the log; `silence_s` is how long a stream may show no life."""
        self._source = source
        self._reconnect_s = reconnect_s
        self._silence_s = silence_s

    async def goes_on_above(self, subject: Subject, number: int) -> bool:
        """Whether the log goes on above a number that lies beyond its end: a promotion of the store loses the last events, and a log that
        is read has to say so."""
        log = self.batches(subject, number, replay_only=True)
        with suppress(InvalidInput):
            async with aclosing(log):
                async for _ in log:
                    return True
        return False

    async def follow(
        self, subject: Subject, after: int = 0, *, types: Sequence[str] = (), replay_only: bool = False
    ) -> AsyncGenerator[Event, None]:
        """As `batches`, one by one."""
        async with aclosing(self.batches(subject, after, types=types, replay_only=replay_only)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def batches(
        self, subject: Subject, after: int = 0, *, types: Sequence[str] = (), replay_only: bool = False
    ) -> AsyncGenerator[list[Event], None]:
        """Events of `subject` after number `after`, as they became visible together; of a run, up to its terminal event.

        Raises the domain error of a refusal at once, and Overloaded when nobody serves the log for `reconnect_s`.
        """
        cursor = after
        broken_at: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            failure: BulkheadError = Overloaded("the event log cannot be reached", reason="UNREACHABLE", retry_after_s=1.0)
            stream = self._source.open(subject, cursor, types=types, replay_only=replay_only)
            try:
                while True:
                    async with asyncio.timeout(self._silence_s):
                        batch = await anext(stream)
                    broken_at, pause_s = None, FIRST_PAUSE_S
                    fresh = [event for event in batch if event.seq > cursor]
                    if not fresh:
                        continue
                    # An orchestrator of the version before may go on with what a promotion of the store says of the thread.
                    end = next((at for at, event in enumerate(fresh, 1) if event.type in TERMINAL and event.run_id == subject.run_id), 0)
                    fresh = fresh[: end or None]
                    cursor = fresh[-1].seq
                    yield fresh
                    if end:
                        return
            except StopAsyncIteration:
                # An orchestrator that drains ends its streams in good order; only a replay ends by itself.
                if replay_only:
                    return
            except TimeoutError:
                log.warning("event_stream_silent", after=cursor)
            except (Overloaded, Cancelled) as error:
                failure = error
            finally:
                await stream.aclose()
            now = time.monotonic()
            broken_at = now if broken_at is None else broken_at
            if now - broken_at > self._reconnect_s:
                raise failure
            log.info("event_stream_resumed", after=cursor, reason=failure.reason)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
