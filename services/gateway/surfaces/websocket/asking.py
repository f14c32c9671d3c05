"""Requests to the HTTP application of this process."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

Message = MutableMapping[str, Any]
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
Header = tuple[bytes, bytes]
EVENTS = "text/event-stream"


def http_scope(scope: Any, method: str, path: str, headers: Sequence[Header], query: bytes = b"") -> dict[str, Any]:
    """The scope of a request that came by a WebSocket whose scope is `scope`."""
    return {
        "type": "http", "asgi": scope["asgi"], "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": quote(path).encode("ascii"), "query_string": query, "root_path": scope.get("root_path", ""),
        "headers": list(headers), "client": scope.get("client"), "server": scope.get("server"), "extensions": {},
    }  # fmt: skip


class Ask:
    """One request. Its client leaves by `leave`; a stream of events goes to `take` in whole frames."""

    def __init__(self, app: App, scope: dict[str, Any], body: bytes = b"", take: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.body = b""
        self.streams = False
        # Whether the application has ended its answer: one that is broken off has not.
        self.whole = False
        self._body, self._given = body, False
        self._take = take
        self._begun, self._left = asyncio.Event(), asyncio.Event()
        # A task of its own, because the edge and admission set what holds for the rest of a task's life.
        self.task = asyncio.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]

    def header(self, name: str) -> str:
        """A header of the answer, '' where it has none."""
        return next((value.decode("latin-1") for known, value in self.headers if known == name.encode()), "")

    async def answered(self) -> None:
        """Waits for the answer, of a stream for its beginning."""
        begun = asyncio.create_task(self._begun.wait())
        try:
            await asyncio.wait({self.task, begun}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
        if not self.streams:
            await asyncio.wait({self.task})

    async def finish(self, timeout_s: float, *, leaving: bool) -> None:
        """Waits for the answer, as `answered`, and for no longer than that; then leaves where that ends the client's part, and breaks
        the request off."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.answered()
                if leaving:
                    self.leave()
                    await asyncio.wait({self.task})
        await self.end()

    def leave(self) -> None:
        """Closes the connection, as a client does."""
        self._left.set()

    async def end(self) -> None:
        """Breaks the request off: for the application that is no client's leaving."""
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _receive(self) -> Message:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
            self.streams = self._take is not None and self.status == 200 and self.header("content-type").startswith(EVENTS)
            if self.streams:
                self._begun.set()
            return
        self.whole = not message.get("more_body", False)
        chunk = message.get("body", b"")
        if not self.streams:
            self.body += chunk
        elif chunk and self._take is not None:
            await self._take(chunk)
