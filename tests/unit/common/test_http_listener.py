"""The HTTP listener: what it refuses before an application sees it."""

import asyncio
import re
import socket
from contextlib import suppress

import pytest

from services.common import http, testing
from services.common.http import LINE, MAX_HEAD_BYTES, UNHEARD_MS, UvicornListener
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


GET = b"GET /wait HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(("sent", "answered"), [(b"", 0), (GET, 0), (GET + b"\r\n" + GET, 1)])
async def test_a_head_that_does_not_come_is_not_waited_for(sent, answered):
    listener = UvicornListener(answer_ok, "127.0.0.1", testing.free_port(), timeout_keep_alive=0.2)
    await listener.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.bound_port)
    writer.write(sent)
    async with asyncio.timeout(30):
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == answered
    writer.close()
    await listener.close()


class Dripping:
    """A listener whose bounds are `head_s` and `idle_s`, and a client that goes on with `drop` after `first` until it is closed."""

    def __init__(self, monkeypatch, head_s, idle_s):
        monkeypatch.setattr(http, "HEAD_S", head_s)
        self.listener = UvicornListener(answer_ok, "127.0.0.1", testing.free_port(), timeout_keep_alive=idle_s)

    async def answers(self, first, answered, drop):
        await self.listener.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.bound_port)
        writer.write(first)
        try:
            async with asyncio.timeout(30):
                answer = await reader.readuntil(b"ok") if answered else b""
                while not reader.at_eof():
                    writer.write(drop)
                    with suppress(TimeoutError):
                        answer += await asyncio.wait_for(reader.read(100), 0.02)
        except ConnectionError:
            pass
        finally:
            writer.close()
            await self.listener.close()
        return b"|".join(re.findall(rb"HTTP/1.1 [^\r]*", answer))


POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "answered", "drop", "head_s", "idle_s"),
    [
        (b"GET /", 0, b"a", 0.2, 600), (GET + b"\r\nGET /", 1, b"a", 0.2, 600), (POST, 1, b"x", 0.2, 600),
        (b"", 0, b"\r\n", 600, 0.2), (GET + b"\r\n", 1, b"\r\n", 600, 0.2),
    ],
)  # fmt: skip
async def test_who_drips_is_closed_in_time_whatever_it_is_that_drips(monkeypatch, first, answered, drop, head_s, idle_s):
    assert await Dripping(monkeypatch, head_s, idle_s).answers(first, answered, drop) == (b"HTTP/1.1 200 OK" if answered else b"")


async def test_a_body_that_comes_after_its_answer_ends_no_connection(monkeypatch):
    monkeypatch.setattr(http, "HEAD_S", 0.3)
    listener = UvicornListener(answer_ok, "127.0.0.1", testing.free_port(), timeout_keep_alive=600)
    await listener.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.bound_port)
    async with asyncio.timeout(30):
        writer.write(POST.replace(b"1000000", b"2") + b"x")
        await reader.readuntil(b"ok")
        writer.write(b"x")
        # Longer than the rest of the body might have taken.
        await asyncio.sleep(0.5)
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await listener.close()


@pytest.mark.parametrize("line", [b"x-many: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
async def test_trailers_without_end_are_not_taken(direct, line):
    reader, writer = await asyncio.open_connection("127.0.0.1", direct.port)
    writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-first: ")
    sent, most = 0, 100 * MAX_HEAD_BYTES
    async with asyncio.timeout(30):
        try:
            while sent < most and not reader.at_eof():
                writer.write(line)
                await writer.drain()
                sent += len(line)
        except ConnectionError:
            pass
    writer.close()
    assert sent < most


async def test_the_beginning_of_a_head_does_not_end_the_answer_before_it():
    app = Direct()
    listener = UvicornListener(app, "127.0.0.1", testing.free_port(), timeout_keep_alive=0.05)
    await listener.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.bound_port)
    writer.write(GET + b"\r\n" + GET)
    await app.started.wait()
    await asyncio.sleep(0.2)
    app.hold.set()
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await listener.close()


async def test_a_taken_port_refuses_the_start(port):
    with pytest.raises(StartRefused, match=str(port)):
        await UvicornListener(answer_ok, "127.0.0.1", port).start()


class Direct:
    """An application that uses the line below ASGI. `hold` keeps it from answering; `left` tells that its client has gone."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.left = asyncio.Event()
        self.started = asyncio.Event()
        self.wrote: list[bool] = []

    async def __call__(self, scope, receive, send):
        line = scope["extensions"][LINE]
        path = scope["path"]
        self.started.set()
        if path == "/echo":
            body = line.body(1_000_000)
            if body is None:
                body, more = b"", True
                while more:
                    message = await receive()
                    body, more = body + message["body"], message["more_body"]
            assert line.answer(200, [(b"content-length", b"%d" % len(body))], body)
        elif path == "/chunks":
            assert line.begin(200, [(b"content-type", b"text/plain")])
            for piece in (b"one", b"", b"two"):
                assert line.write(piece)
            await send({"type": "http.response.body", "body": b"end"})
        elif path == "/flood":
            assert line.begin(200, [])
            while not self.left.is_set():
                self.wrote.append(line.write(b"x" * 100_000))
                if not self.wrote[-1]:
                    line.watch(self.left.set)
                    await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b""})
        elif path == "/wait":
            line.watch(self.left.set)
            await self.hold.wait()
            line.unwatch()
            line.answer(200, [(b"content-length", b"2")], b"ok")
        else:
            with pytest.raises(ValueError):
                line.answer(200, [(b"content-length", b"0"), (b"x-a", b"1\r\nx-evil: 1")], b"")
            line.answer(200, [(b"content-length", b"0"), (b"connection", b"close")], b"")


@pytest.fixture
async def direct():
    app = Direct()
    listener = UvicornListener(app, "127.0.0.1", testing.free_port())
    await listener.start()
    app.port = listener.bound_port
    yield app
    await listener.close()


async def test_requests_below_asgi_share_a_connection_whatever_way_their_bodies_come(direct):
    reader, writer = await asyncio.open_connection("127.0.0.1", direct.port)
    for parts in ([b"hello"], [b"hel", b"lo"], [b"x" * 500_000, b"y" * 400_000]):
        length = sum(map(len, parts))
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head == b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length
        assert await reader.readexactly(length) == b"".join(parts)
    writer.close()


async def test_pipelined_requests_get_their_own_answers_in_order(direct):
    reader, writer = await asyncio.open_connection("127.0.0.1", direct.port)
    writer.write(b"".join(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n%d" % n for n in range(5)))
    answers = await reader.readexactly(5 * len(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n0"))
    assert [answers[i] for i in range(len(answers)) if answers[: i + 1].endswith(b"\r\n\r\n" + answers[i : i + 1])] == list(b"01234")
    writer.close()


async def test_chunks_below_asgi_end_with_what_send_adds(direct):
    reader, writer = await asyncio.open_connection("127.0.0.1", direct.port)
    writer.write(b"GET /chunks HTTP/1.1\r\nhost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert await reader.readexactly(29) == b"3\r\none\r\n3\r\ntwo\r\n3\r\nend\r\n0\r\n\r\n"
    writer.close()


async def test_a_client_that_leaves_is_told_at_once(direct):
    _, writer = await asyncio.open_connection("127.0.0.1", direct.port)
    writer.write(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
    await direct.started.wait()
    assert not direct.left.is_set()
    writer.close()
    async with asyncio.timeout(30):
        await direct.left.wait()
    direct.hold.set()


async def test_a_client_that_stays_is_never_taken_for_one_that_left(direct):
    direct.hold.set()
    assert await exchange(direct.port, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n") == b"HTTP/1.1 200 OK"
    await asyncio.sleep(0.05)
    assert not direct.left.is_set()


async def test_a_client_that_does_not_read_is_waited_for(direct):
    _, writer = await asyncio.open_connection("127.0.0.1", direct.port, limit=1024)
    writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
    await testing.eventually_async(lambda: False in direct.wrote, "a write that has to wait")
    written = len(direct.wrote)
    await asyncio.sleep(0.1)
    assert len(direct.wrote) == written
    writer.transport.abort()
    async with asyncio.timeout(30):
        await direct.left.wait()


async def test_a_header_with_a_line_break_never_leaves(direct):
    reader, writer = await asyncio.open_connection("127.0.0.1", direct.port)
    writer.write(b"GET /evil HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await reader.read() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    writer.close()


async def test_what_a_machine_that_is_gone_was_sent_is_not_waited_for():
    """No packet is lost on a loopback; that the kernel is told of the bound is what can be seen."""
    listener = UvicornListener(answer_ok, "127.0.0.1", testing.free_port())
    await listener.start()
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", listener.bound_port)
        await testing.eventually_async(lambda: bool(listener._server.server_state.connections), "it is connected")
        (connection,) = listener._server.server_state.connections
        taken = connection.transport.get_extra_info("socket")
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNHEARD_MS
        writer.close()
    finally:
        await listener.close()
