"""A gateway before an orchestrator that is really one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect
from services.gateway.app import build
from services.gateway.settings import Settings


class People:
    """HTTP sessions of users of the tenant `acme`, closed with the gateway."""

    def __init__(self, url: str, accounts: Accounts) -> None:
        self._url, self._accounts = url, accounts
        self.sessions: list[aiohttp.ClientSession] = []

    async def session(self, user: str = "ana", scopes: tuple[str, ...] = ("*",), tenant: str = "acme") -> aiohttp.ClientSession:
        """A session with a new key of a user; by default the one of `testing.principal_of`."""
        key = (await self._accounts.create_key(tenant=tenant, user=user, tier="enterprise", scopes=scopes)).secret
        self.sessions.append(aiohttp.ClientSession(self._url, headers={"authorization": f"Bearer {key}"}))
        return self.sessions[-1]


@asynccontextmanager
async def gateway_before(identities: testing.Identities, state_url: str, grpc_port: int) -> AsyncIterator[People]:
    """A gateway before the orchestrator at `grpc_port`. Nothing else stands behind it."""
    nowhere = "127.0.0.1:1"
    settings = Settings(
        env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, orchestrator_address=f"127.0.0.1:{grpc_port}",
        memory_address=nowhere, tool_executor_address=nowhere, drain_grace_s=3, **identities.settings("gateway"),
    )  # fmt: skip
    state = connect(state_url)
    async with testing.running(settings, build):
        people = People(f"http://127.0.0.1:{settings.http_port}", Accounts(state))
        try:
            yield people
        finally:
            for session in people.sessions:
                await session.close()
            await state.aclose()


async def answered(response: Any, status: int) -> Any:
    """The JSON of an answer that has this status."""
    async with response as answer:
        assert answer.status == status, f"{answer.status} {await answer.text()}"
        return await answer.json(content_type=None)
