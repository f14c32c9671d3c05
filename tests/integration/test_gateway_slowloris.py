"""Clients that send one byte at a time, by the hundred: others are answered beside them, and each is given up on in its time."""

import asyncio
import gc
import os
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from services.common import http, testing
from services.gateway import fakes

pytestmark = pytest.mark.asyncio(loop_scope="module")
EACH = 40
DRIP_S = 0.2
BOUND_S = 1.0
# Far beyond a bound that is kept, and far below one that is not: who drips goes on for ever.
PATIENCE_S = 30.0
PROMPT_S = 5.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server):
    """A gateway that gives a head and a body a second each, and an idle connection all the time in the world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "HEAD_S", BOUND_S)
        patch.setattr(http, "KEEP_ALIVE_S", 3600)
        async with fakes.gateway(identities, _state_server, body_timeout_s=BOUND_S, upload_timeout_s=BOUND_S) as made:
            yield made


class Dripper(asyncio.Protocol):
    """Sends `first`, then `drop` again and again until the connection is ended; `got` is what came back."""

    def __init__(self, first, drop):
        self.first, self.drop, self.got = first, drop, b""
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.first)
        self.next = self.loop.call_later(DRIP_S, self.drip)

    def drip(self):
        self.transport.write(self.drop)
        self.next = self.loop.call_later(DRIP_S, self.drip)

    def data_received(self, data):
        self.got += data

    def connection_lost(self, exc):
        self.next.cancel()
        self.ended.set_result(None)


def held():
    """What connections hold of a process: descriptors, and what the listener knows of each."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), sum(isinstance(one, http.HttpToolsProtocol) for one in gc.get_objects())


async def ordinary(session, dripping):
    """Requests one after another for as long as anybody drips; how many there were."""
    count = 0
    while not dripping.done():
        async with asyncio.timeout(PROMPT_S):
            async with session.post("/v1/threads", json={"metadata": {}}) as response:
                assert response.status == 201
        count += 1
    return count


POST = b"POST /v1/threads HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n"
CHUNKS = POST.replace(b"content-length: 100000", b"transfer-encoding: chunked")
UPLOAD = POST.replace(b"threads", b"blobs").replace(b"application/json", b"text/plain")
DELETE = POST.replace(b"POST /v1/threads", b"DELETE /v1/threads/none")
GET = b"GET /v1/threads HTTP/1.1\r\nhost: x\r\n"
UPGRADE = GET.replace(b"/v1/threads", b"/ws") + b"connection: upgrade\r\nupgrade: websocket\r\nx-more: "
KEY = b"authorization: Bearer %s\r\n\r\n"
# What comes first, what drips, and the status that answers it, if any.
KINDS = [
    (GET + b"x-more: ", b"a", b""),
    (UPGRADE, b"a", b""),
    (b"GET /", b"a", b""),
    (POST + KEY, b" ", b"408"),
    (CHUNKS + KEY, b"1\r\n \r\n", b"408"),
    (UPLOAD + KEY, b"a", b"408"),
    # These are answered at once, and the body goes on.
    (POST + b"\r\n", b" ", b"401"),
    (DELETE + KEY, b" ", b"404"),
    (GET + b"content-length: 100000\r\n" + KEY, b" ", b"200"),
]


async def test_who_drips_is_given_up_on_and_holds_up_nobody(front):
    port, loop = urlsplit(front.url).port, asyncio.get_running_loop()
    async with aiohttp.ClientSession(front.url, headers=front.headers()) as session:
        async with session.post("/v1/threads", json={}) as response:
            assert response.status == 201
        before = held()
        drippers = {}
        for kind in KINDS:
            first = kind[0].replace(b"%s", front.key.encode())
            drippers[kind] = [Dripper(first, kind[1]) for _ in range(EACH)]
            await asyncio.gather(*(loop.create_connection(lambda made=made: made, "127.0.0.1", port) for made in drippers[kind]))
        assert held()[0] >= before[0] + len(KINDS) * EACH
        dripping = asyncio.gather(*(dripper.ended for some in drippers.values() for dripper in some))
        async with asyncio.timeout(PATIENCE_S):
            assert await ordinary(session, dripping) > 0
        for (first, _, status), some in drippers.items():
            assert {dripper.got[9:12] for dripper in some} == {status}, first
            assert status != b"408" or all(b"\r\nconnection: close\r\n" in dripper.got for dripper in some), first

        def given_back():
            now = held()
            return now[0] <= before[0] and now[1] <= before[1]

        await testing.eventually_async(given_back, f"no more than {before} is held", timeout_s=PATIENCE_S)
