"""One HTTP request and its answer, over bare ASGI: this server is part of benchmarks, so a framework would show."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from services.simulator.refusals import Refused
from services.simulator.surfaces.protocol import RAW, RESET

MAX_BODY_BYTES = 10 * 1024 * 1024
# A body that is too large is read to its end before the 413, or the client sees a reset instead of it; but not for ever.
_MAX_DRAINED_BYTES = 64 * 1024 * 1024
_BREAK_OFF_LIMIT_S = 2.0

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"

Header = tuple[bytes, bytes]
Message = MutableMapping[str, Any]


class Exchange:
    """Reads one request, writes one answer, and knows whether the client is still there."""

    def __init__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        closing: asyncio.Event,
    ):
        self._scope = scope
        self._receive = receive
        self._send = send
        self._closing = closing
        self._watch: asyncio.Task[None] | None = None
        self.started = False
        self.answer_id = ""
        self.more_headers: tuple[Header, ...] = ()
        self.path: str = scope["path"]
        self.headers: dict[str, str] = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

    def query(self, name: str) -> str | None:
        """The first value of a query parameter."""
        values = parse_qs(self._scope["query_string"].decode("latin-1")).get(name)
        return values[0] if values else None

    @property
    def bearer_key(self) -> str:
        """The key of the authorization header, empty without one."""
        kind, _, key = self.headers.get("authorization", "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else ""

    async def body(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """The whole request body; raises Refused (413) beyond `limit` bytes."""
        chunks: list[bytes] = []
        size, more = 0, True
        while more and size <= _MAX_DRAINED_BYTES:
            message = await self._receive()
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size <= limit:
                chunks.append(chunk)
            more = message.get("more_body", False)
        if size > limit:
            raise Refused(f"The request body is larger than {limit} bytes.", status=413, code="request_too_large")
        return b"".join(chunks)

    async def respond(self, status: int, body: bytes, headers: tuple[Header, ...] = (), content_type: bytes = JSON) -> None:
        """A whole answer."""
        await self.start(status, (*headers, (b"content-length", str(len(body)).encode())), content_type)
        await self.write(body, more=False)

    async def start(self, status: int, headers: tuple[Header, ...], content_type: bytes) -> None:
        """The status and the headers; without a content-length the body is chunked."""
        self.started = True
        sent = self.head(headers, content_type)
        if status == 413:
            sent.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": sent})

    def head(self, headers: tuple[Header, ...], content_type: bytes) -> list[Header]:
        """The headers that an answer has."""
        sent = [(b"content-type", content_type), (b"x-simulator", b"true"), *self.more_headers, *headers]
        if self.answer_id:
            # As a provider does, so that an answer without a body of ours can be found in the log too.
            sent.append((b"x-request-id", self.answer_id.encode()))
        return sent

    def write_raw(self, data: bytes) -> None:
        """Bytes as they are, past the HTTP of the server; the connection has to be broken off afterwards."""
        self.started = True
        self._extension(RAW)(data)

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """Some of the body."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def wait(self, seconds: float) -> bool:
        """Wait that long; False as soon as the client goes away."""
        if seconds > 0:
            await asyncio.wait((self._watching(),), timeout=seconds)
        return not self.client_gone

    async def stall(self, limit_s: float) -> None:
        """Do nothing until the client goes away, this server closes, or the limit is over."""
        closing = asyncio.create_task(self._closing.wait())
        await asyncio.wait((self._watching(), closing), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()

    async def break_off(self, *, at_once: bool) -> None:
        """End the connection without ending the answer: RST at once, or a close after what was written."""
        reset = self._extension(RESET)
        watching = self._watching()
        reset(at_once=at_once)
        # uvicorn takes a return before the connection is down for a mistake of the application and says so in its log.
        await asyncio.wait((watching,), timeout=_BREAK_OFF_LIMIT_S)

    def _extension(self, name: str) -> Callable[..., None]:
        found: Callable[..., None] | None = self._scope.get("extensions", {}).get(name)
        if found is None:
            raise RuntimeError("this ASGI server cannot break connections; run the simulator on its own protocol class")
        return found

    def watch(self) -> None:
        """Notice from now on when the client goes away."""
        self._watching()

    @property
    def client_gone(self) -> bool:
        """Whether the client has left; known only while it is watched."""
        return self._watch is not None and self._watch.done()

    def finish(self) -> None:
        """Stop watching the client."""
        if self._watch is not None:
            self._watch.cancel()

    def _watching(self) -> asyncio.Task[None]:
        if self._watch is None:
            self._watch = asyncio.create_task(self._until_gone())
        return self._watch

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
