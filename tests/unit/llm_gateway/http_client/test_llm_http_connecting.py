"""How the provider client comes to its connections: names, addresses, time limits, TLS."""

import asyncio
import ssl
import subprocess
import time

import pytest
from opentelemetry.context import Context

from services.llm_gateway.adapters import http_client
from services.llm_gateway.adapters.http_client import HttpClient
from services.llm_gateway.adapters.http_connection import ConnectTimeout, Unreachable
from services.llm_gateway.adapters.http_upstream import HttpUpstream
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.failures import FailureClass, UpstreamFault
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.registry import Deployment
from tests.unit.llm_gateway.http_client.conftest import PATIENCE_S


def test_nobody_listening_and_no_such_name_are_unreachable(run, raw):
    async def work():
        client = HttpClient()
        for url in ("http://127.0.0.1:1/", "http://name.invalid/"):
            with pytest.raises(Unreachable) as raised:
                await client.post(url, {}, b"", connect_s=5.0, until=time.monotonic() + 5)
            assert not raised.value.permanent
        await client.close()

    run(work())


def test_a_connection_that_is_not_made_in_time_has_an_error_of_its_own(run, raw, monkeypatch):
    async def never(self, address, origin):
        await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr(HttpClient, "_connect_to", never)

    async def work():
        client = HttpClient()
        with pytest.raises(ConnectTimeout):
            await client.post("http://127.0.0.1:1/", {}, b"", connect_s=0.05, until=time.monotonic() + 5)
        with pytest.raises(TimeoutError):
            await client.post("http://127.0.0.1:1/", {}, b"", connect_s=5.0, until=time.monotonic() + 0.05)
        await client.close()

    run(work())


def resolve_to(monkeypatch, *addresses):
    async def resolved(self, host, port):
        return list(addresses)

    monkeypatch.setattr(HttpClient, "_resolved", resolved)


def test_an_address_that_stays_silent_does_not_hold_up_the_next(run, raw, monkeypatch):
    monkeypatch.setattr(http_client, "STAGGER_S", 0.02)
    real = HttpClient._connect_to

    async def slow_first(self, address, origin):
        if address == "192.0.2.1":
            await asyncio.sleep(PATIENCE_S)
        return await real(self, address, origin)

    monkeypatch.setattr(HttpClient, "_connect_to", slow_first)
    resolve_to(monkeypatch, "192.0.2.1", "127.0.0.1")

    async def work():
        async with raw.served(raw.says(raw.WHOLE)) as (server, client):
            assert await raw.whole(client, server) == (200, b"hello")

    run(work())


def test_of_two_connections_made_at_once_one_is_ended(run, raw, monkeypatch):
    monkeypatch.setattr(http_client, "STAGGER_S", 0.0)
    real, made, both = HttpClient._connect_to, [], asyncio.Event()

    async def together(self, address, origin):
        connection = await real(self, address, origin)
        made.append(connection)
        if len(made) == 2:
            both.set()
        await both.wait()
        return connection

    monkeypatch.setattr(HttpClient, "_connect_to", together)
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.1")

    async def work():
        async with raw.served(raw.says(raw.WHOLE)) as (server, client):
            assert await raw.whole(client, server) == (200, b"hello")
            assert sorted(connection.usable for connection in made) == [False, True]

    run(work())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_tls_is_verified_and_works_with_a_certificate_that_is_trusted(run, raw, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def work():
        async with raw.served(raw.says(raw.WHOLE), ssl=context) as (server, client):
            with pytest.raises(Unreachable) as raised:
                await raw.whole(client, server)
            assert raised.value.permanent
            trusting = HttpClient(tls=ssl.create_default_context(cafile=str(certificate[0])))
            for _ in range(2):
                assert await raw.whole(trusting, server) == (200, b"hello")
            assert server.connections <= 2
            await trusting.close()

    run(work())


def test_a_closed_client_leaves_nothing_open(run, raw):
    async def work():
        async with raw.served(raw.says(raw.WHOLE)) as (server, client):
            await raw.whole(client, server)
            await client.close()
            async with asyncio.timeout(PATIENCE_S):
                while not server.ended:
                    await asyncio.sleep(0.005)

    run(work())


def test_a_refusal_that_does_not_end_is_read_no_longer_than_the_call_may_take(run, raw):
    async def work():
        stalled = b"HTTP/1.1 500 Oh\r\ncontent-length: 50\r\n\r\n{"
        async with raw.served(raw.says(stalled)) as (server, client):
            deployment = Deployment("d", "g", "hosted_vllm", "openai", "m", "chat", api_base=server.url.partition("/chat")[0])
            now = time.monotonic()
            limits = Limits(5.0, 5.0, 5.0, PATIENCE_S, now + 0.3)
            with pytest.raises(UpstreamFault):
                await HttpUpstream(client, OpenAiDialect()).complete(Attempt(deployment, {"messages": []}, limits, 1, Context()))
            assert time.monotonic() - now < PATIENCE_S / 2

    run(work())


def test_white_space_that_a_provider_sends_while_it_works_is_silence(run, raw):
    async def work():
        async def script(number, request, writer):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            while True:
                writer.write(b"\n")
                await writer.drain()
                await asyncio.sleep(0.02)

        async with raw.served(script) as (server, client):
            deployment = Deployment("d", "g", "hosted_vllm", "openai", "m", "chat", api_base=server.url.partition("/chat")[0])
            now = time.monotonic()
            limits = Limits(5.0, 5.0, 0.3, PATIENCE_S, now + PATIENCE_S)
            with pytest.raises(UpstreamFault) as silent:
                await HttpUpstream(client, OpenAiDialect()).complete(Attempt(deployment, {"messages": []}, limits, 1, Context()))
            assert silent.value.failure.failure_class is FailureClass.TIMEOUT_FIRST_TOKEN
            assert time.monotonic() - now < PATIENCE_S / 2

    run(work())
