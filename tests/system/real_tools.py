"""A real tool executor as a process that faults strike, and the server outside that its tools ask, which counts and is never killed."""

import asyncio
import hashlib
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.testing.counting import RunGates, calls
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.oracle import Effect
from services.orchestrator.testing.replicas import Replica
from services.orchestrator.testing.store_proxy import Hold, StoreProxy, before_store
from tests.integration.tool_executor.harness import http_tool, write_config
from tests.system.kill_site import Site, two_replicas

# Read-only, idempotent, and not to be made twice.
READ, SET, ORDER = "read_price", "set_price", "place_order"
AGENTS = """
agents:
  quick:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [read_price, set_price, place_order, python], approval: {unknown_outcome: tell}}
  asking:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [read_price, set_price, place_order, python]}
"""
KEY_HEADER = "Idempotency-Key"
NONCE = {"type": "object", "properties": {"nonce": {"type": "string"}}, "required": ["nonce"], "additionalProperties": False}
# Longer than any row waits, however slow the machine is: no tool ends but for the reason that its row is about.
TIMEOUT_S = 100


class Outside:
    """What the tools ask. Each request has its effect when it arrives; `gate` holds the answers of a run back while it is closed. `cut`
    has, by key, when (of `time.monotonic`) senders gave a request up."""

    def __init__(self) -> None:
        self.gate = RunGates()
        self.effects: dict[str, list[Effect]] = defaultdict(list)
        self.cut: dict[str, list[float]] = defaultdict(list)
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        """Counts, waits at the gate, answers."""
        key, tool = request.headers[KEY_HEADER], request.path[1:]
        asked: Any = request.query or await request.json()
        run_id = key.split("/")[0]
        self.effects[run_id].append(Effect(run_id, tool, asked["nonce"], key, int(time.time() * 1000), tool != ORDER))
        try:
            await self.gate.of(run_id).passed()
        except asyncio.CancelledError:
            self.cut[key].append(time.monotonic())
            raise
        return web.json_response({"did": asked["nonce"]})

    @asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        """Listens."""
        app = web.Application()
        app.router.add_route("*", "/{tool}", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()


class Executor:
    """The process, its proxy before the store, and the one address by which callers reach each of its lives."""

    process: testing.Process
    _next: tuple[testing.Process, int]

    def __init__(self, identities: testing.Identities, proxy: StoreProxy, folder: Path) -> None:
        self.proxy, self._folder = proxy, folder
        self._port = self._refused = 0
        self._lives: list[testing.Process] = []
        self._env = {
            "BULKHEAD_ENV": "test", "BULKHEAD_METRICS_PORT": "0", "BULKHEAD_DRAIN_GRACE_S": "30",
            "BULKHEAD_STATE_URL": proxy.url, "BULKHEAD_CONFIG_DIR": str(folder / "tools"),
            "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
        }  # fmt: skip

    @asynccontextmanager
    async def there(self, address: str) -> AsyncIterator[None]:
        """Lives, and is reached at `address`."""
        server = await asyncio.start_server(self._carry, *address.split(":"))
        try:
            self.process, self._port = await self._begin()
            yield
        finally:
            server.close()
            for life in self._lives:
                life.kill()

    async def stand_by(self) -> None:
        """Starts the next life. How long that takes, nobody is tested for."""
        self._next = await self._begin()

    async def replaced(self, *others: Replica) -> None:
        """Is killed, with others, and lives again, which stands by, when callers have looked for it in vain."""
        self._port = self._refused = 0
        self.process.kill()
        for other in others:
            other.strike("kill")
        await testing.eventually_async(lambda: self._refused > 1, "callers find nobody")
        self.process, self._port = self._next

    async def rolled(self) -> testing.Process:
        """Is told to go when another life is there. Answers the life that goes."""
        await self.stand_by()
        former, (self.process, self._port) = self.process, self._next
        former.signal(signal.SIGTERM)
        return former

    async def _begin(self) -> tuple[testing.Process, int]:
        port = testing.free_port()
        env = {**self._env, "BULKHEAD_GRPC_PORT": str(port)}
        log = self._folder / f"tool_executor-{port}.log"
        self._lives.append(testing.Process(testing.python("-m", "services.tool_executor"), env=env, log=log))
        await testing.wait_ready(f"127.0.0.1:{port}")
        return self._lives[-1], port

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a caller, to its end on either side."""
        try:
            if not self._port:
                raise ConnectionRefusedError
            from_life, to_life = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            self._refused += 1
            writer.transport.abort()
            return
        pumps = [asyncio.create_task(_pumped(*way)) for way in ((reader, to_life), (from_life, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, to_life):
                end.transport.abort()
            for pump in pumps:
                pump.cancel()

    def hold(self, function: bytes, key: str, *, answer: bool = False, once: bool = True) -> Hold:
        """As StoreProxy.hold, of the ledger's functions for one call; what is not released never arrives."""
        return self.proxy.hold(function, _digest(key).encode(), answer=answer, once=once)

    async def ready(self) -> None:
        """Returns when it would be sent calls."""
        await testing.wait_ready(self._address)


class RealSite(Site):
    """A site whose tools are real."""

    executor: Executor

    def __init__(self, behind: Any, state_url: str = "") -> None:
        super().__init__(behind)
        self.state_url = state_url
        self.outside: Outside = behind.tools

    def effects(self, run_id: str) -> list[Effect]:
        """What was done for a run."""
        return self.outside.effects[run_id]

    async def ordering(self, run_id: str) -> None:
        """A run whose call is on its way."""
        await self.start(run_id, calls((ORDER, "a")), "done", agent="asking")

    async def at_work(self, run_id: str, tool: str, following: Sequence[Any] = (), **fields: Any) -> str:
        """A run whose tool was asked and does not answer. Answers the key of the call."""
        self.tools.of(run_id).close()
        await self.start(run_id, calls((tool, "a")), *following, "done", **fields)
        await testing.eventually_async(lambda: self.effects(run_id), f"{run_id}: the tool is asked")
        return f"{run_id}/1/0"

    async def taken(self, run_id: str) -> None:
        """Returns when a run has its second owner."""

        async def attempt() -> bool:
            return (await self.second.client.get(run_id)).attempt == 2

        await testing.eventually_async(attempt, f"{run_id} is taken over")

    async def given_up(self, key: str) -> float:
        """Returns when the first request of a call is given up: when that was."""
        return (await testing.eventually_async(lambda: self.outside.cut[key], f"the request of {key} is ended"))[0]

    async def field(self, run_id: str, name: str) -> str:
        """Of a run's record."""
        async with aclosing(connect(self.state_url)) as store:
            return (await store.hget(f"t:{{acme/{self.threads[run_id]}}}:run:{run_id}", name)).decode()

    async def outlast(self, *keys: str) -> None:
        """The deadline passes of calls that nobody is at any more, as far as the ledger can tell."""
        async with aclosing(connect(self.state_url)) as store:
            for key in keys:
                name = f"tool_calls:{{acme}}:{_digest(key)}"
                assert await store.hexists(name, "until")
                await store.hset(name, "until", 1)


async def _pumped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


def _digest(key: str) -> str:
    """By which the ledger knows a call."""
    return hashlib.sha256(key.encode()).hexdigest()


@asynccontextmanager
async def real_site(identities: testing.Identities, state_url: str, folder: Path, **first: Any) -> AsyncIterator[RealSite]:
    """Two orchestrators, one executor, and the world. `first` are settings that only the first orchestrator has."""
    outside = Outside()
    behind = Fakes(tools=outside)  # type: ignore[arg-type]
    without = frozenset({"tool_executor"})
    async with outside.there(), fakes(identities, without, made=behind), before_store(state_url) as proxy:
        sent = {"input_schema": NONCE, "timeout_s": TIMEOUT_S}
        declared = {
            READ: {"http": {"method": "GET", "idempotency_header": KEY_HEADER}, "annotations": {"read_only": True}},
            SET: {"http": {"method": "PUT", "idempotency_header": KEY_HEADER}, "annotations": {"idempotent": True}},
            ORDER: {"http": {"method": "POST", "idempotency_header": KEY_HEADER}},
        }
        tools: list[Any] = [http_tool(outside, name, f"/{name}", **sent, **fields) for name, fields in declared.items()]  # type: ignore[arg-type]
        write_config(folder / "tools", [*tools, {"name": "python", "timeout_s": TIMEOUT_S, "options": {"max_seconds": 60}}])
        executor = Executor(identities, proxy, folder)
        async with (
            executor.there(behind.addresses["tool_executor"]),
            two_replicas(identities, behind, state_url, folder, AGENTS, first) as made,
        ):
            site = RealSite(behind, state_url)
            site.first, site.second, site.executor = made.first, made.second, executor
            yield site
