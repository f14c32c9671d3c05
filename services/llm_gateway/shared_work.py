"""One piece of upstream work with several readers: a whole answer, or a stream that is fanned out.

The work runs in a task of its own, with the context of the call that began it, so that no reader's end is the work's end:
it is cancelled when the last reader has left, unless it is `detached`. Nothing here is kept after the end.
"""

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from services.common.errors import BulkheadError, Cancelled, DeadlineExceeded, Overloaded
from services.common.tasks import end
from services.llm_gateway.results import StreamEvent

# How far a stream runs ahead of its fastest reader, and how much of it is kept for readers that come late or read slowly.
WINDOW_BYTES = 256 * 1024
KEPT_BYTES = 1024 * 1024
# An event takes so much beside its JSON.
_EVENT_BYTES = 256
T = TypeVar("T")
# Called with the shared work itself.
Ended = Callable[[Any], None]


def error_for(error: BaseException) -> BaseException:
    """An error for one of several readers: each raises an object of its own, or their tracebacks would run together."""
    return copy.copy(error) if isinstance(error, BulkheadError) else error


def out_of_time() -> DeadlineExceeded:
    """The error of a reader whose own time is up while the work goes on."""
    return DeadlineExceeded("the model did not answer in time", reason="MODEL_TIMEOUT", metadata={"failure_class": "timeout_total"})


class SharedAnswer(Generic[T]):
    """Work with one result."""

    def __init__(self, work: Awaitable[T], *, ended: Ended, deadline: float | None = None, detached: bool = False) -> None:
        """`ended` is called once, when nobody may join any more. `deadline` (of `time.monotonic()`) is for those who ask."""
        self.deadline = deadline
        self._detached = detached
        self._ended: Ended | None = ended
        self._readers = 0
        self._task: asyncio.Task[T] = asyncio.ensure_future(self._run(work))
        self._task.add_done_callback(_looked_at)

    async def _run(self, work: Awaitable[T]) -> T:
        try:
            return await work
        finally:
            self._end()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)

    async def result(self, timeout_s: float | None = None) -> T:
        """The result. Raises what the work raised, or DeadlineExceeded after `timeout_s`."""
        self._readers += 1
        try:
            if timeout_s is None:
                return await asyncio.shield(self._task)
            try:
                async with asyncio.timeout(timeout_s):
                    return await asyncio.shield(self._task)
            except TimeoutError:
                raise out_of_time() from None
        except asyncio.CancelledError:
            reader = asyncio.current_task()
            if self._task.cancelled() and reader is not None and not reader.cancelling():
                raise Cancelled("the shared call was cancelled") from None
            raise
        except BulkheadError as error:
            raise error_for(error) from None
        finally:
            self._readers -= 1
            if not self._readers and not self._detached and not self._task.done():
                self._end()
                await end((self._task,))


class Reader:
    """One reader of a SharedStream: how far it is, in events and in bytes."""

    __slots__ = ("bytes", "cut", "index", "waiter")

    def __init__(self) -> None:
        self.index = 0
        self.bytes = 0
        self.cut = False
        self.waiter: asyncio.Future[None] | None = None


class SharedStream:
    """A stream that is read by several: everybody gets every event, late joiners what has been sent before they came.

    The fastest reader sets the pace, the others are never waited for. What a slow one has yet to read is kept up to
    `kept_bytes`; behind that it is cut off with Overloaded (READER_TOO_SLOW), never with a gap. Once so much has been sent
    nobody can join any more.
    """

    def __init__(
        self,
        source: AsyncGenerator[StreamEvent, None],
        *,
        ended: Ended,
        deadline: float | None = None,
        detached: bool = False,
        kept_bytes: int = KEPT_BYTES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.deadline = deadline
        self._detached = detached
        self._ended: Ended | None = ended
        self._kept_bytes = kept_bytes
        self._window_bytes = window_bytes
        self._log: list[tuple[StreamEvent, int]] = []
        self._first = 0  # number of the first event in the log
        self._first_bytes = 0
        self._sent_bytes = 0
        self._readers: set[Reader] = set()
        self._done = False
        self._error: BaseException | None = None
        self._paused: asyncio.Future[None] | None = None
        self._task = asyncio.ensure_future(self._pump(source))
        self._task.add_done_callback(_looked_at)

    def join(self) -> Reader:
        """A new reader from the first event on; only while nobody has been told that the stream `ended`. Always `leave` again."""
        assert not self._first, "a stream of which the beginning is gone cannot be joined"
        reader = Reader()
        self._readers.add(reader)
        return reader

    async def leave(self, reader: Reader) -> None:
        """The reader reads no more. The last one ends the work, and returns when it has ended."""
        self._readers.discard(reader)
        if not self._readers and not self._detached and not self._task.done():
            self._end()
            await end((self._task,))
        else:
            self._go_on()

    async def next(self, reader: Reader, timeout_s: Callable[[], float] | None = None) -> StreamEvent | None:
        """The next event, None at the end. Raises what the work raised; DeadlineExceeded when the reader's time is up."""
        while True:
            if reader.cut:
                raise Overloaded("the stream is read too slowly to be shared", reason="READER_TOO_SLOW", retry_after_s=1.0)
            place = reader.index - self._first
            if place < len(self._log):
                event, size = self._log[place]
                reader.index += 1
                reader.bytes += size
                self._go_on()
                return event
            if self._done:
                if self._error is not None:
                    raise error_for(self._error) from None
                return None
            reader.waiter = asyncio.get_running_loop().create_future()
            if timeout_s is None:
                await reader.waiter
                continue
            try:
                async with asyncio.timeout(timeout_s()):
                    await reader.waiter
            except TimeoutError:
                raise out_of_time() from None

    async def _pump(self, source: AsyncGenerator[StreamEvent, None]) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    self._add(event)
                    while self._readers and self._sent_bytes - max(r.bytes for r in self._readers) > self._window_bytes:
                        self._paused = asyncio.get_running_loop().create_future()
                        await self._paused
        except asyncio.CancelledError:
            self._error = Cancelled("the shared call was cancelled")
            raise
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._done = True
            self._end()
            for reader in self._readers:
                _wake(reader.waiter)

    def _add(self, event: StreamEvent) -> None:
        size = _EVENT_BYTES + (sum(len(chunk.raw) + _EVENT_BYTES for chunk in event) if isinstance(event, list) else 0)
        self._log.append((event, size))
        self._sent_bytes += size
        if self._sent_bytes - self._first_bytes > self._kept_bytes:
            self._end()
            self._trim()
        for reader in self._readers:
            _wake(reader.waiter)

    def _trim(self) -> None:
        fastest = max((reader.bytes for reader in self._readers), default=0)
        for reader in self._readers:
            reader.cut = reader.cut or fastest - reader.bytes > self._kept_bytes
        following = [reader for reader in self._readers if not reader.cut]
        keep_from = min((r.index for r in following), default=self._first + len(self._log)) - self._first
        self._first_bytes += sum(size for _, size in self._log[:keep_from])
        self._first += keep_from
        del self._log[:keep_from]

    def _go_on(self) -> None:
        if self._paused is not None:
            _wake(self._paused)
            self._paused = None

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _looked_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # readers raise it; asyncio need not complain where all of them have left
