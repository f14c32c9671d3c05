"""One HTTP request and its answer, over bare ASGI: this port is on the hot path of every model call."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import orjson

from services.common.http import LINE, Line
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.common.tasks import end
from services.llm_gateway.model_port.errors import Refused

MAX_BODY_BYTES = 10 * 1024 * 1024
# A body that is too large is read on for a while before the 413, or the client sees a reset in place of it.
MAX_DRAINED_BYTES = 64 * 1024 * 1024
# How long the next piece of a body may take, where the caller's deadline leaves as much.
PIECE_WAIT_S = 60.0
JSON = b"application/json"
_FOREIGN = re.compile(r"charset\s*=\s*\"?(?!utf-?8|us-ascii)")
EVENT_STREAM = b"text/event-stream; charset=utf-8"

Message = MutableMapping[str, Any]
Header = tuple[bytes, bytes]


class Exchange:
    """Reads one request, writes one answer, and ends the work when the client goes away."""

    def __init__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        self._receive = receive
        self._send = send
        # Below ASGI where the server offers it: no task that waits for the client to leave, one write for an answer.
        # Taken out, for the line knows the scope: what refers to itself has to wait for the collector, a ninth of the CPU in all.
        self._line: Line | None = scope.get("extensions", {}).pop(LINE, None)
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._complete = False
        self._query: dict[str, list[str]] | None = None
        self._raw_query: bytes = scope.get("query_string", b"")
        self.parameters: Mapping[str, str] = {}
        self.principal: Principal | None = None
        # On time.perf_counter().
        self.began = 0.0
        self.gone = False
        self.started = False
        self.status = 0
        self.common_headers: list[Header] = []
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[str, str] = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

    def query(self, name: str) -> str | None:
        """The first value of a query parameter."""
        if self._query is None:
            self._query = parse_qs(self._raw_query.decode("latin-1"), keep_blank_values=True)
        values = self._query.get(name)
        return values[0] if values else None

    async def json(self) -> tuple[dict[str, Any], int]:
        """The body as a JSON object, and its length in bytes. Raises Refused."""
        body = await self.body()
        kind = self.headers.get("content-type", "application/json")
        if kind != "application/json":
            kind, _, parameters = kind.lower().partition(";")
            kind = kind.strip()
            # JSON is UTF-8 (RFC 8259, section 8.1); what says that it is another encoding would be read wrongly.
            if (kind != "application/json" and not kind.endswith("+json")) or _FOREIGN.search(parameters):
                raise Refused(415, "send the body as application/json", code="unsupported_media_type")
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"the body is not valid JSON (line {error.lineno}, column {error.colno})", code="invalid_json") from None
        if not isinstance(data, dict):
            raise Refused(400, "the body must be a JSON object", code="invalid_json")
        return data, len(body)

    async def body(self, most: int = MAX_BODY_BYTES) -> bytes:
        """The whole body. Raises Refused (413) beyond `most` bytes. From here on a client that leaves cancels this task."""
        if self._line is not None and (whole := self._line.body(most)) is not None:
            self._task = asyncio.current_task()
            self._line.watch(self._left)
            return whole
        pieces: list[bytes] = []
        size, more = 0, True
        while more and size <= max(most, MAX_DRAINED_BYTES):
            message = await self._piece()
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size <= most:
                pieces.append(piece)
            more = message.get("more_body", False)
        if size > most:
            raise Refused(413, f"the request body is larger than {most} bytes", code="request_too_large")
        self._begin_watch()
        return b"".join(pieces)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, for what is too large to hold. A client that leaves cancels this task."""
        more = True
        while more:
            message = await self._piece()
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._begin_watch()

    async def _piece(self) -> Message:
        """What comes next of the body. Raises Refused (408) when nothing does."""
        context = call_context.current()
        left_s = None if context is None else context.remaining_s()
        try:
            async with asyncio.timeout(PIECE_WAIT_S if left_s is None else min(left_s, PIECE_WAIT_S)):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the rest of the body did not come in time", code="request_timeout", close=True) from None
        if message["type"] == "http.disconnect":
            self.gone = True
            raise asyncio.CancelledError
        return message

    def _begin_watch(self) -> None:
        self._task = asyncio.current_task()
        if self._line is not None:
            self._line.watch(self._left)
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        # After a complete answer the server says "disconnect" as well.
        if not self._complete and self._task is not None:
            self.gone = True
            self._task.cancel()

    async def close(self) -> None:
        """Ends the watch."""
        self._complete = True
        if self._line is not None:
            self._line.unwatch()
        if self._watcher is not None:
            await end((self._watcher,))

    async def answer(self, status: int, body: bytes, headers: Sequence[Header] = (), content_type: bytes = JSON) -> None:
        """A whole answer. Where `headers` do not say where its time went, there is the time that it took in all."""
        self._complete = self.started = True
        self.status = status
        if not headers and self.began:
            headers = self.elapsed()
        head = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *self.common_headers, *headers]
        if self._line is not None and self._line.answer(status, head, body):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    def elapsed(self) -> list[Header]:
        """The time since the request began, as an answer that asked no model or was refused has it."""
        elapsed_ms = (time.perf_counter() - self.began) * 1000
        return [(b"openai-processing-ms", b"%d" % elapsed_ms), (b"server-timing", b"total;dur=%.2f" % elapsed_ms)]

    async def begin_stream(self, headers: Sequence[Header]) -> None:
        """Status 200 and the headers of an event stream."""
        self.started = True
        self.status = 200
        # Proxies that buffer would hold tokens back.
        head = [
            (b"content-type", EVENT_STREAM),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self.common_headers,
            *headers,
        ]
        if self._line is None or not self._line.begin(200, head):
            await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def begin_body(self, size: int, content_type: bytes, headers: Sequence[Header] = ()) -> None:
        """Status 200 and the headers of a body of `size` bytes, which `write` and `end_stream` send."""
        self.started = True
        self.status = 200
        head = [(b"content-type", content_type), (b"content-length", b"%d" % size), *self.common_headers, *headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def write(self, body: bytes) -> None:
        """Part of a stream."""
        if self._line is None or not self._line.write(body):
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self, body: bytes = b"") -> None:
        """The last part of a stream."""
        self._complete = True
        await self._send({"type": "http.response.body", "body": body})
