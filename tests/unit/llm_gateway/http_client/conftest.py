"""Servers that answer in raw bytes by a script, and the two loops that the client runs on."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import uvloop

from services.llm_gateway.adapters.http_client import HttpClient

PATIENCE_S = 10.0
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Server:
    """Answers by a script: a function of (number of the request, its bytes, the writer), after which the connection stays open."""

    def __init__(self, script: Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                self.requests.append(head + await reader.readexactly(length))
                await self._script(len(self.requests), self.requests[-1], writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.ended += 1
        finally:
            writer.close()


@asynccontextmanager
async def served(script, **options):
    server = Server(script)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, **options)
    scheme = "https" if options.get("ssl") else "http"
    server.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/chat/completions?x=1"
    client = HttpClient()
    try:
        yield server, client
    finally:
        await client.close()
        listener.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine to its end on one of the loops."""

    def made(work):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(work)

    return made


def says(answer: bytes):
    async def script(number, request, writer):
        writer.write(answer)

    return script


async def post(client, server, body=b"{}", headers=None, until_s=PATIENCE_S):
    return await client.post(server.url, headers or {"x-a": "b"}, body, connect_s=2.0, until=time.monotonic() + until_s)


async def whole(client, server, **more) -> tuple[int, bytes]:
    response = await post(client, server, **more)
    try:
        pieces = []
        while read := await response.read(time.monotonic() + PATIENCE_S):
            pieces.append(read)
        return response.status, b"".join(pieces)
    finally:
        response.close()


@pytest.fixture
def raw():
    """What the tests share: served, says, post, whole, WHOLE."""
    return SimpleNamespace(served=served, says=says, post=post, whole=whole, WHOLE=WHOLE)
