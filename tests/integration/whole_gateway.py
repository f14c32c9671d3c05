"""A gateway before a real orchestrator and a real memory service, and all of its native routes, as its own document lists them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from bulkhead.llm.v1.llm_pb2 import GetBudgetResponse

from services.common import testing
from services.common.accounts import Accounts
from services.common.rpc.server import Service
from services.common.settings import ServiceSettings
from services.common.valkey import connect
from services.gateway.app import build
from services.gateway.fake_admin import FakeRecords, budget_adders
from services.gateway.settings import Settings
from services.memory import fakes as memory_fakes
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import AGENTS, Client, served, settings_for, write_config
from tests.integration.real_gateway import People
from tests.integration.test_orchestrator_plans import PLANNER

MUTATING = ("post", "put", "patch", "delete")


@dataclass
class Whole:
    """The gateway, its callers, and whoever stands behind it."""

    url: str
    people: People
    client: Client
    behind: Fakes
    settings: Settings


@asynccontextmanager
async def whole_gateway(
    identities: testing.Identities, behind: Fakes, state_url: str, milvus_uri: str, folder: Path
) -> AsyncIterator[Whole]:
    """Everything real but models and tools, which are those of `behind`."""
    config = write_config(folder / "config", AGENTS + PLANNER)
    below = settings_for(identities, behind, state_url, config, webhook_allow_private=True, segments_dir=folder / "segments")
    records = FakeRecords()
    records.budget = GetBudgetResponse()
    money = ServiceSettings(grpc_port=testing.free_port(), drain_grace_s=0.2)
    budgets = testing.running(money, lambda _: Service("llm_gateway", budget_adders(records), verifier=identities.verifier))
    async with budgets, memory_fakes.fake_llm(identities) as (_, embedder), served(below, identities) as client:
        async with memory_fakes.memory_service(identities, state_url, milvus_uri, embedder) as memory:
            settings = Settings(
                env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, memory_address=memory.address,
                orchestrator_address=f"127.0.0.1:{below.grpc_port}", tool_executor_address=behind.addresses["tool_executor"],
                llm_gateway_address=f"127.0.0.1:{money.grpc_port}", drain_grace_s=3, config_dir=config, **identities.settings("gateway"),
            )  # fmt: skip
            state = connect(state_url)
            async with testing.running(settings, build):
                url = f"http://127.0.0.1:{settings.http_port}"
                people = People(url, Accounts(state))
                try:
                    yield Whole(url, people, client, behind, settings)
                finally:
                    behind.models.gate.open()
                    behind.tools.gate.open()
                    for session in people.sessions:
                        await session.close()
                    await state.aclose()


async def native_routes(url: str) -> dict[str, dict[str, Any]]:
    """`POST /v1/threads` and so on, each with its operation in the document; native are those that answer problems."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/openapi.json") as response:
        document = await response.json()
    return {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation["responses"].get("401") == {"$ref": "#/components/responses/Problem401"}
    }
