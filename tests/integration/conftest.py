"""What the integration tests of the orchestrator share, and those of the gateway."""

import aiohttp
import pytest
import pytest_asyncio

from services.gateway.fakes import gateway
from services.orchestrator import results_tending, segments_moving
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.threads import deleting, forking, rolling_back, tending


@pytest_asyncio.fixture
async def behind(identities):
    """The services behind an orchestrator."""
    async with fakes(identities) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch):
    """Orchestrators look at once for what was left half done of a thread, and soon again where it is not done yet."""
    for module in (tending, rolling_back, deleting, forking):
        monkeypatch.setattr(module, "AGAIN_S", 0.2)
    monkeypatch.setattr(tending, "TURN_S", 0.05)
    monkeypatch.setattr(segments_moving, "TURN_S", 0.05)
    monkeypatch.setattr(results_tending, "TURN_S", 0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server):
    """A gateway over fakes, one for all tests of a file."""
    async with gateway(identities, _state_server) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def ana(front):
    """An HTTP session at `front` of the user `ana`, who has every scope."""
    async with aiohttp.ClientSession(front.url, headers=front.headers()) as session:
        yield session
