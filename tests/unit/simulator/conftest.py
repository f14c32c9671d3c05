"""A simulator in the test's own loop, over real HTTP on a free port."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from services.common import testing
from services.simulator.app import build
from services.simulator.settings import Settings


class RunningSimulator:
    """A simulator and an HTTP client for it."""

    def __init__(self, url: str, http: aiohttp.ClientSession, log_file: Path):
        self.url = url
        self.http = http
        self.log_file = log_file

    async def chat(self, content: str | list[dict[str, Any]] = "hello", *, headers: dict[str, str] | None = None, **body: Any):
        """Status, headers and parsed body of a chat completion."""
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        async with self.http.post(
            f"{self.url}/v1/chat/completions", json={"model": "sim-1", "messages": messages, **body}, headers=headers
        ) as answer:
            return answer.status, answer.headers, orjson.loads(await answer.read())

    async def stream(self, content: str = "hello", *, headers: dict[str, str] | None = None, **body: Any) -> list[str]:
        """The data of each event of a streamed chat completion."""
        request = {"model": "sim-1", "messages": [{"role": "user", "content": content}], "stream": True, **body}
        async with self.http.post(f"{self.url}/v1/chat/completions", json=request, headers=headers) as answer:
            text = (await answer.read()).decode()
        return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]

    async def call(self, method: str, path: str, body: Any = None):
        """Status and parsed body of any other call."""
        async with self.http.request(method, self.url + path, json=body) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def log(self, after: int = 0) -> list[dict[str, Any]]:
        """The lines of the log."""
        _, page = await self.call("GET", f"/sim/log?after={after}")
        return page["lines"]

    async def last_line(self, count: int = 1) -> dict[str, Any]:
        """The newest line, once there are at least `count`."""

        async def enough():
            lines = await self.log()
            return lines if len(lines) >= count else None

        return (await testing.eventually_async(enough, f"{count} lines in the log"))[-1]


@pytest.fixture(scope="session")
def _server(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """One simulator for all tests, in a loop of its own: starting and draining one takes longer than most tests."""
    log_file = tmp_path_factory.mktemp("simulator") / "served.jsonl"
    settings = Settings(http_port=0, metrics_port=0, simulator_log=log_file, drain_grace_s=2.0, env="test")
    service = build(settings)
    listener = service.listeners[0]
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with testing.running(settings, lambda _: service):
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    testing.eventually(lambda: listener.bound_port and _accepts(listener.bound_port), "the simulator listens")
    yield f"http://127.0.0.1:{listener.bound_port}", log_file
    loop.call_soon_threadsafe(ended.set)
    thread.join(30)
    assert not thread.is_alive()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest_asyncio.fixture
async def sim(_server) -> AsyncIterator[RunningSimulator]:
    """A simulator with an empty log and no faults or scenarios of other tests."""
    url, log_file = _server
    async with aiohttp.ClientSession() as http:
        running = RunningSimulator(url, http, log_file)

        async def idle() -> bool:
            return not (await running.call("GET", "/sim/in-flight"))[1]["requests"]

        await testing.eventually_async(idle, "the requests of the test before have ended")
        await running.call("DELETE", "/sim/log")
        await running.call("DELETE", "/sim/faults")
        yield running


def tool(name: str, properties: dict[str, Any], required: list[str] | None = None, description: str = "") -> dict[str, Any]:
    """A tool in OpenAI's form; all properties are required unless `required` says which."""
    schema = {"type": "object", "properties": properties, "required": list(properties) if required is None else required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


class Tools:
    """The tools that the tests offer."""

    calculator = tool("calculator", {"expression": {"type": "string"}})
    clock = tool("current_time", {"timezone": {"type": "string"}}, required=[])
    search = tool(
        "search_documents", {"query": {"type": "string"}, "limit": {"type": "integer"}}, ["query"], "Search the documents of the user."
    )
    fetch = tool("http_fetch", {"url": {"type": "string"}})
    python = tool("python", {"code": {"type": "string"}})
    weather = tool("get_weather", {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}, ["city"])
    every = (calculator, clock, search, fetch, python, weather)


@pytest.fixture
def tools() -> type[Tools]:
    return Tools
