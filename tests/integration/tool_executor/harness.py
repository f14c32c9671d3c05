"""A tool executor in the test's loop or as a process, and a server outside that counts what reaches it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc

from services.common import testing
from services.tool_executor.app import build
from services.tool_executor.settings import Settings

DONE, FAILED = tools_pb2.TOOL_OUTCOME_DONE, tools_pb2.TOOL_OUTCOME_FAILED
UNKNOWN, RUNNING = tools_pb2.TOOL_OUTCOME_UNKNOWN, tools_pb2.TOOL_OUTCOME_RUNNING
POLICIES = "sets: {test: {free: {tool_calls_per_minute: 3}, enterprise: {}}}"


@dataclass
class Seen:
    """A request as the outside server got it."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]
    body: Any


@dataclass
class Outside:
    """A server that does something each time it is asked; `gate` holds its answers back while it is closed."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: int = 0
    answers: dict[str, list] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Remembers the request; answers what `answers` says for the path, else how many requests came."""
        raw = await request.read()
        self.seen.append(Seen(request.method, request.path, dict(request.headers), dict(request.query), orjson.loads(raw) if raw else None))
        number = len(self.seen)
        answers = self.answers.get(request.path)
        answer = (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else {"number": number}
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if answer == "drop":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if isinstance(answer, int):
            return web.Response(status=answer, headers={"Retry-After": "7"})
        if isinstance(answer, tuple):
            status, headers, body = answer
            return web.Response(status=status, headers=headers, body=body)
        return web.json_response(answer)


@asynccontextmanager
async def outside_server() -> AsyncIterator[Outside]:
    """An Outside that listens, with its gate open."""
    outside = Outside()
    outside.gate.set()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", outside.handle)
    # The handler is to notice when its caller goes away.
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    outside.port = runner.addresses[0][1]
    try:
        yield outside
    finally:
        outside.gate.set()
        await runner.cleanup()


def http_tool(outside: Outside, name: str, path: str, **more: Any) -> dict[str, Any]:
    """An entry of tools.yaml for a tool that asks `outside`."""
    http = {"url": f"{outside.url}{path}", **more.pop("http", {})}
    return {
        "name": name,
        "version": "1.0.0",
        "description": f"Asks {path}.",
        "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False},
        "retry": {"times": 2, "backoff_s": [0, 0.01]},
        "approval": "never",
        "http": http,
        **more,
    }


class Client:
    """Calls an executor as the orchestrator does."""

    def __init__(self, stub: tools_pb2_grpc.ToolServiceStub) -> None:
        self.stub = stub

    async def events(self, name: str, arguments: Any = None, key: str = "", **fields: Any) -> list[tools_pb2.ExecuteToolResponse]:
        """All events of a call."""
        raw = arguments if isinstance(arguments, bytes) else orjson.dumps({} if arguments is None else arguments)
        request = tools_pb2.ExecuteToolRequest(name=name, arguments_json=raw, idempotency_key=key, **fields)
        return [event async for event in self.stub.ExecuteTool(request)]

    async def result(self, name: str, arguments: Any = None, key: str = "", **fields: Any) -> tools_pb2.ToolResult:
        """The result of a call, which must be its last event and its only result."""
        events = await self.events(name, arguments, key, **fields)
        assert [e.WhichOneof("event") for e in events].count("result") == 1
        assert events[-1].WhichOneof("event") == "result"
        return events[-1].result

    async def known(self, key: str) -> tools_pb2.ToolResult:
        """What is known of a call."""
        return (await self.stub.GetToolCall(tools_pb2.GetToolCallRequest(idempotency_key=key))).result


def write_config(folder: Path, tools: list[Any] | str, policies: str = POLICIES) -> None:
    """Writes the two files that the executor reads. JSON is YAML."""
    folder.mkdir(exist_ok=True)
    (folder / "tools.yaml").write_text(tools if isinstance(tools, str) else orjson.dumps({"tools": tools}).decode())
    (folder / "policies.yaml").write_text(policies)


@asynccontextmanager
async def executor(folder: Path, state_url: str, identities: testing.Identities, **more: Any) -> AsyncIterator[Client]:
    """An executor in this loop that reads its configuration in `folder`."""
    port = testing.free_port()
    settings = Settings(
        env="test",
        grpc_port=port,
        metrics_port=0,
        state_url=state_url,
        config_dir=folder,
        drain_grace_s=1.0,
        **identities.settings(),
        **more,
    )
    async with testing.running(settings, build), client_of(port) as client:
        yield client


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[Client]:
    """A client of the executor at `port`."""
    async with testing.dialer("orchestrator", {"tool_executor": f"127.0.0.1:{port}"}) as dialer:
        yield Client(tools_pb2_grpc.ToolServiceStub(dialer.channel("tool_executor")))


@asynccontextmanager
async def executor_process(
    folder: Path, state_url: str, identities: testing.Identities, program: tuple[str, ...] = ("-m", "services.tool_executor")
) -> AsyncIterator[tuple[testing.Process, int]]:
    """A real executor process that is ready, and its port."""
    port = testing.free_port()
    env = {
        "BULKHEAD_ENV": "test",
        "BULKHEAD_GRPC_PORT": str(port),
        "BULKHEAD_METRICS_PORT": "0",
        "BULKHEAD_STATE_URL": state_url,
        "BULKHEAD_CONFIG_DIR": str(folder),
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
        "BULKHEAD_DRAIN_GRACE_S": "1",
    }
    process = testing.Process(testing.python(*program), env=env, log=folder / f"executor-{port}.log")
    try:
        await testing.wait_ready(f"127.0.0.1:{port}")
        yield process, port
    finally:
        process.stop()
