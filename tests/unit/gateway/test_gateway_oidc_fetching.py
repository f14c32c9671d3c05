"""Issuers that misbehave on the wire: whatever they send, or do not, a look for keys ends, and soon."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import pytest

from services.gateway.oidc import _fetching
from services.gateway.oidc._config import Issuer
from services.gateway.oidc._fetching import NotToBeHad, key_set
from tests.unit.orchestrator.test_webhook_targets import certificates

SET = {"keys": [{"kty": "OKP"}]}
BODY = json.dumps(SET).encode()
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY)


@asynccontextmanager
async def issuing(answer, tls=None):
    """A server that takes one request and then does `answer(writer)`, or sends it; what it was asked, and its port."""
    asked = []

    async def serve(reader, writer):
        with suppress(OSError, asyncio.IncompleteReadError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            if callable(answer):
                await answer(writer)
            else:
                writer.write(answer)
                await writer.drain()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield asked, server.sockets[0].getsockname()[1]
    finally:
        server.close()


def trusted(port, scheme="http", **more):
    made = {"issuer": f"{scheme}://localhost:{port}", "jwks_url": f"{scheme}://localhost:{port}/keys?v=1", **more}
    return Issuer(audiences=("bulkhead",), tenant="acme", **made)


def without_end(begin, piece):
    async def send(writer):
        writer.write(begin)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return send


GOOD = {
    "whole": SIZED + BODY,
    "up to the end of the connection": b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    "in chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (BODY[:5], len(BODY) - 5, BODY[5:]),
    "behind an early answer": b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + SIZED + BODY,
}


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
async def test_a_key_set_comes_whole_however_it_is_sent(answer):
    async def byte_by_byte(writer):
        for at in range(len(answer)):
            writer.write(answer[at : at + 1])
            await asyncio.sleep(0.001)  # or they would come together

    for sent in (answer, byte_by_byte):
        async with issuing(sent) as (asked, port):
            assert await key_set(trusted(port)) == SET
    assert asked[0].startswith(b"GET /keys?v=1 HTTP/1.1\r\nhost: localhost:%d\r\n" % port)


BAD = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "no status": b"HTTP/1.1 abc\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n" + BODY,
    "not found": b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY,
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "cut off": SIZED + BODY[:-3],
    "bad chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n" + BODY,
    "silent": lambda writer: asyncio.Event().wait(),
    "a header without end": without_end(b"HTTP/1.1 200 OK\r\nx: ", b"y"),
    "headers without end": without_end(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "early answers without end": without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body without end": without_end(b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    "a large body": without_end(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 60_000),
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
async def test_what_is_no_key_set_is_none_and_nobody_waits_for_it_for_long(answer, monkeypatch):
    monkeypatch.setattr(_fetching, "TIMEOUT_S", 0.5)
    async with issuing(answer) as (asked, port), asyncio.timeout(20):
        with pytest.raises(NotToBeHad):
            await key_set(trusted(port))
    assert len(asked) == 1


async def test_a_handshake_that_nobody_answers_ends_too(monkeypatch):
    monkeypatch.setattr(_fetching, "TIMEOUT_S", 0.5)
    # The hello of TLS has no end of headers: this server reads, and says nothing.
    async with issuing(b"") as (_, port), asyncio.timeout(20):
        with pytest.raises(NotToBeHad):
            await key_set(trusted(port, "https"))


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "nowhere.invalid"])
async def test_a_host_that_is_nowhere_is_told_like_one_that_is_away(host):
    with pytest.raises(NotToBeHad):
        await key_set(trusted(1, jwks_url=f"https://{host}/keys"))


async def test_over_tls_the_issuer_must_be_who_its_certificate_names(tmp_path, monkeypatch):
    context, authority = certificates(tmp_path, "localhost")
    async with issuing(SIZED + BODY, context) as (asked, port):
        with pytest.raises(NotToBeHad, match="CertVerification"):
            await key_set(trusted(port, "https"))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        with pytest.raises(NotToBeHad, match="CertVerification"):
            await key_set(trusted(port, "https", jwks_url=f"https://127.0.0.1:{port}/keys"))
        assert asked == []
        assert await key_set(trusted(port, "https")) == SET


async def test_an_issuer_elsewhere_leads_to_nothing_on_this_machine(tmp_path, monkeypatch):
    context, authority = certificates(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    async with issuing(SIZED + BODY) as (inside, own_port):

        async def document(writer):
            told = json.dumps({"issuer": f"https://localhost:{port}", "jwks_uri": f"http://127.0.0.1:{own_port}/admin"}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(told) + told)

        async with issuing(document, context) as (asked, port):
            with pytest.raises(NotToBeHad, match="https"):
                await key_set(trusted(port, "https", jwks_url=None))
    assert (len(asked), inside) == (1, [])
