"""What stands at the other end of a webhook: a real HTTP server that remembers what it got."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.orchestrator.testing.fakes import Gate

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        """webhook-id."""
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        """What the message tells."""
        return orjson.loads(self.body)["data"]

    def signed_by(self, secret: str) -> bool:
        """Whether one of the signatures is of `secret`, worked out as the specification tells receivers to."""
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
        return any(part == f"v1,{wanted}" for part in self.headers["webhook-signature"].split(" "))


@dataclass
class Receiver:
    """Answers what `answer` says, once it has passed `gate`."""

    port: int = 0
    got: list[Received] = field(default_factory=list)
    gate: Gate = field(default_factory=Gate)
    answer: Callable[[Received], Answer] = lambda _: (204, {}, b"")
    connections: int = 0

    def url(self, path: str = "/hook") -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            request, *lines = head.rstrip("\r\n").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            received = Received(request.split(" ")[1], headers, await reader.readexactly(int(headers["content-length"])))
            self.got.append(received)
            await self.gate.passed()
            status, extra, body = self.answer(received)
            fields = {"content-length": str(len(body)), **extra}
            writer.write(f"HTTP/1.1 {status} As You Like\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode())
            writer.write(b"\r\n" + body)
            await writer.drain()
        except (OSError, EOFError):
            # The sender was killed.
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiver(ssl: Any = None) -> AsyncIterator[Receiver]:
    """A receiver on loopback."""
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=ssl)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.gate.open()
        server.close()
