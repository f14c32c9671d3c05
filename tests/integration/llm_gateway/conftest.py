"""The LLM gateway as it is served, over gRPC and over its model port, in front of a real simulator."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
import yaml
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect
from services.llm_gateway.app import build
from services.llm_gateway.settings import Settings
from services.simulator.app import build as build_simulator
from services.simulator.settings import Settings as SimulatorSettings

# Short enough for a test to sit through, long enough for a loaded machine.
QUICK: dict[str, Any] = {
    "model_retry_base_s": 0.01,
    "model_retry_cap_s": 1.0,
    "model_first_token_timeout_s": 2.0,
    "model_between_tokens_timeout_s": 1.5,
    "model_connect_timeout_s": 1.5,
    # The machine may be busy with other tests; what happens when the store is slow has tests of its own.
    "store_timeout_ms": 5000,
}
PRICES = {"sim-1": (0.00000015, 0.0000006), "sim-2": (0.0000005, 0.0000015)}


class Simulator:
    """A simulator and its log."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def order(self, fault: str | Mapping[str, Any], times: int | None = None, **match: str) -> None:
        """Orders a fault for the requests that match; `times` None is until the end."""
        body = {"fault": fault, "match": match, **({} if times is None else {"times": times})}
        async with self._http.post(f"{self.url}/sim/faults", json=body) as answer:
            assert answer.status in (200, 201), await answer.text()

    async def reset(self) -> None:
        """Forgets every fault that was ordered, and the log."""
        for path in ("/sim/faults", "/sim/log"):
            async with self._http.delete(self.url + path) as answer:
                assert answer.status == 200, await answer.text()

    async def log(self) -> list[dict[str, Any]]:
        """A line for each request that has ended."""
        async with self._http.get(f"{self.url}/sim/log") as answer:
            return [line for line in orjson.loads(await answer.read())["lines"] if line["endpoint"] != "/sim"]

    async def logged(self, count: int) -> list[dict[str, Any]]:
        """The log, once it has that many lines."""

        async def enough():
            lines = await self.log()
            return lines if len(lines) >= count else None

        return await testing.eventually_async(enough, f"{count} lines in the simulator's log")

    async def in_flight(self) -> int:
        """Requests that are being served now."""
        async with self._http.get(f"{self.url}/sim/in-flight") as answer:
            found = orjson.loads(await answer.read())
            return len(found if isinstance(found, list) else found["requests"])


class Stack:
    """A served gateway: stubs, the URL of the model port and a key for it."""

    def __init__(
        self, identities, address: str, url: str, key: str, folder: Path, sim: Simulator, http: aiohttp.ClientSession, stubs
    ) -> None:
        self.identities = identities
        self.address = address
        self.url = url
        self.key = key
        self.folder = folder
        self.sim = sim
        self.http = http
        self.llm, self.embedder, self.reader = stubs

    def write_models(self, models: Mapping[str, Any]) -> None:
        """Replaces models.yaml."""
        (self.folder / "models.yaml").write_text(yaml.safe_dump(models))

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON and headers of a POST to the model port; `body` may be bytes."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        sent = {
            "authorization": f"Bearer {self.key}",
            "content-type": "application/json",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        async with self.http.post(self.url + path, data=data, headers=sent) as answer:
            raw = await answer.read()
            return answer.status, orjson.loads(raw), answer.headers


@dataclass
class Received:
    """A request as the provider got it."""

    path: str
    headers: dict[str, str]
    body: Any


class Provider:
    """A provider in raw bytes, for what no honest server does. `script` answers the bytes for the n-th request.

    An answer of None hangs; the connection is closed after each answer, or reset where the bytes end with RESET.
    """

    RESET = b"<reset>"
    # Where it stands, the bytes before it arrive in a network read of their own.
    PAUSE = b"<pause>"

    def __init__(self, script: Callable[[int, Received], bytes | None]) -> None:
        self.script = script
        self.received: list[Received] = []
        self.connections = 0
        self.gone = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            raw = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Received(head[0].split()[1], headers, orjson.loads(raw) if raw else None)
            self.received.append(request)
            answer = self.script(len(self.received), request)
            if answer is None:
                await reader.read()
                self.gone.set()
                return
            for piece in answer.removesuffix(self.RESET).split(self.PAUSE):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.1 if self.PAUSE in answer else 0)
            if answer.endswith(self.RESET):
                writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            writer.close()


def http_answer(body: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> bytes:
    """A whole HTTP answer."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(raw)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def completion(text: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a whole completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"id": "c-1", "object": "chat.completion", "model": "m-1-2026", "choices": [choice], "usage": usage, **more}


def event_stream(*events: Any) -> bytes:
    """A whole event stream; bytes stand for themselves."""
    return b"".join(event if isinstance(event, bytes) else b"data: " + orjson.dumps(event) + b"\n\n" for event in events)


def delta(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk."""
    return {
        "id": "c-1",
        "choices": [{"index": 0, "delta": {**({} if content is None else {"content": content}), **more}, "finish_reason": finish}],
    }


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Callable[..., Any]]:
    """Starts a Provider with a script; answers it with its URL."""
    servers = []

    async def started(script: Callable[[int, Received], bytes | None]) -> Provider:
        made = Provider(script)
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        servers.append(server)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return made

    yield started
    for server in servers:
        server.close()


@pytest.fixture
def wire():
    """What providers send: http_answer, completion, event_stream, delta."""
    return SimpleNamespace(
        answer=http_answer, completion=completion, events=event_stream, delta=delta, RESET=Provider.RESET, PAUSE=Provider.PAUSE
    )


def entry(name: str, model: str, base: str, **params: Any) -> dict[str, Any]:
    """One deployment of the simulator."""
    price_in, price_out = PRICES.get(model.partition("+")[0], PRICES["sim-1"])
    info = {"mode": "chat", "simulated": True, "trusted": True, "input_cost_per_token": price_in, "output_cost_per_token": price_out}
    return {"model_name": name, "litellm_params": {"model": f"openai/{model}", "api_base": base, **params}, "model_info": info}


def models_file(sim_url: str, **router: Any) -> dict[str, Any]:
    """main on sim-1, backup on sim-2, local embeddings."""
    base = f"{sim_url}/v1"
    local = {"model_name": "vectors", "litellm_params": {"model": "wordllama/l2_supercat_256"}, "model_info": {"mode": "embedding"}}
    return {
        "model_list": [entry("main", "sim-1", base), entry("backup", "sim-2", base), local],
        # Tests share a gateway: what one of them breaks must not stay shut for the next.
        "router_settings": {"allowed_fails": 1000, **router},
    }


@asynccontextmanager
async def simulated() -> AsyncIterator[Simulator]:
    """A simulator in the test's loop, with a client for it."""
    port = testing.free_port()
    settings = SimulatorSettings(env="test", http_port=port, metrics_port=0, drain_grace_s=1)
    async with testing.running(settings, build_simulator), aiohttp.ClientSession() as http:
        yield Simulator(f"http://127.0.0.1:{port}", http)


@asynccontextmanager
async def served(
    content: Mapping[str, Any],
    identities: testing.Identities,
    state_url: str,
    folder: Path,
    sim: Simulator,
    *,
    port: bool = True,
    **overrides: Any,
) -> AsyncIterator[Stack]:
    """A gateway over the models of a mapping, with its model port unless `port` is False."""
    (folder / "models.yaml").write_text(yaml.safe_dump(content))
    grpc_port, http_port = testing.free_port(), testing.free_port() if port else 0
    settings = Settings(
        env="test", grpc_port=grpc_port, http_port=http_port, metrics_port=0, config_dir=folder, state_url=state_url,
        drain_grace_s=2, **{**QUICK, **overrides}, **identities.settings(),
    )  # fmt: skip
    client = connect(state_url)
    issued = await Accounts(client).create_key(tenant="acme", user="ana", tier="enterprise", scopes=["*"])
    await client.aclose()
    address = f"127.0.0.1:{grpc_port}"
    async with testing.running(settings, build), aiohttp.ClientSession() as http:
        async with (
            testing.dialer("orchestrator", {"llm_gateway": address}) as one,
            testing.dialer("memory", {"llm_gateway": address}) as two,
            testing.dialer("gateway", {"llm_gateway": address}) as three,
        ):
            stubs = [llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway")) for dialer in (one, two, three)]
            yield Stack(identities, address, f"http://127.0.0.1:{http_port}", issued.secret, folder, sim, http, stubs)


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of the test."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A simulator of the test's own."""
    async with simulated() as made:
        yield made


@pytest.fixture
def serve(identities, state_url, tmp_path, sim):
    """A context manager that serves a gateway of the test's own over the models of a mapping."""
    return partial(served, identities=identities, state_url=state_url, folder=tmp_path, sim=sim)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_stack(identities, _state_server, tmp_path_factory) -> AsyncIterator[Stack]:
    """One gateway with main, backup and vectors, and one simulator, for the tests of a module."""
    async with simulated() as sim:
        folder = tmp_path_factory.mktemp("config")
        async with served(models_file(sim.url), identities, _state_server, folder, sim, model_total_timeout_s=6.0) as made:
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(module_stack) -> Stack:
    """The module's gateway, with a simulator that has no fault ordered and an empty log."""
    await module_stack.sim.reset()
    return module_stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_apis(identities, _state_server, tmp_path_factory) -> AsyncIterator[Stack]:
    """One gateway with `claude` behind Anthropic's API and `main` behind OpenAI's, and one simulator that speaks both."""
    async with simulated() as sim:
        own = entry("claude", "sim-1", sim.url, api_key="sk-ant-sim")
        own["litellm_params"]["model"] = "anthropic/sim-1"
        content = {"model_list": [own, entry("main", "sim-1", f"{sim.url}/v1")], "router_settings": {"allowed_fails": 1000}}
        folder = tmp_path_factory.mktemp("apis")
        async with served(content, identities, _state_server, folder, sim, model_total_timeout_s=6.0) as made:
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def apis(module_apis) -> Stack:
    """The module's gateway over both APIs, with a simulator that has no fault ordered and an empty log."""
    await module_apis.sim.reset()
    return module_apis


@pytest_asyncio.fixture(loop_scope="module")
async def bench(module_bench):
    """The fault matrix's bench, with its books at the beginning of a case; `module_bench` is each file's own."""
    await module_bench.books.mark()
    return module_bench


@pytest.fixture
def models():
    """Makes the content of a models.yaml."""
    return models_file


@pytest.fixture
def deployment():
    """Makes one entry of model_list."""
    return entry


@pytest.fixture
def ask():
    """Makes a CompletionInput."""

    def made(text: str = "Tell me about ships and bulkheads, please.", model: str = "main", **fields: Any) -> llm_pb2.CompletionInput:
        return llm_pb2.CompletionInput(model=model, messages=[llm_pb2.Message(role="user", text=text)], **fields)

    return made
