"""The HTTP listener: what it refuses before an application sees it."""

import asyncio

import pytest

from services.common import testing
from services.common.http import MAX_HEAD_BYTES, UvicornListener
from services.common.settings import StartRefused


async def answer_ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port():
    listener = UvicornListener(answer_ok, "127.0.0.1", testing.free_port())
    await listener.start()
    yield listener.bound_port
    await listener.close()


async def exchange(port, *parts):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
    except ConnectionError:
        pass
    try:
        async with asyncio.timeout(30):
            return (await reader.read(64)).split(b"\r\n")[0]
    except ConnectionError:
        return b"closed"
    finally:
        writer.close()


@pytest.mark.parametrize("line", [b"x-many: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
async def test_a_head_without_end_is_refused_whether_in_many_headers_or_in_one(port, line):
    parts = [b"GET / HTTP/1.1\r\nhost: x\r\nx-first: ", *[line] * (8 * MAX_HEAD_BYTES // len(line))]
    assert await exchange(port, *parts) in (b"HTTP/1.1 400 Bad Request", b"closed")


async def test_ordinary_heads_and_large_bodies_pass(port):
    head = b"POST / HTTP/1.1\r\nhost: x\r\nx-some: " + b"a" * 8000 + b"\r\ncontent-length: 1000000\r\n\r\n"
    assert await exchange(port, head + b"b" * 1_000_000) == b"HTTP/1.1 200 OK"


async def test_a_taken_port_refuses_the_start(port):
    with pytest.raises(StartRefused, match=str(port)):
        await UvicornListener(answer_ok, "127.0.0.1", port).start()
