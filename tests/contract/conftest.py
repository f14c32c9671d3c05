"""What the contract tests share: a gateway over fakes, and what asks it. A file whose gateway is another one makes its own."""

import aiohttp
import openai
import pytest
import pytest_asyncio

from services.gateway import fake_scripts, fakes


@pytest.fixture(scope="module")
def agents():
    """Scripts that the fakes have for a file beside their own, each an agent of its name."""
    return ()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(identities, _state_server, agents):
    """One gateway for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        for agent in agents:
            patch.setitem(fake_scripts.SCRIPTS, agent.__name__, agent)
        async with fakes.gateway(identities, _state_server) as gateway:
            yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def http(served):
    """An HTTP session of the user `ana`."""
    async with aiohttp.ClientSession(served.url, headers=served.headers()) as session:
        yield session


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(served):
    """The openai SDK of the user `ana`, which does not ask again by itself."""
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
        yield client
