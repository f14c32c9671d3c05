"""Examples of the pages in docs/, run as they stand by a user of a real gateway and orchestrator."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.common import testing
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import AGENTS, served, settings_for, write_config
from tests.integration.real_gateway import gateway_before


@asynccontextmanager
async def platform_of_a_reader(
    identities: testing.Identities,
    state_url: str,
    behind: Fakes,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    agents: str,
    **fields: Any,
) -> AsyncIterator[None]:
    """A platform with these agents too, where the environment has what the pages say that it has. `fields` are settings of the
    orchestrator."""
    settings = settings_for(identities, behind, state_url, write_config(folder / "config", AGENTS + agents), **fields)
    async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
        session = await people.session()
        async with session.get("/health") as response:
            monkeypatch.setenv("BULKHEAD_URL", str(response.url.origin()))
        monkeypatch.setenv("BULKHEAD_API_KEY", session.headers["authorization"].removeprefix("Bearer "))
        yield


async def run_all(page: Path, examples: Sequence[str]) -> dict[str, Any]:
    """Runs examples of a page one behind the other; answers their names."""
    names: dict[str, Any] = {}
    for example in examples:
        await asyncio.to_thread(exec, compile(example, str(page), "exec"), names)
    return names
