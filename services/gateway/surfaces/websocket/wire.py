"""The WebSocket protocol of uvicorn, with bounds on what a client may make it hold, and with last words."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

from services.gateway.surfaces.websocket.pacing import Pace

# The name of a connection's wire among the extensions of its scope.
WIRE = "bulkhead.wire"
# Messages that came and were not looked at yet. uvicorn stops reading behind the first, but one read may hold thousands.
MOST_QUEUED = 128
# Pings and fragments are no commands, and cost work all the same.
FRAMES_PER_S, FRAMES_BURST = 50.0, 200.0
MOST_FRAGMENTS = 1024
# What a client gets to take the last words and to answer the close; then the connection is cut, whatever it has not read.
CUT_S = 2.0
_UNREADABLE = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class WebSocketWire(WebSocketsSansIOProtocol):
    """One connection. The application finds it in scope["extensions"][WIRE]."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # uvicorn and websockets tell every URL and, at DEBUG, every header and frame: keys and what people say.
        silent = logging.getLogger("bulkhead.websocket.wire")
        silent.setLevel(logging.CRITICAL)
        self.logger = self.conn.logger = silent
        self.conn.debug = False
        self.told = asyncio.Event()
        self._pace = Pace(FRAMES_PER_S, FRAMES_BURST, 0)
        self._pong = b""

    def connection_made(self, transport: Any) -> None:
        """As uvicorn's. A request that is still being answered on this connection ends, as nobody would tell it that the client left."""
        before = transport.get_protocol()
        super().connection_made(transport)
        if isinstance(before, HttpToolsProtocol) and before.cycle is not None and not before.cycle.response_complete:
            before.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, which forgets a handshake that our HTTP server took and websockets does not."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_complete:
            self.handshake_complete = self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()) or _UNREADABLE)
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        """As uvicorn's, and hands itself to the application."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["extensions"][WIRE] = self  # type: ignore[index,assignment]

    @property
    def behind(self) -> bool:
        """Whether the client has not taken what it was sent before."""
        return not self.writable.is_set()

    def shutdown(self) -> None:
        """The server drains: the application says so to the client."""
        if self.handshake_complete and not self.close_sent:
            self.told.set()
        else:
            super().shutdown()

    def leave(self, last_words: str, code: int, reason: str) -> None:
        """Ends the connection: a last message, the close, and the end of it all when the client does not answer in CUT_S.

        Neither waits for a client that is behind; what it reads until then, it reads in order.
        """
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.conn.send_text(last_words.encode())
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._wait_for_the_end()

    def handle_cont(self, event: Frame) -> None:
        """A fragment: bytes are bounded by websockets, their number is not."""
        if self._too_often() or len(self.frames) >= MOST_FRAGMENTS:
            self._throw_out("too many fragments")
        elif not self.close_sent:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answers, once, where the client takes what it is sent."""
        pong = b"".join(self.conn.data_to_send())
        if self.close_sent:
            return
        if self._too_often():
            self._throw_out("too many pings")
        elif self.writable.is_set():
            self.transport.write(pong)
        else:
            self._pong = pong

    def resume_writing(self) -> None:
        """The client takes again what it is sent."""
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong and not self.close_sent:
            self.transport.write(pong)

    def send_receive_event_to_app(self) -> None:
        """Hands a message on."""
        if not self.close_sent and self.queue.qsize() >= MOST_QUEUED:
            self._throw_out("too many messages at once")
        else:
            super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        """Nobody is there, so nobody takes what is still to be sent."""
        super().keepalive_timeout()
        # transport.close() waits for a client to take what was written, for ever.
        self.loop.call_later(CUT_S, self.transport.abort)

    def handle_parser_exception(self) -> None:
        """Ends a connection whose bytes are no WebSocket's. What still comes is read and thrown away for a while: were the socket closed
        over it, the client would get a reset in place of the close code."""
        if self.close_sent:
            return
        self.close_sent = True
        close = self.conn.close_sent
        assert close is not None
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._wait_for_the_end()

    def _too_often(self) -> bool:
        return bool(self._pace.take())

    def _throw_out(self, reason: str) -> None:
        if self.close_sent:
            return
        # None of it is looked at any more.
        while not self.queue.empty():
            self.queue.get_nowait()
        self.frames = []
        self.conn.fail(CloseCode.POLICY_VIOLATION, reason)
        self.handle_parser_exception()

    def _wait_for_the_end(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CUT_S, self.transport.abort)
