"""Tools over gRPC."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from bulkhead.common.v1 import common_pb2
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc

from services.common.errors import BulkheadError, NotFound, PermissionDenied, UpstreamFailed
from services.common.rpc import context as call_context
from services.common.rpc.channel import Dialer
from services.orchestrator.adapters.llm import warned
from services.orchestrator.ports import Checked, ToolDefinition, ToolOutcome, ToolProgress, Warned

# The registry changes rarely; a run that starts within this time of a change may still see the tools of before.
FRESH_S = 5.0
# While the executor cannot be reached, what it last said may stand in, so that a turn can begin while it restarts.
STALE_S = 300.0
CACHED = 512
_OUTCOMES = {
    tools_pb2.TOOL_OUTCOME_DONE: "done",
    tools_pb2.TOOL_OUTCOME_FAILED: "failed",
    tools_pb2.TOOL_OUTCOME_UNKNOWN: "unknown",
    tools_pb2.TOOL_OUTCOME_RUNNING: "running",
}

_APPROVALS = {tools_pb2.TOOL_APPROVAL_WAIVABLE: "waivable", tools_pb2.TOOL_APPROVAL_REQUIRED: "required"}


class ToolExecutor:
    """The tool executor."""

    def __init__(self, dialer: Dialer) -> None:
        self._stub = tools_pb2_grpc.ToolServiceStub(dialer.channel("tool_executor"))
        self._known: OrderedDict[tuple, tuple[float, list[ToolDefinition]]] = OrderedDict()
        self._asking: dict[tuple, asyncio.Future] = {}

    async def definitions(self, names: Sequence[str]) -> list[ToolDefinition]:
        """As ports.Tools.definitions. What a caller may use depends on its scopes, so they are part of the cache's key."""
        if not names:
            return []
        principal = call_context.principal()
        key = (tuple(names), principal.tenant, principal.scopes, principal.tier)
        known = self._known.get(key)
        now = time.monotonic()
        if known and now - known[0] < FRESH_S:
            return known[1]
        try:
            found = await self._ask(names)
        except BulkheadError:
            if known and now - known[0] < STALE_S:
                return known[1]
            raise
        self._known[key] = (now, found)
        self._known.move_to_end(key)
        if len(self._known) > CACHED:
            self._known.popitem(last=False)
        return found

    async def _ask(self, names: Sequence[str]) -> list[ToolDefinition]:
        wanted = [name.partition("@")[::2] for name in names]
        request = tools_pb2.ListToolsRequest(
            names=sorted({name for name, _ in wanted}), all_versions=any(version for _, version in wanted), page_size=1000
        )
        tools = (await self._stub.ListTools(request)).tools
        found = []
        for name, version in wanted:
            # Newest first, so the first that fits is the one that is meant.
            tool = next((t for t in tools if t.name == name and version in ("", t.version)), None)
            if tool is not None:
                found.append(_definition(tool))
        return found

    async def missing(self, names: Sequence[str]) -> list[str]:
        """As ports.Tools.missing."""
        found = []
        for each in names:
            name, _, version = each.partition("@")
            # One that the caller may not use is refused and not unknown.
            with suppress(PermissionDenied):
                try:
                    await self._stub.GetTool(tools_pb2.GetToolRequest(name=name, version=version))
                except NotFound:
                    found.append(each)
        return found

    async def execute(
        self, name: str, version: str, arguments: bytes, key: str, run_id: str, thread_id: str, approval: str = ""
    ) -> AsyncGenerator[ToolProgress | Warned | ToolOutcome]:
        """As ports.Tools.execute."""
        request = tools_pb2.ExecuteToolRequest(
            name=name, version=version, arguments_json=arguments, idempotency_key=key, run_id=run_id, thread_id=thread_id,
            approval=approval,
        )  # fmt: skip
        stream = self._stub.ExecuteTool(request)
        outcome: ToolOutcome | None = None
        try:
            async for response in stream:
                kind = response.WhichOneof("event")
                if kind == "result":
                    outcome = _outcome(response.result)
                elif kind == "progress":
                    yield ToolProgress({"fraction": response.progress.fraction, "message": response.progress.message})
                elif kind == "partial_output":
                    yield ToolProgress({"text": response.partial_output.text})
                elif kind == "warning":
                    yield Warned(warned(response.warning))
        finally:
            await stream.aclose()
        if outcome is None:
            raise UpstreamFailed("the tool call ended without a result", reason="UNREACHABLE")
        yield outcome

    async def check(self, name: str, version: str, arguments: bytes) -> Checked:
        """As ports.Tools.check."""
        request = tools_pb2.CheckArgumentsRequest(name=name, version=version, arguments_json=arguments)
        found = await self._stub.CheckArguments(request)
        return Checked(found.arguments_json, [(v.path, v.keyword) for v in found.violations], found.input_schema_json or b"{}")

    async def cancel(self, key: str, *, for_good: bool) -> ToolOutcome | None:
        """As ports.Tools.cancel."""
        try:
            ended = await self._stub.CancelToolCall(tools_pb2.CancelToolCallRequest(idempotency_key=key, for_good=for_good))
        except NotFound:
            return None
        return _outcome(ended.result)

    async def call_of(self, key: str) -> ToolOutcome | None:
        """As ports.Tools.call_of."""
        try:
            found = await self._stub.GetToolCall(tools_pb2.GetToolCallRequest(idempotency_key=key))
        except NotFound:
            return None
        return _outcome(found.result)


def _definition(tool: tools_pb2.Tool) -> ToolDefinition:
    notes = tool.annotations
    return ToolDefinition(
        tool.name, tool.version, tool.description, tool.input_schema_json or b'{"type":"object"}',
        repeatable=notes.read_only or notes.idempotent, timeout_s=tool.timeout.ToTimedelta().total_seconds() or 30.0,
        approval=_APPROVALS.get(tool.approval, ""), read_only=notes.read_only,
    )  # fmt: skip


def _outcome(result: tools_pb2.ToolResult) -> ToolOutcome:
    error = result.error
    return ToolOutcome(
        _OUTCOMES.get(result.outcome, "unknown"), result.output_json, result.version, error.code, error.agent_message,
        int(result.duration.ToTimedelta().total_seconds() * 1000), [citation(c) for c in result.citations],
    )  # fmt: skip


def citation(found: common_pb2.Citation) -> dict:
    """A citation as the data of its event."""
    return {
        "citation_id": found.citation_id, "document_id": found.document_id, "document_version": found.document_version,
        "title": found.title, "heading": found.heading, "char_start": found.char_start, "char_end": found.char_end,
        "content_hash": found.content_hash,
    }  # fmt: skip
