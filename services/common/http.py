"""HTTP listeners for `serve`: uvicorn without its own signal handling, because signals have one place."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.common.rpc.server import HttpListener
from services.common.settings import StartRefused

KEEP_ALIVE_S = 65  # above the idle time of common load balancers, so that they close first

MAX_HEAD_BYTES = 64 * 1024


class _BoundedHead(HttpToolsProtocol):
    """httptools takes headers without end: this gives up on a request whose head goes on and on."""

    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        # The part in which the head began is not counted: it may hold a body that was sent before it.
        self._head_bytes += len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The headers are too large.")
            return
        super().data_received(data)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class UvicornListener(HttpListener):
    """An ASGI application on one port."""

    def __init__(self, app: Any, host: str, port: int, variable: str = "BULKHEAD_HTTP_PORT", **config: Any) -> None:
        """`variable` names the setting to change when the port is taken; `config` goes to uvicorn.Config."""
        self._port, self._host, self._variable = port, host, variable
        options: dict[str, Any] = {
            "lifespan": "off", "log_config": None, "access_log": False, "server_header": False, "date_header": False,
            "timeout_keep_alive": KEEP_ALIVE_S, "http": _BoundedHead, "ws": "none", "loop": "none",
        }  # fmt: skip
        self._server = _Server(uvicorn.Config(app, **{**options, **config}))
        self._task: asyncio.Task | None = None
        self.bound_port = port

    async def start(self) -> None:
        """Binds and begins to accept. Raises StartRefused when the port is taken."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # The protocol is named because asyncio's own loop turns Nagle's algorithm off only then: 40 ms an answer without.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
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
