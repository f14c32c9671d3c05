"""The same work on other platforms: five model calls and four tool calls a run, the model answering at once, 50 runs at a time.

Each is installed into an environment of its own below build/, and does less than we do: the model is a function in its process, nobody
checks keys or budgets, and no text is streamed. `langgraph dev` keeps what it knows in memory; dbos writes each step to SQLite.
"""

import asyncio
import json
import subprocess
import sys
import textwrap
import time
import venv
from collections.abc import Callable
from pathlib import Path

import aiohttp
import uvloop

from scripts.bench.machine import Figure
from scripts.bench.runs import CONCURRENT, Client, load, platform
from services.common import testing

FOLDER = testing.ROOT / "build" / "bench-peers"
PACKAGES = ("langgraph-cli[inmem]", "dbos")
RUNS = 400
_GRAPH = """
    from typing import TypedDict
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        step: int
        notes: list

    async def model(state):
        return {"step": state["step"] + 1, "notes": [*state["notes"], "call"]}

    async def tool(state):
        return {"notes": [*state["notes"], "result"]}

    builder = StateGraph(State)
    builder.add_node("model", model)
    builder.add_node("tool", tool)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", lambda state: END if state["step"] == 5 else "tool")
    builder.add_edge("tool", "model")
    graph = builder.compile()
"""
_DBOS = """
    import asyncio, sys, time
    from dbos import DBOS

    RUNS, CONCURRENT = int(sys.argv[1]), int(sys.argv[2])

    @DBOS.step()
    async def model(number):
        return f"call {number}"

    @DBOS.step()
    async def tool(number):
        return number * 2

    @DBOS.workflow()
    async def turn():
        for number in range(4):
            await model(number)
            await tool(number)
        return await model(4)

    async def main():
        left = iter(range(RUNS))
        async def worker():
            for _ in left:
                await (await DBOS.start_workflow_async(turn)).get_result()
        await turn()
        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
        print("RATE", RUNS / (time.perf_counter() - began))

    DBOS(config={"name": "bench", "system_database_url": "sqlite:///bench.sqlite", "log_level": "ERROR", "run_admin_server": False})
    DBOS.launch()
    asyncio.run(main())
    DBOS.destroy()
"""


def _install() -> Path:
    if not (FOLDER / "bin" / "langgraph").exists():
        print(f"installing {' and '.join(PACKAGES)} into {FOLDER}", flush=True)
        venv.create(FOLDER, with_pip=True)
        subprocess.run([FOLDER / "bin" / "pip", "install", "-q", *PACKAGES], check=True, stdout=sys.stderr)
    return FOLDER / "bin"


def _langgraph(programs: Path) -> float:
    work = FOLDER / "graph"
    work.mkdir(exist_ok=True)
    (work / "graph.py").write_text(textwrap.dedent(_GRAPH))
    (work / "langgraph.json").write_text(json.dumps({"graphs": {"agent": "./graph.py:graph"}, "dependencies": ["."]}))
    port = testing.free_port()
    command = [
        str(programs / "langgraph"),
        "dev",
        "--no-browser",
        "--no-reload",
        "--port",
        str(port),
        "--n-jobs-per-worker",
        str(CONCURRENT),
    ]
    server = testing.Process(command, env={"LANGSMITH_TRACING": "false"}, log=work / "server.log", cwd=work)
    try:
        testing.wait_for_port(port, server, timeout_s=120)
        return uvloop.run(_ask_langgraph(f"http://127.0.0.1:{port}"))
    finally:
        server.stop()


async def _ask_langgraph(url: str) -> float:
    body = {"assistant_id": "agent", "input": {"step": 0, "notes": []}, "stream_mode": ["updates"]}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            async with session.post(f"{url}/threads", json={}) as answer:
                thread = (await answer.json())["thread_id"]
            async with session.post(f"{url}/threads/{thread}/runs/stream", json=body) as answer:
                answer.raise_for_status()
                await answer.read()

        await one()
        left = iter(range(RUNS))

        async def worker() -> None:
            for _ in left:
                await one()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
        return RUNS / (time.perf_counter() - began)


def _dbos(programs: Path) -> float:
    work = FOLDER / "dbos"
    work.mkdir(exist_ok=True)
    (work / "bench.sqlite").unlink(missing_ok=True)
    (work / "bench.py").write_text(textwrap.dedent(_DBOS))
    done = subprocess.run(
        [programs / "python", "bench.py", str(RUNS), str(CONCURRENT)], cwd=work, check=True, capture_output=True, text=True
    )
    return float(next(line for line in done.stdout.splitlines() if line.startswith("RATE")).split()[1])


async def _own(url: str, key: str) -> float:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = Client(session, url, key)
        await load(client, "bench", "five-steps", CONCURRENT)
        return (await load(client, "bench", "five-steps", RUNS))[0]


def run() -> list[Figure]:
    """Runs a second of each, one after the other on the same machine, and how many times theirs ours is."""
    programs = _install()
    with platform() as made:
        own = uvloop.run(_own(made.url, made.key))
    peers: dict[str, Callable[[Path], float]] = {"langgraph dev": _langgraph, "dbos on SQLite": _dbos}
    figures = [Figure("five-step runs/s, all five services", own, "runs/s", lower=False)]
    for name, measure in peers.items():
        rate = measure(programs)
        figures += [
            Figure(f"five-step runs/s, {name}", rate, "runs/s", lower=False),
            Figure(f"ours over {name}", own / rate, "×", lower=False),
        ]
    return figures
