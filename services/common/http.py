"""HTTP listeners for `serve`: uvicorn without its own signal handling, because signals have one place."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.common.rpc.server import HttpListener
from services.common.settings import StartRefused

KEEP_ALIVE_S = 65  # above the idle time of common load balancers, so that they close first
# A head that has begun comes in a packet or two; KEEP_ALIVE_S is for connections that wait to be used, and who drips would hold each for as
# long. The rest of a body whose request is answered already has as much time.
HEAD_S = 10.0
# A client whose machine is gone says nothing, and what it is sent, as a sign of life, stays in the kernel: for a quarter of an hour, if
# nobody says otherwise. Longer than who takes nothing is waited for (StreamRules), as the kernel cannot tell those apart.
UNHEARD_MS = 45_000
# Of a head; and of what is neither head nor body, such as trailers.
MAX_HEAD_BYTES = 64 * 1024
# The name of a request's Line among the extensions of its scope.
LINE = "bulkhead.line"
_CLOSE = (b"connection", b"close")
_CHUNKED = (b"transfer-encoding", b"chunked")


class Line:
    """The wire of one request below ASGI, for applications whose every microsecond counts; stands in scope["extensions"][LINE].

    It is used in place of `receive` and `send`, where it can be, and says so where it cannot. A watcher of `gone` hears at once, and
    without a task that waits for it, that the client has left before its answer was whole.
    """

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: "_Protocol", cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle

    def watch(self, gone: Callable[[], None]) -> None:
        """Calls `gone` when the client leaves; until `unwatch`."""
        if self._cycle.disconnected:
            gone()
        else:
            self._protocol.watchers[self._cycle] = gone

    def unwatch(self) -> None:
        """The answer is whole."""
        self._protocol.watchers.pop(self._cycle, None)

    def body(self, most: int) -> bytes | None:
        """The whole request body when it is here already and has no more than `most` bytes, else None."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue or len(cycle.body) > most:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.flow.resume_reading()
        return body

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Writes a whole answer whose headers hold its content-length. False where `send` has to do it."""
        cycle = self._cycle
        if not self._begin(status, headers, body):
            return False
        if cycle.disconnected:
            return True
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True

    def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Writes the head of an answer in chunks. False where `send` has to do it."""
        if self._cycle.scope["http_version"] != "1.1" or not self._begin(status, (*headers, _CHUNKED), b""):
            return False
        self._cycle.chunked_encoding = True
        return True

    def write(self, piece: bytes) -> bool:
        """Writes a chunk of an answer that was begun with `begin`. False where `send` has to wait for the client first."""
        cycle = self._cycle
        if cycle.disconnected:
            return True
        if not cycle.chunked_encoding or cycle.flow.write_paused:
            return False
        if piece:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    def _begin(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        cycle = self._cycle
        if cycle.disconnected:
            return True
        if cycle.response_started or cycle.flow.write_paused or cycle.scope["method"] == "HEAD" or status in (204, 304):
            return False
        if _CLOSE in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers = (*headers, _CLOSE)
        head = b"%b%b\r\n" % (STATUS_LINE[status], b"\r\n".join(map(b": ".join, headers)))
        breaks = len(headers) + 1
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
            raise ValueError("a header holds a line break")
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        cycle.transport.write(b"%b\r\n%b" % (head, body))
        return True


class _Protocol(HttpToolsProtocol):
    """httptools takes headers and trailers without end, and uvicorn waits for them, and for the rest of a body that nobody reads any more,
    for ever: this gives up on what goes on and on, and on what has not come whole in time. And it hands out lines.
    """

    _in_head = False
    _in_message = False
    # Whether what came last was neither body nor the beginning or end of a head, and how much of that came in a row.
    _barren = False
    _barren_bytes = 0
    _late: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, head_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_s = head_s
        self.watchers: dict[RequestResponseCycle, Callable[[], None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        # Browsers and load balancers open connections before they need them: until its first byte, one is no more than idle.
        self._wait(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wait(None)
        watchers, self.watchers = self.watchers, {}
        for cycle, gone in watchers.items():
            cycle.disconnected = True
            gone()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._barren = False

    def on_headers_complete(self) -> None:
        self._in_head = self._barren = False
        self._wait(None)
        super().on_headers_complete()
        self.scope["extensions"] = {LINE: Line(self, self.cycle)}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._barren = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_message = False
        # Where its answer was out before, it was waited for.
        self._wait(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message and not self._in_head and self._answered() and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._wait(self._head_s)

    def data_received(self, data: bytes) -> None:
        in_head, self._barren = self._in_head, True
        super().data_received(data)
        # The part in which a head began is not counted: it may hold a body that was sent before it.
        self._barren_bytes = self._barren_bytes + len(data) if self._barren else 0
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self._barren_bytes > MAX_HEAD_BYTES:
            if self._answered():
                self.send_400_response("The headers are too large.")
            else:
                self.transport.abort()
        elif self._in_head:
            if not in_head or self._late is None:
                self._wait(self._head_s)
        elif self._late is None and self._answered():
            # uvicorn has ended its own wait, which begins anew with every answer alone: blank lines, and the rest of a body, are none.
            self._wait(self._head_s if self._in_message else self.timeout_keep_alive)

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, most_s: float | None) -> None:
        """Gives up in `most_s` seconds; None: does not."""
        if self._late is not None:
            self._late.cancel()
        self._late = None if most_s is None else self.loop.call_later(most_s, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        if self._answered():
            self.timeout_keep_alive_handler()
        else:
            # What came before on this connection is still being answered.
            self._wait(self._head_s)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Share(Enum):
    """Whether other processes listen on the same port: none; those that this one starts afterwards; the one that started this."""

    NONE = "none"
    FIRST = "first"
    WORKER = "worker"


class UvicornListener(HttpListener):
    """An ASGI application on one port."""

    def __init__(
        self, app: Any, host: str, port: int, variable: str = "BULKHEAD_HTTP_PORT", *, share: Share = Share.NONE, **config: Any
    ) -> None:
        """`variable` names the setting to change when the port is taken; `config` goes to uvicorn.Config."""
        self._port, self._host, self._variable, self._share = port, host, variable, share
        options: dict[str, Any] = {
            "lifespan": "off", "log_config": None, "access_log": False, "server_header": False, "date_header": False,
            "timeout_keep_alive": KEEP_ALIVE_S, "ws": "none", "loop": "none", "proxy_headers": False,
            **config,
        }  # fmt: skip
        protocol = partial(_Protocol, head_s=min(HEAD_S, options["timeout_keep_alive"]))
        self._server = _Server(uvicorn.Config(app, **{"http": protocol, **options}))
        self._task: asyncio.Task | None = None
        self.bound_port = port

    async def start(self) -> None:
        """Binds and begins to accept. Raises StartRefused when the port is taken."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # The protocol is named because asyncio's own loop turns Nagle's algorithm off only then: 40 ms an answer without.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Connections inherit it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)
        try:
            if self._share is Share.FIRST:
                # A stranger's socket may be open to sharing as well: the port is ours only when nobody holds it.
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((self._host, self._port))
            if self._share is not Share.NONE:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((self._host, self._port))
        except OSError:
            sock.close()
            raise StartRefused([f"port {self._port} is taken ({self._variable})"]) from None
        self.bound_port = sock.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]), name="http")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.005)
        if self._task.done():
            await self._task

    async def stop_accepting(self) -> None:
        """Closes the listening socket and lets open requests go on; idle connections are closed."""
        self._server.should_exit = True

    async def finish(self) -> None:
        """Waits until the last request has ended."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def close(self) -> None:
        """Ends the requests that are left."""
        self._server.should_exit = True
        self._server.force_exit = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=2.0)
            self._task.cancel()
