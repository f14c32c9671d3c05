"""Every test that asks for `site`, `backend`, `store` or `other` runs against each store there is."""

import pytest
import pytest_asyncio

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.testing.stores import Site, cluster_of_one, stepped_lua


@pytest.fixture(scope="session")
def _cluster_server():
    with cluster_of_one() as url:
        yield url


@pytest.fixture(scope="session")
def _stepped_lua():
    with stepped_lua() as folder:
        yield folder


@pytest.fixture(params=["memory", "valkey", "cluster"])
def site(request) -> Site:
    """Where a store can be opened."""
    if request.param == "memory":
        return Site("memory")
    server = "_state_server" if request.param == "valkey" else "_cluster_server"
    return Site(request.param, request.getfixturevalue(server), request.getfixturevalue("_stepped_lua"))


@pytest_asyncio.fixture
async def backend(site):
    """An empty store with a clock to step."""
    async with site.open() as opened:
        yield opened


@pytest.fixture
def store(backend):
    """The store as one process sees it."""
    return backend.process("one")


@pytest.fixture
def other(backend):
    """The same store as another process sees it."""
    return backend.process("two")


@pytest_asyncio.fixture(params=["valkey", "cluster"])
async def either(request):
    """A client of an empty Valkey, and of one in cluster mode, which refuses a step over two hash tags."""
    server = "_state_server" if request.param == "valkey" else "_cluster_server"
    client = connect(request.getfixturevalue(server), timeout_s=testing.PATIENCE_S)
    await client.flushdb()
    await client.function_flush()
    yield client
    await client.aclose()
