"""The provider client against real sockets that behave badly, on asyncio's loop and on the one that services run on."""

import asyncio
import gzip
import time
import zlib

import pytest

from services.llm_gateway.adapters import http_connection
from services.llm_gateway.adapters.http_connection import BrokenOff, Unreachable
from tests.unit.llm_gateway.http_client.conftest import PATIENCE_S, WHOLE


def test_a_request_goes_out_as_http_has_it_and_connections_are_used_again(run, raw):
    async def work():
        async with raw.served(raw.says(raw.WHOLE)) as (server, client):
            for _ in range(3):
                assert await raw.whole(client, server, body=b'{"a":1}') == (200, b"hello")
            assert server.connections == 1
            host = server.url.split("/")[2]
            expected = f"POST /v1/chat/completions?x=1 HTTP/1.1\r\nhost: {host}\r\ncontent-length: 7\r\nx-a: b\r\n\r\n" + '{"a":1}'
            assert server.requests == [expected.encode()] * 3

    run(work())


def test_a_large_body_arrives_whole(run, raw):
    body = b"x" * 3_000_000

    async def work():
        async with raw.served(raw.says(raw.WHOLE), limit=2**16) as (server, client):
            assert await raw.whole(client, server, body=body) == (200, b"hello")
            assert server.requests[0].endswith(b"\r\n\r\n" + body)

    run(work())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\ntrailer: 1\r\n\r\n", (200, b"hello")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE, (200, b"hello")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 503 \r\ncontent-length: 2\r\n\r\nno", (503, b"no")),
        (b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n", (302, b"")),
    ],
)  # fmt: skip
def test_every_framing_of_an_answer_is_read_and_leaves_a_usable_connection(run, raw, answer, expected):
    async def work():
        async with raw.served(raw.says(answer)) as (server, client):
            assert await raw.whole(client, server) == expected
            assert await raw.whole(client, server) == expected
            assert server.connections == 1

    run(work())


def test_an_answer_without_a_length_ends_with_its_connection(run, raw):
    async def script(number, request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        writer.close()

    async def work():
        async with raw.served(script) as (server, client):
            assert await raw.whole(client, server) == (200, b"to the end")
            assert await raw.whole(client, server) == (200, b"to the end")
            assert server.connections == 2

    run(work())


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"],
)
def test_an_answer_that_is_cut_off_is_never_taken_for_a_whole_one(run, raw, answer):
    async def script(number, request, writer):
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def work():
        async with raw.served(script) as (server, client):
            with pytest.raises(BrokenOff):
                await raw.whole(client, server)

    run(work())


def test_what_came_before_the_cut_is_read_before_the_error(run, raw):
    async def script(number, request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async def work():
        async with raw.served(script) as (server, client):
            response = await raw.post(client, server)
            await asyncio.sleep(0.05)  # both the bytes and the end have arrived
            assert await response.read(time.monotonic() + 1) == b"hello"
            with pytest.raises(BrokenOff):
                await response.read(time.monotonic() + 1)
            response.close()

    run(work())


@pytest.mark.parametrize("answer", [b"", b"HTT", b"what is this\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"])
def test_no_answer_at_all_is_unreachable_and_no_request_is_sent_twice(run, raw, answer):
    async def script(number, request, writer):
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def work():
        async with raw.served(script) as (server, client):
            with pytest.raises(Unreachable) as raised:
                await raw.whole(client, server)
            assert not raised.value.permanent
            assert len(server.requests) == 1

    run(work())


def test_a_head_without_an_end_is_refused(run, raw):
    async def script(number, request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            writer.write(b"x-filler: " + b"y" * 1000 + b"\r\n")

    async def work():
        async with raw.served(script) as (server, client):
            with pytest.raises(Unreachable, match="too large"):
                await raw.whole(client, server)

    run(work())


@pytest.mark.parametrize("second", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-evil: 1\r\n\r\nevil", b"garbage"])
def test_bytes_behind_an_answer_touch_neither_it_nor_the_next(run, raw, second):
    async def script(number, request, writer):
        writer.write(raw.WHOLE + second)

    async def work():
        async with raw.served(script) as (server, client):
            for _ in range(2):
                response = await raw.post(client, server)
                assert await response.read(time.monotonic() + 1) == b"hello"
                assert "x-evil" not in response.headers
                response.close()
            assert server.connections == 2

    run(work())


def test_bytes_that_come_while_a_connection_rests_are_no_answer_to_the_next_request(run, raw):
    async def script(number, request, writer):
        writer.write(raw.WHOLE)
        if number == 1:
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    async def work():
        async with raw.served(script) as (server, client):
            assert await raw.whole(client, server) == (200, b"hello")
            await asyncio.sleep(0.1)
            assert await raw.whole(client, server) == (200, b"hello")
            assert server.connections == 2

    run(work())


def test_a_connection_that_the_server_closed_while_it_rested_is_not_used(run, raw):
    async def script(number, request, writer):
        writer.write(raw.WHOLE)
        await writer.drain()
        writer.close()

    async def work():
        async with raw.served(script) as (server, client):
            for _ in range(3):
                assert await raw.whole(client, server) == (200, b"hello")
                await asyncio.sleep(0.02)
            assert len(server.requests) == server.connections == 3

    run(work())


def test_a_rested_connection_is_looked_at_even_when_the_loop_has_not_told_of_its_end(run, raw, monkeypatch):
    monkeypatch.setattr(http_connection, "FRESH_S", 0.0)
    held = []

    async def script(number, request, writer):
        writer.write(raw.WHOLE)
        held.append(writer)

    async def work():
        async with raw.served(script) as (server, client):
            assert await raw.whole(client, server) == (200, b"hello")
            held[0].transport.abort()
            # The server's end is on the wire in this very turn of the loop, before the client's loop has read it.
            await asyncio.sleep(0)
            assert await raw.whole(client, server) == (200, b"hello")
            assert server.connections == 2

    run(work())


def test_silence_before_the_head_and_within_the_body_time_out(run, raw):
    async def script(number, request, writer):
        if number == 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")

    async def work():
        async with raw.served(script) as (server, client):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await raw.post(client, server, until_s=0.15)
            response = await raw.post(client, server)
            assert await response.read(time.monotonic() + 1) == b"he"
            with pytest.raises(TimeoutError):
                await response.read(time.monotonic() + 0.15)
            response.close()
            assert 0.3 <= time.monotonic() - began < 5.0

    run(work())


def test_a_later_deadline_is_not_ended_by_the_timer_of_an_earlier_one(run, raw):
    async def script(number, request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
        for piece in (b"ab", b"cd", b"ef"):
            await asyncio.sleep(0.15)
            writer.write(piece)

    async def work():
        async with raw.served(script) as (server, client):
            response = await raw.post(client, server, until_s=0.2)
            read = [await response.read(time.monotonic() + 0.8) for _ in range(3)]
            assert b"".join(read) == b"abcdef"
            assert await response.read(time.monotonic() + 0.1) == b""
            response.close()

    run(work())


@pytest.mark.parametrize("stage", ["head", "body"])
def test_who_stops_waiting_ends_the_connection(run, raw, stage):
    async def script(number, request, writer):
        if stage == "body":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")

    async def work():
        async with raw.served(script) as (server, client):
            task = asyncio.create_task(raw.whole(client, server))
            while not server.requests:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(PATIENCE_S):
                while not server.ended:
                    await asyncio.sleep(0.005)

    run(work())


def test_a_reader_that_is_slow_holds_the_sender_up(run, raw):
    sent = 0

    async def script(number, request, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async def work():
        async with raw.served(script) as (server, client):
            response = await raw.post(client, server)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 50_000_000
            total = 0
            while read := await response.read(time.monotonic() + PATIENCE_S):
                total += len(read)
            assert total == 100_000_000
            response.close()

    run(work())


@pytest.mark.parametrize(
    ("coding", "packed"), [("gzip", gzip.compress(b"hello" * 200_000)), ("deflate", zlib.compress(b"hello" * 200_000))]
)
def test_a_body_that_is_compressed_although_nobody_asked_is_read(run, raw, coding, packed):
    answer = f"HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: {len(packed)}\r\n\r\n".encode() + packed

    async def work():
        async with raw.served(raw.says(answer)) as (server, client):
            assert await raw.whole(client, server) == (200, b"hello" * 200_000)
        cut = answer.replace(str(len(packed)).encode(), str(len(packed) - 5).encode())[:-5]
        async with raw.served(raw.says(cut)) as (server, client):
            with pytest.raises(BrokenOff):
                await raw.whole(client, server)

    run(work())


def test_a_coding_that_nobody_can_read_is_no_answer(run, raw):
    async def work():
        async with raw.served(raw.says(b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx")) as (server, client):
            with pytest.raises(Unreachable) as raised:
                await raw.whole(client, server)
            assert raised.value.permanent

    run(work())


def test_trailers_are_no_headers(run, raw):
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nretry-after: 9\r\n\r\n"

    async def work():
        async with raw.served(raw.says(answer)) as (server, client):
            response = await raw.post(client, server)
            assert await response.read(time.monotonic() + PATIENCE_S) == b"hi"
            assert await response.read(time.monotonic() + PATIENCE_S) == b""
            assert "retry-after" not in response.headers
            response.close()
            assert await raw.whole(client, server) == (200, b"hi")
            assert server.connections == 1

    run(work())
