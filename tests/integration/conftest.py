"""What the integration tests of the orchestrator share."""

import pytest_asyncio

from services.orchestrator.testing.fakes import fakes


@pytest_asyncio.fixture
async def behind(identities):
    """The services behind an orchestrator."""
    async with fakes(identities) as made:
        yield made
