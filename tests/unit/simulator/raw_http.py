"""Requests in all dialects and their answers as bytes on the wire."""

import asyncio
import re
from dataclasses import dataclass
from itertools import count

import orjson

from services.common import testing

WORDS = "Write 12 words."
QUESTION = "What is 17*23?"
PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
DIALECTS = ("chat", "messages", "gemini")
_ASKED = count()


@dataclass
class Wire:
    """What came over the socket until the server closed it, or went quiet."""

    raw: bytes
    closed: bool

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0].lower()

    @property
    def body(self) -> bytes:
        """The body with the chunks put together, as far as they are whole."""
        body = self.raw.partition(b"\r\n\r\n")[2]
        if b"transfer-encoding: chunked" not in self.head:
            return body
        joined = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            if not re.fullmatch(rb"[0-9a-f]+", size) or int(size, 16) == 0:
                break
            joined += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        return joined

    @property
    def ended_well(self) -> bool:
        """Whether HTTP says that this was all of the body."""
        if b"transfer-encoding: chunked" in self.head:
            return self.raw.endswith(b"0\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", self.head)
        return bool(found) and len(self.raw.partition(b"\r\n\r\n")[2]) == int(found.group(1))


def request(dialect: str, model: str, stream: bool, text: str = WORDS, tool: bool = False):
    """Path and body of a request."""
    if dialect == "gemini":
        body = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
        if tool:
            body["tools"] = [{"functionDeclarations": [{"name": "calculator", "parametersJsonSchema": PARAMETERS}]}]
        return f"/v1beta/models/{model}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}", body
    body = {"model": model, "max_tokens": 2000, "messages": [{"role": "user", "content": text}], "stream": stream}
    if dialect == "messages":
        return "/v1/messages", {**body, "tools": [{"name": "calculator", "input_schema": PARAMETERS}]} if tool else body
    if stream:
        body["stream_options"] = {"include_usage": True}
    function = {"type": "function", "function": {"name": "calculator", "parameters": PARAMETERS}}
    return "/v1/chat/completions", {**body, "tools": [function]} if tool else body


async def send(sim, path: str, body, *, wait_s: float = 5.0, headers: str = "") -> Wire:
    """A request in raw bytes on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
    content = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n{headers}\r\n"
    writer.write(head.encode() + content)
    received, closed = b"", False
    try:
        async with asyncio.timeout(wait_s):
            while chunk := await reader.read(65_536):
                received += chunk
            closed = True
    except TimeoutError:
        pass
    except ConnectionResetError:
        closed = True
    writer.close()
    return Wire(received, closed)


async def ask(sim, dialect: str, fault: str, stream: bool, *, wait_s: float = 5.0, logged: bool = True, **more):
    """What came, and the line of the log; None where it is not waited for."""
    path, body = request(dialect, f"sim-1+{fault}" if fault else "sim-1", stream, **more)
    run = f"ask-{next(_ASKED):06d}"
    wire = await send(sim, path, body, wait_s=wait_s, headers=f"x-request-id: {run}\r\n")

    async def line():
        _, page = await sim.call("GET", f"/sim/log?run={run}")
        return page["lines"]

    return wire, (await testing.eventually_async(line, "the line of the request"))[0] if logged else None
