"""How calls of the state store share pipelines, on a real Valkey."""

import asyncio
import datetime
import ssl
from contextlib import asynccontextmanager, suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import ResponseError

from services.common import testing
from services.common.valkey import Library, connect, look_again
from services.common.valkey_pipelines import LEAST_WAIT_S, MOST_WAIT_S
from services.common.valkey_replicas import Lasting
from services.orchestrator.testing.store_proxy import before_store


@asynccontextmanager
async def _libraries(url, tmp_path):
    """(proxy before the store, two libraries of one client)."""
    async with before_store(url) as proxy:
        client, found = connect(proxy.url, timeout_s=30.0), []
        try:
            for name in ("one", "two"):
                path = tmp_path / f"{name}.lua"
                path.write_text(f"#!lua name={name}\nredis.register_function('{name}_v1', function() return '{name}' end)\n")
                found.append(Library(client, path))
            one, two = found
            await asyncio.gather(one.batched("one_v1", ["k"], []), two.batched("two_v1", ["k"], []))
            yield proxy, one, two
        finally:
            await client.aclose()


async def test_what_is_called_while_the_store_is_at_work_goes_together_whatever_library_it_is_of(state_url, valkey, tmp_path):
    async with _libraries(state_url, tmp_path) as (proxy, one, two):
        reads = (await valkey.info("stats"))["total_reads_processed"]
        hold = proxy.hold(b"one_v1")
        calls = [one.submit("one_v1", ["k"], [])]
        await hold.reached()
        for _ in range(20):
            await asyncio.sleep(0)
            calls += [one.submit("one_v1", ["k"], []), two.submit("two_v1", ["k"], [])]
        hold.release()
        assert await asyncio.gather(*calls) == [b"one", *[b"one", b"two"] * 20]
        assert (await valkey.info("stats"))["total_reads_processed"] - reads <= 10


async def test_a_call_that_is_held_up_on_its_way_holds_up_no_others(state_url, tmp_path):
    async with _libraries(state_url, tmp_path) as (proxy, one, two):
        hold = proxy.hold(b"one_v1")
        first = one.submit("one_v1", ["k"], [])
        await hold.reached()
        async with asyncio.timeout(20):
            assert await two.batched("two_v1", ["k"], []) == b"two"
            assert await two.batched("two_v1", ["k"], []) == b"two"
        assert not first.done()
        hold.release()
        assert await first == b"one"


async def test_an_emptied_store_gets_every_library_of_a_pipeline_again(state_url, valkey, tmp_path):
    async with _libraries(state_url, tmp_path) as (_, one, two):
        await valkey.function_flush()
        calls = [library.submit(f"{name}_v1", ["k"], []) for library, name in ((one, "one"), (two, "two"), (one, "one"))]
        assert await asyncio.gather(*calls) == [b"one", b"two", b"one"]


@pytest.mark.parametrize("replicas", [0, 1])
async def test_a_function_that_is_missing_after_its_library_was_loaded_is_the_stores_error(pair, tmp_path, replicas):
    primary, _, _ = pair
    path = tmp_path / "half.lua"
    path.write_text(
        "#!lua name=half\nredis.register_function('there_v1', function() return 1 end)\n"
        "if false then redis.register_function('absent_v1', function() return 1 end) end\n"
    )
    lasting = Lasting(Library(primary, path), replicas)
    await primary.config_resetstat()
    there, absent = lasting.submit("there_v1", ["x"], []), lasting.submit("absent_v1", ["x"], [])
    async with asyncio.timeout(testing.PATIENCE_S):
        with pytest.raises(ResponseError, match="Function not found"):
            await absent
        assert await there == 1
    assert (await primary.info("commandstats"))["cmdstat_function|load"]["calls"] == 1


async def test_what_cannot_be_said_to_the_store_is_the_error_of_who_says_it_and_of_nobody_else(state_url, tmp_path):
    async with _libraries(state_url, tmp_path) as (_, one, two):
        good = two.submit("two_v1", ["k"], [])
        with pytest.raises(TypeError):
            await one.batched("one_v1", ["k"], [None])
        assert await good == b"two"


async def test_while_one_pipeline_is_held_up_the_others_do_not_wait_for_it_each_time(state_url, tmp_path):
    async with _libraries(state_url, tmp_path) as (proxy, one, two):
        hold = proxy.hold(b"one_v1")
        first = one.submit("one_v1", ["k"], [])
        await hold.reached()
        clock = asyncio.get_running_loop().time
        await two.batched("two_v1", ["k"], [])
        took = []
        for _ in range(20):
            began = clock()
            await two.batched("two_v1", ["k"], [])
            took.append(clock() - began)
        # Whoever waits for the one before waits so long each time.
        assert min(took) < 0.9 * LEAST_WAIT_S
        hold.release()
        await first


@asynccontextmanager
async def _library_of(tmp_path, answer):
    """A library in a server of which `answer(writer, number of calls)` speaks."""

    async def serve(reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                if calls := data.count(b"FCALL"):
                    answer(writer, calls)
                else:
                    writer.write(b"+OK\r\n" * data.count(b"*"))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    path = tmp_path / "one.lua"
    path.write_text("#!lua name=one\nredis.register_function('one_v1', function() return 7 end)\n")
    client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
    try:
        yield Library(client, path)
    finally:
        await client.aclose()
        server.close()


async def test_the_next_pipeline_waits_longer_where_all_of_them_take_long(tmp_path):
    pipelines = []

    def late(writer, calls):
        pipelines.append(calls)
        asyncio.get_running_loop().call_later(1.5 * MOST_WAIT_S, writer.write, b":7\r\n" * calls)

    async with _library_of(tmp_path, late) as library:
        for _ in range(20):
            await library.batched("one_v1", ["k"], [])
        pipelines.clear()
        loop = asyncio.get_running_loop()
        began, calls = loop.time(), []
        while loop.time() - began < 20 * MOST_WAIT_S:
            calls.append(library.submit("one_v1", ["k"], []))
            await asyncio.sleep(LEAST_WAIT_S)
        assert set(await asyncio.gather(*calls)) == {7}
        assert sum(pipelines) == len(calls)
        assert len(pipelines) <= (loop.time() - began) / MOST_WAIT_S + 1


async def test_calls_that_were_answered_before_the_connection_was_lost_have_their_answers(tmp_path):
    def half(writer, calls):
        writer.write(b":7\r\n" * min(calls, 2))
        writer.transport.close()

    async with _library_of(tmp_path, half) as library:
        answers = await asyncio.gather(*(library.submit("one_v1", ["k"], []) for _ in range(3)), return_exceptions=True)
        assert answers[:2] == [7, 7]
        assert isinstance(answers[2], ValkeyConnectionError)


async def test_who_looks_again_uses_no_connection_of_before_also_where_one_was_at_work(state_url, valkey, tmp_path):
    async with _libraries(state_url, tmp_path) as (proxy, one, two):
        hold = proxy.hold(b"one_v1")
        first = one.submit("one_v1", ["k"], [])
        await hold.reached()
        links = set(proxy._links)
        await look_again(one.client)
        hold.release()
        assert await first == b"one"
        assert await two.batched("two_v1", ["k"], []) == b"two"
        await asyncio.sleep(0.05)
        assert not links & proxy._links


@pytest.fixture
def certificate(tmp_path):
    """A file with a key and a certificate of its own for this host."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "tls.pem"
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path


async def test_a_store_is_reached_over_tls(state_url, certificate, tmp_path):
    port = int(state_url.rpartition(":")[2].partition("/")[0])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def carry(reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def behind(reader, writer):
        to_store = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, to_store[1]), carry(to_store[0], writer))

    server = await asyncio.start_server(behind, "localhost", 0, ssl=context)
    client = connect(f"rediss://localhost:{server.sockets[0].getsockname()[1]}/0?ssl_ca_certs={certificate}")
    path = tmp_path / "one.lua"
    path.write_text("#!lua name=one\nredis.register_function('one_v1', function() return 'one' end)\n")
    try:
        assert await client.ping()
        library = Library(client, path)
        assert await asyncio.gather(*(library.batched("one_v1", ["k"], [b"x" * 10_000]) for _ in range(50))) == [b"one"] * 50
    finally:
        await client.aclose()
        server.close()


@pytest.mark.parametrize("url", ["unix:///run/store", "http://store", "store:6379"])
def test_a_url_of_another_kind_is_refused(url):
    with pytest.raises(ValueError, match="begins with"):
        connect(url)
