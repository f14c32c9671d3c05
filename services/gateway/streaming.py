"""Answers that stay open: server-sent events with heartbeats, an age limit, and eyes on the client.

A watcher ends in one of these ways: the frames end, the client leaves, the client stops reading, the stream grows too
old or the time that the client gave is over, the client's key ends, or the gateway drains. Only the client's leaving may cancel the run.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from opentelemetry.metrics import get_meter
from starlette.responses import Response

from services.common.errors import BulkheadError, DeadlineExceeded, Overloaded
from services.common.rpc import context as call_context
from services.gateway.edge.exchange import exchange
from services.gateway.refusals import ClientGone

RETRY_MS = 1000
HEARTBEAT = b": heartbeat\n\n"
OPENING = b"retry: %d\n: stream\n\n" % RETRY_MS
# Sent when the gateway itself ends a stream: another replica takes the client at once.
CLOSING = b"retry: 100\n: closing, resume from the last id\n\n"
T = TypeVar("T")
log = structlog.get_logger("bulkhead.stream")
_open = get_meter("bulkhead.http").create_up_down_counter("bulkhead_gateway_open_streams", description="Event streams being served.")


@dataclass(frozen=True, slots=True)
class StreamRules:
    """Bounds of every stream, in seconds."""

    heartbeat_s: float
    max_age_s: float
    slow_reader_s: float
    proof_wait_s: float


class OpenStreams:
    """The streams of this process, so that a drain can end them: resumable ones at once, the others at the last moment."""

    def __init__(self, rules: StreamRules) -> None:
        self.rules = rules
        self._streams: set[EventStream] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    def enter(self, stream: "EventStream") -> None:
        """Counts a stream in."""
        self._streams.add(stream)
        self._empty.clear()
        _open.add(1)
        if self.draining and stream.resumable:
            stream.end()

    def leave(self, stream: "EventStream") -> None:
        """Counts a stream out."""
        self._streams.discard(stream)
        _open.add(-1)
        if not self._streams:
            self._empty.set()

    def __len__(self) -> int:
        return len(self._streams)

    async def drain(self, grace_s: float) -> None:
        """Ends the resumable streams; waits up to `grace_s` for the others, then ends those with an error that says so."""
        self.draining = True
        for stream in list(self._streams):
            if stream.resumable:
                stream.end()
        try:
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        except TimeoutError:
            for stream in list(self._streams):
                stream.end()
            await self._empty.wait()


class EventStream(Response):
    """A text/event-stream over an async generator of encoded frames."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        streams: OpenStreams,
        *,
        headers: dict[str, str] | None = None,
        media_type: str = "text/event-stream; charset=utf-8",
        status_code: int = 200,
        resumable: bool = True,
        proven: bool = False,
        filler: bytes = HEARTBEAT,
        failure: Callable[[BulkheadError], bytes] | None = None,
        on_gone: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`resumable`: the client can come back to where it was, so the stream opens with `retry:` and is closed early on a drain.

        `proven`: the headers wait for the first frame, and an error before it is raised instead. `failure` renders an error
        that comes later; without it the connection is broken off, so that nobody takes a part for the whole. `filler` is sent
        into silences. `on_gone` is awaited when the client leaves before the end.
        """
        self.frames = frames
        self.streams = streams
        self.resumable = resumable
        self._proven = proven
        self._filler = filler
        self._failure = failure
        self._on_gone = on_gone
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending_since: float | None = None
        self._sent_at = time.monotonic()
        self._started = False
        self._send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
        self.status_code = status_code
        self.background = None
        self.body = b""
        given = {"content-type": media_type, "cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})}
        self.raw_headers = [(k.encode("ascii"), v.encode("latin-1", "replace")) for k, v in given.items()]

    def end(self) -> None:
        """Asks the stream to close in good order."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serves the stream. Raises what the frames raise as long as nothing was sent."""
        self._send = send
        if not self._proven:
            await self._start()
        with exchange(scope).watch() as barred:
            await self._serve(receive, barred)

    async def _serve(self, receive: Any, barred: asyncio.Future[BulkheadError]) -> None:
        """`barred` is done when the client's credential has ended."""
        rules = self.streams.rules
        left = (call_context.current() or call_context.CallContext()).remaining_s()
        lifetime_s = rules.max_age_s if left is None else max(0.0, min(rules.max_age_s, left))
        pump = asyncio.create_task(self._pump())
        gone = asyncio.create_task(disconnected(receive))
        beat = asyncio.create_task(self._beat(rules))
        self.streams.enter(self)
        try:
            await asyncio.wait({pump, gone, beat, self._ended, barred}, timeout=lifetime_s, return_when=asyncio.FIRST_COMPLETED)
            # What is complete wins over how the connection ended: a client that has its answer did not leave early.
            if pump.done():
                await self._finish(pump.exception())
            elif gone.done():
                pump.cancel()
                if self._on_gone is not None:
                    await self._on_gone()
            elif beat.done():
                log.info("slow_reader_closed")
            elif barred.done():
                log.info("credential_ended", reason=barred.result().reason)
                await self._close_early(pump, barred.result())
            elif self.resumable:
                await self._close_early(pump, None)
            elif self._ended.done():
                await self._close_early(pump, Overloaded("this gateway is shutting down", reason="DRAINING", retry_after_s=1.0))
            else:
                await self._close_early(pump, DeadlineExceeded("the answer took longer than the time that was given"))
        finally:
            self.streams.leave(self)
            for task in (pump, gone, beat):
                task.cancel()
            await asyncio.gather(pump, gone, beat, return_exceptions=True)

    async def _start(self) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self.resumable:
            await self._send({"type": "http.response.body", "body": OPENING, "more_body": True})

    async def _pump(self) -> None:
        send = self._send
        try:
            async for frame in self.frames:
                if not self._started:
                    await self._start()
                self._sending_since = time.monotonic()
                await send({"type": "http.response.body", "body": frame, "more_body": True})
                self._sent_at, self._sending_since = time.monotonic(), None
        finally:
            await self.frames.aclose()

    async def _beat(self, rules: StreamRules) -> None:
        """Fills silences; returns when the client has stopped reading."""
        first_beat = rules.heartbeat_s if self._started else min(rules.proof_wait_s, rules.heartbeat_s)
        await asyncio.sleep(first_beat)
        while True:
            now = time.monotonic()
            if self._sending_since is not None:
                left = self._sending_since + rules.slow_reader_s - now
                if left <= 0:
                    return
                await asyncio.sleep(min(left, rules.heartbeat_s))
                continue
            left = self._sent_at + rules.heartbeat_s - now
            if left > 0 and self._started:
                await asyncio.sleep(left)
                continue
            if not self._started:
                await self._start()
            try:
                async with asyncio.timeout(rules.slow_reader_s):
                    await self._send({"type": "http.response.body", "body": self._filler, "more_body": True})
            except TimeoutError:
                return
            self._sent_at = time.monotonic()

    async def _finish(self, error: BaseException | None) -> None:
        if error is not None and not self._started:
            raise error
        if isinstance(error, DeadlineExceeded) and self.resumable:
            await self._send({"type": "http.response.body", "body": CLOSING, "more_body": True})
        elif isinstance(error, BulkheadError) and self._failure is not None:
            await self._send({"type": "http.response.body", "body": self._failure(error), "more_body": True})
        elif error is not None:
            raise error
        if not self._started:
            await self._start()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _close_early(self, pump: asyncio.Task, error: BulkheadError | None) -> None:
        """Ends the stream for a reason that is the client's to know; None is one for which it comes back at once."""
        pump.cancel()
        await asyncio.wait({pump})
        last = CLOSING
        if error is not None:
            if not self._started or self._failure is None:
                raise error
            last = self._failure(error)
        try:
            # Who does not read is not waited for longer than while the stream was open.
            async with asyncio.timeout(self.streams.rules.slow_reader_s):
                await self._send({"type": "http.response.body", "body": last, "more_body": True})
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.info("slow_reader_closed")


async def disconnected(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Any, work: Coroutine[Any, Any, T], on_gone: Callable[[], Awaitable[None]] | None = None) -> T:
    """The result of `work`. When the client leaves first the work is cancelled, `on_gone` awaited, and ClientGone raised."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        if on_gone is not None:
            await on_gone()
        raise ClientGone("the client went away before the answer")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
