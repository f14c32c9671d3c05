"""ToolService: proto to domain and back, nothing else."""

from collections.abc import Callable
from contextlib import aclosing

import orjson
from bulkhead.common.v1 import common_pb2
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import InvalidInput, NotFound
from services.common.rpc import context as call_context
from services.tool_executor.execution import MAX_ID, Executor, Request
from services.tool_executor.failures import ToolFailure, Violation
from services.tool_executor.outcomes import CallResult, Citation, Event, Failure, Outcome, PartialOutput, Progress, Warned
from services.tool_executor.registry import EXECUTE_SCOPE, Registry
from services.tool_executor.tools import MAX_TIMEOUT_S, Tool

DEFAULT_PAGE = 100
MAX_PAGE = 1000
ERASE_SCOPE = "admin"
_OUTCOMES = {
    Outcome.DONE: tools_pb2.TOOL_OUTCOME_DONE,
    Outcome.FAILED: tools_pb2.TOOL_OUTCOME_FAILED,
    Outcome.UNKNOWN: tools_pb2.TOOL_OUTCOME_UNKNOWN,
    Outcome.RUNNING: tools_pb2.TOOL_OUTCOME_RUNNING,
}

_APPROVALS = {
    "": tools_pb2.TOOL_APPROVAL_NONE,
    "waivable": tools_pb2.TOOL_APPROVAL_WAIVABLE,
    "required": tools_pb2.TOOL_APPROVAL_REQUIRED,
}


class ToolServicer(tools_pb2_grpc.ToolServiceServicer):
    """Serves the registry and its calls."""

    def __init__(self, registry: Callable[[], Registry], executor: Executor) -> None:
        self._registry = registry
        self._executor = executor

    async def ListTools(self, request, context):
        """Tools that the caller may use."""
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidInput.field("page_size", f"must be between 0 and {MAX_PAGE}")
        tools = self._registry().usable(call_context.principal(), request.names, all_versions=request.all_versions)
        start = _offset(request.page_token)
        end = start + (request.page_size or DEFAULT_PAGE)
        return tools_pb2.ListToolsResponse(tools=[_tool(t) for t in tools[start:end]], next_page_token=str(end) if end < len(tools) else "")

    async def GetTool(self, request, context):
        """One tool that the caller may use."""
        tool = self._registry().resolve(_named(request.name), request.version)
        call_context.principal().require(EXECUTE_SCOPE, *tool.scopes)
        return tools_pb2.GetToolResponse(tool=_tool(tool))

    async def ExecuteTool(self, request, context):
        """Runs a tool."""
        call = call_context.current()
        remaining_s = call.remaining_s() if call is not None else None
        asked = Request(
            name=_named(request.name),
            version=request.version,
            arguments_json=request.arguments_json,
            key=request.idempotency_key,
            run_id=request.run_id,
            thread_id=request.thread_id,
            approval=request.approval,
        )
        events = self._executor.execute(asked, call_context.principal(), MAX_TIMEOUT_S if remaining_s is None else remaining_s)
        async with aclosing(events):
            async for event in events:
                yield _response(event)

    async def CheckArguments(self, request, context):
        """What a call with these arguments would be given."""
        try:
            tool, arguments, repaired = self._executor.checked(
                _named(request.name), request.version, request.arguments_json, call_context.principal()
            )
        except ToolFailure as failure:
            tool = self._registry().resolve(request.name, request.version)
            return tools_pb2.CheckArgumentsResponse(
                violations=[_violation(v) for v in failure.violations], input_schema_json=tool.input_schema.json, version=tool.version
            )
        return tools_pb2.CheckArgumentsResponse(
            arguments_json=arguments, repaired_paths=repaired, input_schema_json=tool.input_schema.json, version=tool.version
        )

    async def GetToolCall(self, request, context):
        """What is known of a call."""
        principal = call_context.principal()
        principal.require(EXECUTE_SCOPE)
        if not request.idempotency_key:
            raise InvalidInput.field("idempotency_key", "is required")
        known = await self._executor.known(principal.tenant, request.idempotency_key)
        if known is None:
            raise NotFound("no tool call has this key", reason="TOOL_CALL_NOT_FOUND")
        record, result = known
        started_at = Timestamp()
        started_at.FromMilliseconds(int(record.started_at * 1000))
        return tools_pb2.GetToolCallResponse(name=record.tool, version=record.version, result=_result(result), started_at=started_at)

    async def CancelToolCall(self, request, context):
        """Ends a call."""
        principal = call_context.principal()
        principal.require(EXECUTE_SCOPE)
        if not 0 < len(request.idempotency_key.encode()) <= MAX_ID:
            raise InvalidInput.field("idempotency_key", f"must be 1 to {MAX_ID} bytes")
        result = await self._executor.stop(principal.tenant, request.idempotency_key, for_good=request.for_good)
        if result is None:
            raise NotFound("no tool call has this key", reason="TOOL_CALL_NOT_FOUND")
        return tools_pb2.CancelToolCallResponse(result=_result(result))

    async def EraseSubject(self, request, context):
        """Erases the calls of a user. Doing it again is harmless, so the key needs no record."""
        principal = call_context.principal()
        principal.require(ERASE_SCOPE)
        if not request.user:
            raise InvalidInput.field("user", "is required")
        count = await self._executor.erase(principal.tenant, request.user)
        return tools_pb2.EraseSubjectResponse(erased=[tools_pb2.ErasedKind(kind="tool_calls", count=count)])


def _named(name: str) -> str:
    if not name:
        raise InvalidInput.field("name", "is required")
    return name


def _offset(token: str) -> int:
    if not token:
        return 0
    if not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidInput.field("page_token", "is not one of ours")
    return int(token)


def _tool(tool: Tool) -> tools_pb2.Tool:
    a = tool.annotations
    message = tools_pb2.Tool(
        name=tool.name,
        version=tool.version,
        description=tool.description,
        input_schema_json=tool.input_schema.json,
        output_schema_json=tool.output_schema.json if tool.output_schema else b"",
        annotations=tools_pb2.ToolAnnotations(
            read_only=a.read_only, destructive=a.destructive, idempotent=a.idempotent, open_world=a.open_world
        ),
        required_scopes=tool.scopes,
        digest=tool.digest,
        approval=_APPROVALS[tool.approval],
    )
    message.timeout.FromMilliseconds(int(tool.limits.timeout_s * 1000))
    return message


def _response(event: Event | CallResult) -> tools_pb2.ExecuteToolResponse:
    match event:
        case CallResult():
            return tools_pb2.ExecuteToolResponse(result=_result(event))
        case Progress(fraction, message):
            return tools_pb2.ExecuteToolResponse(progress=tools_pb2.ToolProgress(fraction=fraction, message=message))
        case PartialOutput(text):
            return tools_pb2.ExecuteToolResponse(partial_output=tools_pb2.ToolPartialOutput(text=text))
        case Warned(code, user_message, attributes):
            warning = common_pb2.Warning(code=code, user_message=user_message, attributes_json=orjson.dumps(attributes))
            return tools_pb2.ExecuteToolResponse(warning=warning)


def _result(result: CallResult) -> tools_pb2.ToolResult:
    message = tools_pb2.ToolResult(
        outcome=_OUTCOMES[result.outcome],
        output_json=result.output,
        version=result.version,
        attempts=result.attempts,
        replayed=result.replayed,
        citations=[_citation(c) for c in result.citations],
    )
    message.duration.FromMicroseconds(round(result.duration_s * 1e6))
    if result.error is not None:
        message.error.CopyFrom(_error(result.error))
    return message


def _error(failure: Failure) -> tools_pb2.ToolError:
    error = tools_pb2.ToolError(
        code=failure.code,
        retryable=failure.retryable,
        agent_message=failure.agent_message,
        developer_message=failure.developer_message,
        violations=[_violation(v) for v in failure.violations],
    )
    if failure.retry_after_s is not None:
        error.retry_after.FromNanoseconds(int(failure.retry_after_s * 1e9))
    return error


def _violation(v: Violation) -> tools_pb2.SchemaViolation:
    expected = b"" if v.expected is None else orjson.dumps(v.expected, default=str)
    return tools_pb2.SchemaViolation(path=v.path, keyword=v.keyword, expected_json=expected)


def _citation(c: Citation) -> common_pb2.Citation:
    return common_pb2.Citation(
        citation_id=c.citation_id,
        document_id=c.document_id,
        document_version=c.document_version,
        title=c.title,
        char_start=c.char_start,
        char_end=c.char_end,
        content_hash=c.content_hash,
        heading=c.heading,
    )
