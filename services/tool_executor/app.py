"""Composition root of the tool executor."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from bulkhead.tools.v1 import tools_pb2_grpc

from services.common.audit import AuditStream
from services.common.breaker import Breakers
from services.common.config import ConfigFile
from services.common.limits import parse_policies
from services.common.rpc.addresses import Addresses
from services.common.rpc.channel import Dialer
from services.common.rpc.server import Service, verifier_of
from services.common.settings import StartRefused
from services.common.valkey import connect, ping, refuse_shards
from services.tool_executor.adapters.call_ledger import ValkeyCallLedger
from services.tool_executor.adapters.documents import MemoryDocuments
from services.tool_executor.adapters.http_tools import HttpTools
from services.tool_executor.adapters.last_results import ValkeyLastResults
from services.tool_executor.adapters.rate_limit import ToolCallRate
from services.tool_executor.adapters.sandbox import MontySandbox
from services.tool_executor.adapters.web import OpenWeb
from services.tool_executor.approvals import Approvals
from services.tool_executor.auditing import ToolAudit
from services.tool_executor.breaker import TOOL_BREAKER, ToolBreaker, tool_of
from services.tool_executor.builtin.calculator import calculator
from services.tool_executor.builtin.current_time import Clock
from services.tool_executor.builtin.http_fetch import HttpFetch
from services.tool_executor.builtin.python import Python
from services.tool_executor.builtin.search_documents import SearchDocuments
from services.tool_executor.claims import Claims
from services.tool_executor.execution import Executor
from services.tool_executor.registry import parse_tools
from services.tool_executor.servicer import ToolServicer
from services.tool_executor.settings import Settings
from services.tool_executor.standing_in import Kept
from services.tool_executor.tools import built_ins

STORE_TIMEOUT_S = 0.05


class _Watching:
    """The files that are looked at again and again while the service runs."""

    def __init__(self, files: Sequence[ConfigFile[Any]]) -> None:
        self._files = files
        self._tasks: list[asyncio.Task] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(file.watch(), name="config") for file in self._files]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


def build(settings: Settings) -> Service:
    """Wires the service. Raises StartRefused with every problem of tools.yaml and policies.yaml."""
    state = connect(settings.state_url)
    dialer = Dialer("tool_executor", Addresses(settings.addresses(), settings.address_file))
    sandbox = MontySandbox()
    http_tools = HttpTools()
    declared = built_ins(
        [calculator, Clock(), HttpFetch(OpenWeb()), SearchDocuments(MemoryDocuments(dialer)), Python(sandbox)],
    )
    tools, policies = _files(
        settings.config_dir,
        {
            "tools.yaml": lambda content: parse_tools(content, declared, http_tools.run_of),
            "policies.yaml": partial(parse_policies, policy_set=settings.policy_set),
        },
    )
    watching = _Watching([tools, policies])
    ledger = ValkeyCallLedger(state, settings.state_replicas)
    claims = Claims(ledger)
    # Short timeouts of its own: no call waits for what the breaker wants to know.
    shared = connect(settings.state_url, timeout_s=STORE_TIMEOUT_S, max_connections=8)
    breakers = Breakers(shared, key="tools:{{b:{}}}:breaker".format, channel="tools:breakers", policy=TOOL_BREAKER, label=tool_of)
    verifier = verifier_of(settings)
    rate = ToolCallRate(state, policies, settings.policy_set)
    executor = Executor(lambda: tools.current, claims, rate, ToolBreaker(breakers), Approvals(verifier), Kept(ValkeyLastResults(shared)))
    if settings.audit_days:
        executor.audit = ToolAudit(AuditStream(state, timedelta(days=settings.audit_days), settings.state_replicas))
    servicer = ToolServicer(lambda: tools.current, executor)
    return Service(
        settings.service_name,
        add_servicers=[partial(tools_pb2_grpc.add_ToolServiceServicer_to_server, servicer)],
        # The memory service is no dependency: without it only search_documents fails, and says so.
        checks={"state": lambda: ping(state)},
        start=[partial(refuse_shards, state), watching.start, breakers.start],
        # Run from the last to the first: outcomes are stored before the store is let go.
        close=[state.aclose, shared.aclose, dialer.close, http_tools.close, sandbox.close, claims.close, breakers.stop, watching.stop],
        verifier=verifier,
        configs=[tools, policies],
    )


def _files(folder: Path, parsers: dict[str, Callable[[Any], Any]]) -> list[ConfigFile[Any]]:
    """Opens every file before it complains, so that one start shows all that is wrong."""
    files, problems = [], []
    for name, parse in parsers.items():
        try:
            files.append(ConfigFile(folder / name, parse))
        except StartRefused as refusal:
            problems += refusal.problems
    if problems:
        raise StartRefused(problems)
    return files
