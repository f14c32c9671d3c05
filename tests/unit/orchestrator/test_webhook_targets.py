"""Where webhooks may go, and how they get there: addresses, names that lead elsewhere later, answers of any kind."""

import asyncio
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.orchestrator.adapters.webhook_http import HttpSender
from services.orchestrator.testing.receivers import receiver
from services.orchestrator.webhooks.delivering import Delivering
from services.orchestrator.webhooks.ports import SendFailed
from services.orchestrator.webhooks.records import DeliveryRef, Endpoint, Taken
from services.orchestrator.webhooks.rotation import Secret
from services.orchestrator.webhooks.signing import new_secret
from services.orchestrator.webhooks.targets import allowed, checked, parsed

METADATA = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "::ffff:169.254.169.254"]
INSIDE = [
    "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "0.0.0.0", "169.254.0.1",
    "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:192.168.1.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "2001:0:53aa:64c::1", "::127.0.0.1", "fec0::1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", [*INSIDE, *METADATA])
def test_the_inside_is_not_sent_to(address):
    assert not allowed(address, allow_private=False)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_the_outside_is_sent_to(address):
    assert allowed(address, allow_private=False)


def test_development_may_send_to_private_addresses_and_never_to_metadata_services():
    assert all(allowed(address, allow_private=True) for address in ("127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "fd12::1"))
    for address in (*METADATA, "169.254.0.1", "fe80::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "255.255.255.255"):
        assert not allowed(address, allow_private=True), address


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "//example.com", "https://", "https:///path", "http://example.com", "ftp://example.com", "file:///etc/passwd",
        "gopher://example.com", "https://user@example.com", "https://user:pw@example.com", "https://@example.com", "https://example.com#f",
        "https://example.com:0", "https://example.com:99999", "https://example.com:x", "https://exa mple.com",
        "https://example.com/\r\nx: y",
        "https://example.com/\n", "https://example.com/\x00", "https://example.com\\@inside", "https://ex%61mple.com", "https://[::1",
        "https://exämple.com", "https://example.com/ü", "https://example.com/" + "x" * 2048, " https://example.com", "https://[fe80::1%25eth0]",
    ],
)  # fmt: skip
def test_a_url_that_is_none_of_a_webhook(url):
    with pytest.raises(ValueError) as caught:
        parsed(url, allow_private=False)
    assert "inside" not in str(caught.value)


def test_what_a_url_says():
    assert parsed("https://Example.com/a?b=c", False)[1:] == (True, "example.com", 443)
    assert parsed("https://[2606:4700::1111]:8443", False)[1:] == (True, "2606:4700::1111", 8443)
    assert parsed("http://localhost:80", True)[1:] == (False, "localhost", 80)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0", "10.0.0.1"]
)
async def test_every_way_to_write_an_address_of_the_inside_is_refused(host):
    with pytest.raises(SendFailed) as caught:
        await checked(HttpSender(), parsed(f"https://{host}:9/", allow_private=False), allow_private=False)
    assert caught.value.error in ("address_refused", "unknown_host")


class Resolver(HttpSender):
    """Real requests, names that lead where the test says."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    async def addresses(self, host, port):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def test_one_private_address_among_public_ones_is_enough_to_refuse():
    with pytest.raises(SendFailed, match="address_refused"):
        await checked(Resolver(["8.8.8.8", "127.0.0.1"]), parsed("https://example.com", False), False)


def taken(url):
    endpoint = Endpoint("whk_1", url, ["run.finished"], "", 0, [Secret(new_secret())])
    return Taken("taken", 0.0, endpoint, b"{}", 1, 1, 0.0, 1)


async def test_a_name_that_leads_inside_later_is_refused_at_the_try_and_reaches_nobody():
    async with receiver() as got:
        sending = Delivering(None, Resolver(["127.0.0.1"]), (), allow_private=False)
        attempt = await sending._sent(DeliveryRef("t", "msg_1", "whk_1"), taken(f"https://rebinding.example:{got.port}/"))
    assert (attempt.code, attempt.error, got.connections) == (0, "address_refused", 0)


async def test_the_address_that_was_checked_is_the_one_connected_to():
    """The name is looked up once: it leads to the receiver then, and would lead to nobody a second time."""
    async with receiver() as got:
        sending = Delivering(None, Resolver(["127.0.0.1"], ["127.0.0.2"]), (), allow_private=True)
        attempt = await sending._sent(DeliveryRef("t", "msg_1", "whk_1"), taken(f"http://rebinding.example:{got.port}/"))
    assert (attempt.code, attempt.error) == (204, "")
    assert got.got[0].headers["host"] == f"rebinding.example:{got.port}"


async def answered(raw, *, hold=False, timeout_s=5.0):
    """The status that a raw answer is taken for."""

    async def serve(reader, writer):
        await reader.read(65536)
        writer.write(raw)
        if hold:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await HttpSender().post(f"http://x:{port}/", ["127.0.0.1"], {"webhook-id": "m"}, b"{}", timeout_s)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.0 204\r\n\r\n", 204),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
            202,
        ),
        (b"HTTP/1.1 500 No\r\ncontent-length: 5\r\n\r\nab", 500),
        (b"HTTP/1.1 301 Moved\r\nlocation: http://127.0.0.1/\r\n\r\n", 301),
        (b"HTTP/1.1 200 OK\r\ncontent-length: nonsense\r\n\r\n" + b"x" * 100_000, 200),
    ],
)
async def test_an_answer_is_its_status(raw, status):
    assert await answered(raw) == status


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "unreachable"),
        (b"HTTP/1.1 200", "unreachable"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "protocol"),
        (b"HTTP/1.1 999 x\r\n\r\n", "protocol"),
        (b"HTTP/1.1 2\xb2\xb2 x\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, "protocol"),
    ],
)
async def test_what_is_no_answer(raw, error):
    with pytest.raises(SendFailed) as caught:
        await answered(raw)
    assert caught.value.error == error


async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_its_time():
    began = time.monotonic()
    with pytest.raises(SendFailed, match="timeout"):
        await answered(b"HTTP/1.1 200 OK\r\n", hold=True, timeout_s=0.2)
    assert await answered(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", hold=True, timeout_s=0.2) == 200
    assert time.monotonic() - began < 5


async def test_nobody_there():
    async with receiver() as got:
        pass
    with pytest.raises(SendFailed, match="unreachable"):
        await HttpSender().post(f"http://x:{got.port}/", ["127.0.0.1"], {}, b"", 5.0)
    with pytest.raises(SendFailed, match="unknown_host"):
        await HttpSender().addresses("nowhere.invalid", 443)


async def test_names_that_hang_leave_the_threads_of_the_loop_to_others(monkeypatch):
    hanging = threading.Event()

    def look_up(*args, **options):
        hanging.wait(30)
        return [(0, 0, 0, "", ("8.8.8.8", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    sender = HttpSender()
    waiting = [asyncio.create_task(sender.addresses("slow.example", 443)) for _ in range(40)]
    try:
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: "read") == "read"
        assert not any(task.done() for task in waiting)
    finally:
        hanging.set()
    assert await asyncio.gather(*waiting) == [["8.8.8.8"]] * 40


async def test_over_tls_the_certificate_must_be_the_hosts_and_of_a_known_authority(tmp_path, monkeypatch):
    context, authority = certificates(tmp_path, "receiver.example")
    ignorant = HttpSender()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    sender = HttpSender()
    async with receiver(ssl=context) as got:
        assert await sender.post(f"https://receiver.example:{got.port}/", ["127.0.0.1"], {}, b"{}", 5.0) == 204
        for who, host in ((sender, "other.example"), (ignorant, "receiver.example")):
            with pytest.raises(SendFailed, match="tls"):
                await who.post(f"https://{host}:{got.port}/", ["127.0.0.1"], {}, b"{}", 5.0)
        assert len(got.got) == 1


def certificates(folder, host):
    """A server's TLS context for `host`, and the file of the authority that vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    authority, pem = folder / "authority.pem", folder / "server.pem"
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(private + authority.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context, authority
