"""Fixtures over services.common.testing: one Valkey and one Milvus Lite a test session, emptied between tests, and between files."""

import signal
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
import redis

from services.common import testing
from services.common.valkey import connect


def pytest_configure():
    """Ctrl-C is heard again where a shell without a terminal has started the tests in the background: it has it ignored, and all that
    the tests start, among it what they end with Ctrl-C, would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _state_process():
    with testing.valkey_server("state") as (url, _):
        with redis.Redis.from_url(url) as client:
            # Whoever searches a dump for words that must not be there finds none of those that were packed.
            client.config_set("rdbcompression", "no")
        yield url


@pytest.fixture(scope="module")
def _state_server(_state_process):
    # A schedule that another file's test has left would go on making runs here.
    with redis.Redis.from_url(_state_process, socket_timeout=testing.PATIENCE_S) as client:
        client.flushall()
        client.function_flush()
    return _state_process


@pytest.fixture(scope="session")
def milvus_uri():
    """URI of a Milvus Lite server; tests use tenants or collections of their own."""
    with testing.milvus_server() as (uri, _):
        yield uri


@pytest_asyncio.fixture
async def state_url(_state_server):
    """URL of an empty Valkey of the kind `state`."""
    # A loaded machine may take its time to empty a store; this is a bound against hanging and no expectation.
    client = connect(_state_server, timeout_s=testing.PATIENCE_S)
    await client.flushall()
    await client.function_flush()
    await client.aclose()
    return _state_server


@pytest_asyncio.fixture
async def valkey(state_url):
    """A client of the empty Valkey."""
    client = connect(state_url)
    yield client
    await client.aclose()


@pytest.fixture(scope="module")
def _two_servers():
    with testing.valkey_server() as first, testing.valkey_server() as second:
        yield first, second


@pytest_asyncio.fixture
async def pair(_two_servers):
    """An empty Valkey with a replica: the primary's client, the replica's, and the replica's process."""
    (url, _), (other_url, process) = _two_servers
    primary, replica = (connect(each, timeout_s=testing.PATIENCE_S) for each in (url, other_url))
    async with aclosing(primary), aclosing(replica):
        for each in (primary, replica):
            await each.execute_command("REPLICAOF", "NO", "ONE")
        await primary.flushall()
        await primary.config_set("repl-diskless-sync-delay", 0)
        await replica.execute_command("REPLICAOF", "127.0.0.1", primary.connection_pool.connection_kwargs["port"])

        async def same():
            async with primary.pipeline(transaction=False) as pipeline:
                pipeline.set("probe", "")
                pipeline.execute_command("WAIT", 1, 100)
                pipeline.execute_command("WAITAOF", 1, 1, 500)
                return (await pipeline.execute())[2] == [1, 1]

        await testing.eventually_async(same, "the replica has everything")
        yield primary, replica, process


@pytest.fixture(scope="session")
def identities(tmp_path_factory) -> testing.Identities:
    """Keys of every issuer."""
    return testing.Identities(Path(tmp_path_factory.mktemp("keys")))
