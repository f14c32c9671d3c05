"""The fault matrix below HTTP: names that do not resolve, ports where nobody listens, certificates that nobody trusts, bytes that are
no HTTP. The caller gets the other model's answer or an honest error, and nothing is booked for a provider that was never reached.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from bulkhead.llm.v1 import llm_pb2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.common import testing
from services.common.errors import UpstreamFailed
from tests.integration.llm_gateway.conftest import served, simulated
from tests.integration.llm_gateway.matrix import MODES, SHIPS, Bench, truth_of
from tests.integration.llm_gateway.proof import Books, Client, deployment

pytestmark = pytest.mark.asyncio(loop_scope="module")


def self_signed(folder) -> ssl.SSLContext:
    """A server's context whose certificate nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1)
    )
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A server that does what `answer` says with each connection; answers its URL."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def saying(raw: bytes):
    """Says these bytes to each request and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(raw)
        await writer.drain()
        writer.close()

    return answer


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closes before anything is said."""
    writer.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes a connection and never says a word, so that a TLS handshake does not end."""
    await reader.read()
    writer.close()


# name of the model -> failure class, whether asking again may help, how the model is reached
NETWORK = {
    "dns": "transient",
    "refused": "transient",
    "self-signed": "unknown",
    "no-tls": "transient",
    "tls-silent": "timeout_connect",
    "closes": "transient",
    "not-http": "",
    "endless-headers": "",
    "unknown-encoding": "",
}
REPEATED = {"dns", "refused", "no-tls", "closes"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_bench(identities, _state_server, tmp_path_factory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("network")
    head = b"HTTP/1.1 200 OK\r\n"
    async with (
        simulated() as sim,
        listening(saying(b""), self_signed(folder)) as untrusted,
        listening(silent) as hanging,
        listening(closing) as closes,
        listening(saying(b"220 smtp.example.com ESMTP\r\n")) as mail,
        listening(saying(head + b"x-filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 40_000)) as filler,
        listening(saying(head + b"content-encoding: zstd\r\ncontent-length: 3\r\n\r\nabc")) as encoded,
    ):
        bases = {
            "dns": "http://no-such-host.invalid",
            "refused": f"http://127.0.0.1:{testing.free_port()}",
            "self-signed": untrusted,
            "no-tls": mail.replace("http:", "https:"),
            "tls-silent": hanging.replace("http:", "https:"),
            "closes": closes,
            "not-http": mail,
            "endless-headers": filler,
            "unknown-encoding": encoded,
        }
        listed = [deployment(name, "sim-1", f"{base}/v1") for name, base in bases.items()]
        content = {
            "model_list": [*listed, deployment("backup", "sim-2", f"{sim.url}/v1")],
            "router_settings": {"allowed_fails": 1000, "fallbacks": [{name: ["backup"]} for name in bases], "max_fallbacks": 1},
            "general_settings": {"always_include_stream_usage": True},
        }
        async with served(
            content, identities, _state_server, folder, sim, model_total_timeout_s=8.0, model_connect_timeout_s=1.0,
        ) as stack:  # fmt: skip
            truth = {"ships": await truth_of(sim, stack.http, SHIPS)}
            books = Books(_state_server, sim)
            made = Bench(Client(stack.http, stack.url, stack.key), books, sim, truth)
            made.stack = stack
            yield made
            await books.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", NETWORK)
async def test_a_provider_that_cannot_be_reached_is_replaced(bench, model, mode):
    seen = await bench.client.chat({"model": model, **SHIPS}, stream=mode == "stream")
    assert seen.message() == bench.truth["ships"]
    await bench.books.settled()
    (served_line,) = await bench.sim.log()
    booked = await bench.books.lines()
    # Nobody was reached, so nothing is paid; what answered nonsense may have been at work.
    assert [line["model"] for line in booked if not line["estimated"]] == ["backup"]
    assert booked[-1]["cost_nanousd"] == served_line["billed_nanousd"]
    if NETWORK[model]:
        assert len(booked) == 1
        assert seen.warnings == ["model_retry"] * (3 if model in REPEATED else 0) + ["model_fallback"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", NETWORK)
async def test_the_first_error_is_told_when_the_other_model_fails_too(bench, model, mode):
    await bench.sim.order("status=401")
    seen = await bench.client.chat({"model": model, **SHIPS}, stream=mode == "stream")
    assert (seen.status, seen.error["type"]) == (502, "server_error")
    assert NETWORK[model] in ("", seen.error["failure_class"])
    # Neither hosts nor keys are the caller's business.
    assert not any(word in seen.error["message"] for word in ("127.0.0.1", "invalid", "sk-sim", "certificate"))
    assert len(await bench.sim.log()) == 1
    await bench.books.settled()


@pytest.mark.parametrize("model", ["dns", "refused", "self-signed"])
async def test_over_grpc_it_is_the_same(bench, model):
    asked = llm_pb2.CompletionInput(model=model, messages=[llm_pb2.Message(role="user", text=SHIPS["messages"][0]["content"])])
    with testing.calling(bench.stack.identities):
        answer = await bench.stack.llm.Complete(llm_pb2.CompleteRequest(input=asked))
    assert (answer.message.text, answer.outcome.model) == (bench.truth["ships"][0], "backup")
    await bench.sim.order("status=401")
    with testing.calling(bench.stack.identities), pytest.raises(UpstreamFailed) as raised:
        async for _ in bench.stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=asked)):
            pass
    assert raised.value.metadata["failure_class"] == NETWORK[model]
    await bench.books.settled()
