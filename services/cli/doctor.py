"""`bulkhead doctor`: what works, what does not, and the way out, a row each."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from services.cli.client import Api
from services.cli.connection import Connection, find_connection, read_env_file
from services.cli.failure import FAILED, CommandFailure
from services.cli.rendering import print_json_lines, wide_console
from services.cli.terminal import printable
from services.cli.up.environment import ENCRYPTING, ENVELOPE_KEYS, base_environment
from services.cli.up.plan import make_plan
from services.cli.up.ports import is_free
from services.cli.up.probes import READY, probe_for, refused_by
from services.cli.up.process import last_error
from services.cli.up.workspace import Workspace, running_owner

MOST_LISTED = 100_000
# A tool that the orchestrator brings itself.
HAND_OFF = "hand_off_to_human"


@dataclass(frozen=True, slots=True)
class Row:
    """One finding. `way_out` is empty when it is good."""

    what: str
    found: str
    way_out: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing is to be done."""
        return not self.way_out


def examine(data_dir: Path, *, as_json: bool = False) -> int:
    """Looks at everything and prints the rows; answers 0 when all is well, else 1."""
    rows = asyncio.run(_examine(Workspace(data_dir)))
    if as_json:
        print_json_lines({"what": row.what, "found": row.found, "good": row.good, "way_out": row.way_out or None} for row in rows)
        return FAILED if any(not row.good for row in rows) else 0
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for row in rows:
        mark = Text("✓", style="green") if row.good else Text("✗", style="red")
        table.add_row(mark, Text(row.what), Text(printable(row.found + (f" → {row.way_out}" if row.way_out else ""))))
    console = wide_console()
    console.print(table)
    bad = sum(not row.good for row in rows)
    console.print("all is well" if not bad else f"{bad} of {len(rows)} checks failed")
    return FAILED if bad else 0


async def _examine(workspace: Workspace) -> list[Row]:
    owner = running_owner(workspace.lock)
    rows = [await _entry(workspace), *await _tools(workspace)]
    if owner:
        rows.append(Row("bulkhead up", f"running (process {owner}) on {workspace.root}"))
        rows += await _processes(workspace)
        rows += await config_rows(workspace)
        rows += encryption(workspace, base_environment(os.environ, Path.cwd()))
    elif not rows[0].good:
        rows.append(Row("bulkhead up", f"not running on {workspace.root}", "start it with `make run`"))
        rows += _ports()
    return rows


async def _entry(workspace: Workspace) -> Row:
    """The HTTP entry that was started, asked with the key: the gateway, or the LLM gateway's model port where it stands alone."""
    known = read_env_file(workspace.dev_env)
    url, key = known.get("BULKHEAD_LLM_URL", ""), known.get("BULKHEAD_API_KEY", "")
    if not url or not key or known.get("BULKHEAD_URL") or os.environ.get("BULKHEAD_URL"):
        return await _gateway(workspace)
    try:
        async with Api(Connection(url, key)) as api:
            listed = await api.get("/v1/models")
    except CommandFailure as failure:
        message, _, hint = str(failure).partition(": ")
        return Row("model port", message, hint or "look at logs/llm_gateway-0.jsonl")
    models = [model.get("id", "?") for model in listed.get("data", [])]
    return Row("model port", f"{url}/v1 takes the key; models: {', '.join(models)}")


async def _gateway(workspace: Workspace) -> Row:
    try:
        connection: Connection = find_connection(workspace.root)
        async with Api(connection) as api:
            ready = await api.get("/v1/agents")
    except CommandFailure as failure:
        message, _, hint = str(failure).partition(": ")
        return Row("gateway", message, hint or "look at logs/gateway-0.jsonl")
    agents = [agent.get("name", "?") for agent in ready.get("data", [])]
    if not agents:
        return Row("gateway", f"{connection.url} answers, but knows no agent", "write one into agents.yaml")
    return Row("gateway", f"{connection.url} takes the key; agents: {', '.join(agents)}")


async def _tools(workspace: Workspace) -> list[Row]:
    """A row for each tool that an agent names and that is not there; none where the gateway does not answer, which another row tells."""
    try:
        async with Api(find_connection(workspace.root)) as api:
            agents, tools = await api.listed("/v1/agents", MOST_LISTED), await api.listed("/v1/tools", MOST_LISTED)
    except CommandFailure:
        return []
    return missing_tools(agents, tools)


def missing_tools(agents: Sequence[Mapping], tools: Sequence[Mapping]) -> list[Row]:
    """A row for each of the tools of `agents` that is none of `tools`, both as the gateway lists them."""
    there = {HAND_OFF, *(tool.get("name", "") for tool in tools)}
    return [
        Row(
            "agents",
            f"{agent['name']} names a tool {tool!r} that is not there for this key",
            "add it to tools.yaml, or correct agents.yaml",
        )
        for agent in agents
        for tool in agent.get("tools", [])
        if tool.partition("@")[0] not in there
    ]


async def _processes(workspace: Workspace) -> list[Row]:
    running = _running(workspace)
    if not running:
        return [Row("processes", f"{workspace.processes} cannot be read", "restart `bulkhead up`")]

    async def one(label: str, ports: Mapping) -> Row:
        probe, close = probe_for(label.rpartition("-")[0], ports)
        try:
            missing = await probe()
        finally:
            await close()
        where = ", ".join(f"{kind} {port}" for kind, port in ports.items())
        if missing == READY:
            return Row(label, f"ready ({where})")
        log = workspace.log_file(label)
        error = last_error(log)
        return Row(label, f"{missing} ({where})", f"look at {log}" + (f"; last error: {error}" if error else ""))

    return list(await asyncio.gather(*(one(label, ports) for label, ports in running.items())))


async def config_rows(workspace: Workspace) -> list[Row]:
    """A row for each configuration file of which a process has refused the newest content, or one that says that there is none."""
    rows = []
    for label, ports in sorted(_running(workspace).items()):
        for file, problems in sorted((await refused_by(ports)).items()):
            # Each problem names its file, which may be one that belongs to the other, as a price table.
            way_out = "; ".join(problems) or f"look for config_refused in {workspace.log_file(label)}"
            rows.append(Row("configuration", f"{label} keeps the last good {file}", way_out))
    return rows or [Row("configuration", "every file in force is the newest")]


def encryption(workspace: Workspace, variables: Mapping[str, str]) -> list[Row]:
    """A row about the root keys of personal data, where a process runs that keeps such."""
    if not any(label.rpartition("-")[0] in ENCRYPTING for label in _running(workspace)):
        return []
    what, named = "personal data", variables.get(ENVELOPE_KEYS)
    if named == "":
        return [Row(what, f"{ENVELOPE_KEYS} is empty: it is stored in plain text", f"take {ENVELOPE_KEYS} out, and restart `bulkhead up`")]
    path = Path(named) if named else workspace.envelope_keys
    # Imported here: the other commands of this package do not wait for it.
    from services.common.envelope import RootKeys

    try:
        keys = RootKeys.from_file(path)
    except OSError:
        way_out = "put it back: what was encrypted with it opens with no other, and without it no process starts again"
        return [Row(what, f"the keys in {path} are missing", way_out)]
    except ValueError as error:
        return [Row(what, str(error), f"put a good copy of {path} back: the processes go on with what they have read")]
    return [Row(what, f"encrypted with the keys in {path}; the newest is {keys.newest}")]


def _running(workspace: Workspace) -> Mapping[str, Mapping]:
    """Ports by label; empty where nobody has written them."""
    try:
        return json.loads(workspace.processes.read_text())
    except (OSError, ValueError):
        return {}


def _ports() -> list[Row]:
    taken = [f"{port} ({listener.process} {listener.kind})" for listener, port in make_plan().fixed_ports() if not is_free(port)]
    if taken:
        return [Row("ports", f"taken: {', '.join(taken)}", "end what uses them, or `bulkhead up --port-base N`")]
    return [Row("ports", "all are free")]
