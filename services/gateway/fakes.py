"""The services behind the gateway, small and in memory, for its tests: real gRPC servers over the real protos.

`FakeLog` is the durable side and may be shared by several `FakeOrchestrator` servers, as replicas share a store. What an
agent does is a script of fake_scripts.py.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import blobs_pb2_grpc, hooks_pb2_grpc

from services.common import testing
from services.common.accounts import Accounts
from services.common.rpc.context import CallContext
from services.common.rpc.server import Service
from services.common.settings import ServiceSettings
from services.common.valkey import connect
from services.gateway import fake_stores
from services.gateway.app import build
from services.gateway.fake_admin import budget_adders
from services.gateway.fake_blobs import FakeBlobs
from services.gateway.fake_hooks import FakeHooks
from services.gateway.fake_log import FakeLog
from services.gateway.fake_orchestrator import FakeOrchestrator, orchestrator_adders
from services.gateway.settings import Settings


@dataclass
class Gateway:
    """A gateway that serves on loopback, and what stands behind it."""

    url: str
    key: str
    accounts: Accounts
    log: FakeLog
    blobs: FakeBlobs
    hooks: FakeHooks
    replicas: list[FakeOrchestrator]
    stops: list[asyncio.Event]
    settings: Settings

    def headers(self, **more: str) -> dict[str, str]:
        """Headers of a caller with every scope; underscores in names become dashes."""
        return {"authorization": f"Bearer {self.key}", **{name.replace("_", "-"): value for name, value in more.items()}}

    async def issue(self, tenant: str = "acme", *, user: str = "ana", tier: str = "enterprise", scopes: tuple[str, ...] = ("*",)) -> str:
        """A new API key."""
        return (await self.accounts.create_key(tenant=tenant, user=user, tier=tier, scopes=scopes)).secret

    def calls(self, method: str) -> list[CallContext]:
        """Contexts of the calls of one method that the orchestrator saw."""
        return [context for name, context in self.log.seen if name == method]


@asynccontextmanager
async def gateway(
    identities: testing.Identities,
    state_url: str,
    *,
    replicas: int = 1,
    cut_after: int = 0,
    config_dir: Path | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """A gateway over fakes, each a real gRPC server on a port of its own."""
    log, blobs = FakeLog(), FakeBlobs()
    hooks = FakeHooks(log.records)
    orchestrators = [FakeOrchestrator(log, cut_after=cut_after) for _ in range(replicas)]
    stops: list[asyncio.Event] = []
    async with AsyncExitStack() as stack:
        addresses = []
        for orchestrator in orchestrators:
            adders = [
                *orchestrator_adders(orchestrator), partial(blobs_pb2_grpc.add_BlobServiceServicer_to_server, blobs),
                partial(hooks_pb2_grpc.add_HookServiceServicer_to_server, hooks),
            ]  # fmt: skip
            address, stop = await _serve(stack, "orchestrator", adders, identities)
            addresses.append(address)
            stops.append(stop)
        models, _ = await _serve(stack, "llm_gateway", budget_adders(log.records), identities)
        memory, _ = await _serve(stack, "memory", fake_stores.memory_adders(), identities)
        executor, _ = await _serve(stack, "tool_executor", fake_stores.tool_adders(), identities)
        address_file = identities.folder / f"addresses-{next(_numbers)}.json"
        behind = {"orchestrator": addresses, "llm_gateway": [models], "memory": [memory], "tool_executor": [executor]}
        address_file.write_bytes(orjson.dumps(behind))
        made = Settings(
            env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, address_file=address_file,
            **{"drain_grace_s": 3, **settings}, **({"config_dir": config_dir} if config_dir else {}), **identities.settings("gateway"),
        )  # fmt: skip
        stops.append(await stack.enter_async_context(testing.running(made, build)))
        state = connect(state_url)
        stack.push_async_callback(state.aclose)
        accounts = Accounts(state)
        served = Gateway(f"http://127.0.0.1:{made.http_port}", "", accounts, log, blobs, hooks, orchestrators, stops, made)
        served.key = await served.issue()
        stack.callback(lambda: [run.cancelled.set() for run in log.runs.values()])
        yield served


async def frames_of(response: Any, until: Callable[[list], bool] | None = None) -> list[tuple[int, str, dict[str, Any]]]:
    """Server-sent events of an aiohttp response as (id, event, data), to its end or until enough came."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    rest = b""
    async for chunk in response.content.iter_any():
        rest += chunk
        while b"\n\n" in rest:
            block, rest = rest.split(b"\n\n", 1)
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "data" in fields:
                found.append((int(fields.get("id", 0)), fields["event"], orjson.loads(fields["data"])))
                if until is not None and until(found):
                    return found
    return found


async def _serve(stack: AsyncExitStack, name: str, adders: list, identities: testing.Identities) -> tuple[str, asyncio.Event]:
    port = testing.free_port()

    def build(_: Any) -> Service:
        return Service(name, adders, verifier=identities.verifier)

    stop = await stack.enter_async_context(testing.running(ServiceSettings(grpc_port=port, drain_grace_s=0.2), build))
    return f"127.0.0.1:{port}", stop


_numbers = itertools.count()
