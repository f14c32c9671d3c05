"""A talker over the real `websockets` client, for the tests of `/ws`."""

import asyncio
import base64
import itertools
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from services.gateway.fakes import Gateway

PATIENCE_S = 20


class Talk:
    """Sorts what comes: answers by id, events by watch."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.hello: dict[str, Any] = {}
        self.answers: dict[str | None, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        self.closing: dict[str, Any] | None = None
        self._ids = itertools.count(1)

    async def send(self, kind: str, **members: Any) -> str:
        """Sends a command; answers its id."""
        command_id = members.pop("id", None) or f"c{next(self._ids)}"
        await self.connection.send(orjson.dumps({"id": command_id, "type": kind, **members}).decode())
        return command_id

    async def ask(self, kind: str, **members: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer, ack or error."""
        return await self.answer(await self.send(kind, **members))

    async def answer(self, command_id: str | None) -> dict[str, Any]:
        """The answer to a command, once."""
        await self.until(lambda: command_id in self.answers)
        return self.answers.pop(command_id)

    async def followed(self, watch: str) -> list[dict[str, Any]]:
        """The events of a watch up to its end."""
        await self.until(lambda: watch in self.ended)
        return self.events.get(watch, [])

    async def until(self, there: Callable[[], bool]) -> None:
        """Takes messages until it is there."""
        async with asyncio.timeout(PATIENCE_S):
            while not there():
                self.take(await self.connection.recv())

    async def rest(self) -> int:
        """Takes all there is to the end; answers the close code."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionClosed):
                while True:
                    self.take(await self.connection.recv())
        return self.connection.close_code or 0

    def take(self, raw: str | bytes) -> None:
        """Sorts one message."""
        message = orjson.loads(raw)
        match message["type"]:
            case "hello":
                self.hello = message
            case "ack" | "error":
                self.answers[message["id"]] = message
            case "event":
                self.events.setdefault(message["watch"], []).append(message["event"])
            case "watch_ended":
                self.ended[message["watch"]] = message
            case "closing":
                self.closing = message


@asynccontextmanager
async def talk(served: Gateway, *, key: str | None = None, headers: dict[str, str] | None = None, **options: Any) -> AsyncIterator[Talk]:
    """A connection; `key` by default the gateway's own, '' for none."""
    secret = served.key if key is None else key
    given = {**({"authorization": f"Bearer {secret}"} if secret else {}), **(headers or {})}
    async with connect(served.url.replace("http", "ws") + "/ws", additional_headers=given, proxy=None, **options) as connection:
        talking = Talk(connection)
        await talking.until(lambda: bool(talking.hello))
        yield talking


async def watched(ws, agent, thread="t", **members):
    ack = await ws.ask("start", thread_id=thread, input="x", agent=agent, watch=True, **members)
    return ack["result"]["run_id"], ack["id"]


@asynccontextmanager
async def raw(served, *, head=b""):
    """A connection whose client is nothing but bytes, after its handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.settings.http_port)
    key = base64.b64encode(os.urandom(16))
    writer.write(
        b"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
        + key + b"\r\nauthorization: Bearer " + served.key.encode() + b"\r\n" + head + b"\r\n"
    )  # fmt: skip
    try:
        if not head:
            # uvicorn drops what comes together with the handshake; RFC 6455 has a client wait for its answer.
            await reader.readuntil(b'"hello"')
        yield reader, writer
    finally:
        writer.close()


def frame(opcode, payload=b"", *, fin=True):
    """A masked frame of a client."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + struct.pack("!H", size)
    mask = b"\0\0\0\0"
    return bytes([(0x80 if fin else 0) | opcode]) + length + mask + payload


async def close_code(reader):
    """The close code that the bytes of a server end with."""
    async with asyncio.timeout(20):
        data = await reader.read()
    at = data.rindex(b"\x88")
    return struct.unpack("!H", data[at + 2 : at + 4])[0]


async def refused(served, **options):
    """The refusal of a handshake: status and problem."""
    with pytest.raises(InvalidStatus) as found:
        async with talk(served, **options):
            pass
    response = found.value.response
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    return response.status_code, orjson.loads(response.body)["reason"]
