"""Fixtures of the system tier."""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from services.common import testing
from services.gateway.fakes import Gateway, gateway
from services.orchestrator.testing.counting import CountingTools
from services.orchestrator.testing.fakes import Fakes, fakes
from tests.e2e.harness import Platform, Receiver, start_platform
from tests.system.browser import Browser


@pytest.fixture(scope="module")
def start_own(tmp_path_factory) -> Iterator[Callable[..., Platform]]:
    """Starts a platform of the module's own with further options of `up`; all are ended after the module."""
    started: list[Platform] = []

    def start(*arguments: str) -> Platform:
        data_dir = tmp_path_factory.mktemp("own") / "data"
        # Nobody collects the spans here.
        quiet = {"BULKHEAD_OTLP_ENDPOINT": ""}
        started.append(start_platform(data_dir, testing.free_port_base(), Receiver(), 0, *arguments, env=quiet))
        return started[-1]

    yield start
    for platform in started:
        platform.process.stop()


@pytest.fixture
async def behind(identities) -> AsyncIterator[Fakes]:
    """What stands behind the orchestrators, with tools that count what they do."""
    async with fakes(identities, made=Fakes(tools=CountingTools())) as made:
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A Chromium for the module."""
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.process.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server) -> AsyncIterator[Gateway]:
    """A gateway over fakes, for the module."""
    async with gateway(identities, _state_server) as made:
        yield made
