"""Fixtures over services.common.testing: one Valkey and one Milvus Lite a test session, emptied between tests."""

from pathlib import Path

import pytest
import pytest_asyncio

from services.common import testing
from services.common.valkey import connect


@pytest.fixture(scope="session")
def _state_server():
    with testing.valkey_server("state") as (url, _):
        yield url


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


@pytest.fixture(scope="session")
def identities(tmp_path_factory) -> testing.Identities:
    """Keys of every issuer."""
    return testing.Identities(Path(tmp_path_factory.mktemp("keys")))
