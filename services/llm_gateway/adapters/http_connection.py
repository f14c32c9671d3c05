"""One HTTP/1.1 connection to a provider: a request at a time, its answer parsed as it comes, one lazy timer for all deadlines."""

import asyncio
import select
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

MAX_HEAD_BYTES = 64 * 1024
# What a reader has not fetched: above it the socket is not read on.
HIGH_WATER = 256 * 1024
# A connection that has rested for longer may have been closed by the server without our loop knowing yet: the socket is asked.
FRESH_S = 1.0


class Unreachable(Exception):
    """No answer began: refused, reset, no name, no TLS, or no HTTP. `permanent` says that no repeat can help."""

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class ConnectTimeout(Exception):
    """No connection in time."""


class BrokenOff(Exception):
    """The answer began and did not come to its end."""


class Origin(NamedTuple):
    """Where connections go."""

    tls: bool
    host: str
    port: int


class Target(NamedTuple):
    """A URL as requests need it: `head` is the request line and the host header."""

    origin: Origin
    head: str


@lru_cache(maxsize=1024)
def target_of(url: str) -> Target:
    """Reads an http or https URL. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http or https URL")
    host = parts.hostname.encode("idna").decode("ascii") if not parts.hostname.isascii() else parts.hostname
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    shown = f"[{host}]" if ":" in host else host
    if port != (443 if tls else 80):
        shown = f"{shown}:{port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not (path + shown).isascii() or any(char <= " " for char in path + shown):
        raise ValueError("the URL holds characters that are not allowed there")
    return Target(Origin(tls, host, port), f"POST {path} HTTP/1.1\r\nhost: {shown}\r\n")


def request_head(target: Target, headers: Mapping[str, str], length: int) -> bytes:
    """The head of a request. Raises ValueError for a header that would be more than one line, or that HTTP cannot carry."""
    lines = "\r\n".join((f"content-length: {length}", *map(": ".join, headers.items())))
    count = len(headers)
    if lines.count("\n") != count or lines.count("\r") != count or "\0" in lines:
        raise ValueError("a header holds a line break")
    try:
        return f"{target.head}{lines}\r\n\r\n".encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("a header holds characters that HTTP cannot carry") from None


class Connection(asyncio.Protocol):
    """One connection, with at most one request under way. Its answer is read by the one who asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._until = 0.0
        self._paused = False
        self._poll: select.poll | None = None
        self.idle_since = 0.0
        # Whether it can carry another request once this one has its whole answer.
        self.usable = True
        self.lost = False
        self.asked = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self._head_done = False
        self._head_bytes = 0
        self._buffered = 0
        self._pieces: list[bytes] = []
        self._error: Exception | None = None
        self._until_close = True

    def send(self, head: bytes, body: bytes) -> None:
        """Writes a request; the connection must be one that rests."""
        self._begin()
        self.asked = True
        assert self._transport is not None
        if len(body) > HIGH_WATER:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head + body)

    async def head(self, until: float) -> None:
        """Waits for the head of the answer. Raises TimeoutError, Unreachable."""
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait(until)

    async def read(self, until: float) -> bytes:
        """What has come of the body since the last read, empty at its end. Raises TimeoutError, BrokenOff."""
        while not self._pieces:
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait(until)
        pieces, self._pieces = self._pieces, []
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def arrived(self) -> bytes:
        """What has come of the body since the last read; nothing is waited for."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    async def _wait(self, until: float) -> None:
        if time.monotonic() >= until:
            raise TimeoutError
        self._waiter = self._loop.create_future()
        self._until = until
        # The timer of an earlier wait is left running: it looks at the newest deadline when it fires.
        if self._timer is None or until < self._timer_at:
            self._arm(until)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _arm(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = until
        self._timer = self._loop.call_later(max(until - time.monotonic(), 0.0), self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if time.monotonic() < self._until:
            self._arm(self._until)
        else:
            self._waiter.set_exception(TimeoutError())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _broken(self, reason: str) -> None:
        """The answer cannot be read on."""
        self.usable = False
        if self._error is None and not self.complete:
            self._error = BrokenOff(reason) if self._head_done else Unreachable(reason)
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    def rested_well(self, now: float) -> bool:
        """Whether it can be used after a rest: nothing has come on it in the meantime, neither its end nor bytes nobody asked for."""
        if self.lost or not self.usable or self._transport is None or self._transport.is_closing():
            return False
        if now - self.idle_since < FRESH_S:
            return True
        if self._poll is None:
            sock = self._transport.get_extra_info("socket")
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return not self._poll.poll(0)

    def end(self) -> None:
        """Ends it at once."""
        self.usable = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] - uvloop's transports inherit from nothing

    def data_received(self, data: bytes) -> None:
        if not self.asked or self.complete:
            self.usable = False  # bytes that nobody asked for
            self.end()
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.complete:
                # Behind a whole answer: that one stands.
                self.usable = False
                self._wake()
            else:
                self._broken(f"no HTTP ({type(error).__name__})")
            return
        if not self._head_done and self._head_bytes > MAX_HEAD_BYTES:
            self._broken("the head of the answer is too large")
            return
        if self._buffered > HIGH_WATER and not self._paused and not self.complete and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._head_done:
            self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.usable = True, False
        if self.asked and not self.complete:
            if self._head_done and self._until_close and exc is None:
                self.complete = True
            elif self._error is None:
                reason = f"the connection was lost ({type(exc).__name__})" if exc is not None else "the connection was closed"
                self._error = BrokenOff(reason) if self._head_done else Unreachable(reason)
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # httptools

    # Bytes behind a whole answer reach these too, as a second one that nobody asked for: nothing of it may touch the first.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete or self._head_done:
            return  # trailers are read by nobody
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self._until_close = False
        self.headers.append((lower, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            return
        if not self._parser.should_keep_alive():
            self.usable = False
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        self._pieces.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._head_done:
            self.complete = True
        else:
            self.headers = []  # an interim answer (100 Continue, 103 Early Hints)

    def on_message_begin(self) -> None:
        if self.complete:
            self.usable = False
