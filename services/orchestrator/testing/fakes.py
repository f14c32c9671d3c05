"""Deterministic stand-ins for the services behind the ports, as real gRPC servers. Nothing here is imported by a service.

The model obeys its user: `say <text>` streams the text word by word; `tool <name> <json>` repeated on lines makes one
tool call a line, a step each, and then quotes the results; `tools` on the first line puts all calls into one step.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bulkhead.common.v1 import common_pb2
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc

from services.common import testing
from services.common.approval import canonical
from services.common.errors import BulkheadError, InvalidInput, NotFound
from services.common.rpc import context as call_context
from services.common.rpc.server import Service
from services.common.settings import ServiceSettings
from services.orchestrator.testing.erasable import Erasable

# As memory.
MOST_TURN_BYTES = 512 * 1024
DONE, FAILED = tools_pb2.TOOL_OUTCOME_DONE, tools_pb2.TOOL_OUTCOME_FAILED
UNKNOWN, RUNNING = tools_pb2.TOOL_OUTCOME_UNKNOWN, tools_pb2.TOOL_OUTCOME_RUNNING


class Gate:
    """Holds those who pass, once it is closed, until it is opened."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    def close(self) -> None:
        """Holds from now on."""
        self._open.clear()

    def open(self) -> None:
        """Lets everybody pass."""
        self._open.set()

    async def passed(self) -> None:
        """Returns when it is open."""
        if not self._open.is_set():
            self.waiting += 1
            try:
                await self._open.wait()
            finally:
                self.waiting -= 1


@dataclass
class ModelCallSeen:
    """One model call: its request and the context that it came with."""

    request: llm_pb2.CompletionInput
    context: call_context.CallContext
    cancelled: bool = False
    done: bool = False


class FakeModels(llm_pb2_grpc.LlmServiceServicer):
    """LlmService. `gate` is passed after `hold_after` words; `failure` is raised instead of an answer."""

    def __init__(self) -> None:
        self.erasing = Erasable()
        self.calls: list[ModelCallSeen] = []
        self.gate = Gate()
        self.hold_after = 2
        self.failure: BulkheadError | None = None
        self.reply: Callable[[llm_pb2.CompletionInput], llm_pb2.Message] = obedient
        self.finish_reason = ""
        self.warnings: list[common_pb2.Warning] = []

    async def StreamComplete(self, request, context):
        """Streams the reply."""
        seen = ModelCallSeen(request.input, call_context.current())
        self.calls.append(seen)
        try:
            if self.failure is not None:
                raise self.failure
            message = self.reply(request.input)
            for warning in self.warnings:
                yield llm_pb2.StreamCompleteResponse(warning=warning)
            words = message.text.split(" ") if message.text else []
            if not words:
                await self.gate.passed()
            for number, word in enumerate(words):
                if number == self.hold_after:
                    await self.gate.passed()
                yield llm_pb2.StreamCompleteResponse(text_delta=llm_pb2.TextDelta(text=word if number == 0 else " " + word))
            usage = common_pb2.Usage(input_tokens=10, output_tokens=len(words) or 1, cost_microusd=7)
            reason = self.finish_reason or ("tool_calls" if message.tool_calls else "stop")
            outcome = llm_pb2.CompletionOutcome(finish_reason=reason, model=request.input.model, usage=usage, attempts=1)
            seen.done = True
            yield llm_pb2.StreamCompleteResponse(finished=llm_pb2.CompletionFinished(message=message, outcome=outcome))
        finally:
            seen.cancelled = not seen.done

    async def EraseSubject(self, request, context):
        """Remembers whom."""
        self.erasing.erase(request.user)
        return llm_pb2.EraseSubjectResponse(erased=[llm_pb2.ErasedKind(kind="cached_answers", count=1)])


def obedient(request: llm_pb2.CompletionInput) -> llm_pb2.Message:
    """Does what the last user message says."""
    last = max(i for i, m in enumerate(request.messages) if m.role == "user")
    asked, after = request.messages[last].text, request.messages[last + 1 :]
    if asked.startswith("say "):
        return llm_pb2.Message(role="assistant", text=asked[4:])
    if asked == "echo context":
        return llm_pb2.Message(role="assistant", text="|".join(f"{m.role}:{m.text}" for m in request.messages[1:]))
    lines = asked.split("\n")
    together = lines[0] == "tools"
    wanted = [line.split(" ", 2)[1:] for line in lines if line.startswith("tool ")]
    results = [m.text for m in after if m.role == "tool"]
    todo = wanted[len(results) :] if together else wanted[len(results) : len(results) + 1]
    if todo:
        calls = [
            llm_pb2.ToolCall(tool_call_id=f"c{len(results) + i}", name=name, arguments_json=arguments.encode())
            for i, (name, arguments) in enumerate(todo)
        ]
        return llm_pb2.Message(role="assistant", tool_calls=calls)
    return llm_pb2.Message(role="assistant", text="Results: " + " ; ".join(results))


@dataclass
class ToolCallSeen:
    """One call as the executor knows it."""

    name: str
    arguments: Mapping[str, Any]
    executions: int = 0
    outcome: int = RUNNING
    output: bytes = b""
    context: call_context.CallContext | None = None


class FakeTools(tools_pb2_grpc.ToolServiceServicer):
    """ToolService with `calculator` (repeatable) and `send_mail` (not). A key that was seen is not executed again."""

    def __init__(self) -> None:
        self.erasing = Erasable()
        self.calls: dict[str, ToolCallSeen] = {}
        self.gate = Gate()
        self.sent: list[str] = []
        self.failure: BulkheadError | None = None
        self.listed = 0
        self.progress = False
        self.warnings: list[common_pb2.Warning] = []
        # What GetToolCall answers instead of what it knows.
        self.forced: dict[str, int] = {}
        self.cancels: list[tuple[str, bool]] = []

    async def ListTools(self, request, context):
        """Both tools."""
        self.listed += 1
        notes = {"calculator": tools_pb2.ToolAnnotations(read_only=True, idempotent=True), "send_mail": tools_pb2.ToolAnnotations()}
        return tools_pb2.ListToolsResponse(
            tools=[
                tools_pb2.Tool(name=name, version="1.0.0", description=name, input_schema_json=b'{"type":"object"}', annotations=note)
                for name, note in notes.items()
                if not request.names or name in request.names
            ]
        )

    async def GetTool(self, request, context):
        """One of them."""
        listed = await self.ListTools(tools_pb2.ListToolsRequest(names=[request.name]), context)
        if not listed.tools:
            raise NotFound("no such tool", reason="TOOL_NOT_FOUND")
        return tools_pb2.GetToolResponse(tool=listed.tools[0])

    async def ExecuteTool(self, request, context):
        """Runs once a key, or raises `failure`."""
        if self.failure is not None:
            raise self.failure
        key = request.idempotency_key
        seen = self.calls.get(key)
        if seen is None:
            arguments = json.loads(request.arguments_json)
            seen = self.calls[key] = ToolCallSeen(request.name, arguments, context=call_context.current())
            seen.executions += 1
            if self.progress:
                yield tools_pb2.ExecuteToolResponse(progress=tools_pb2.ToolProgress(fraction=0.5, message="half"))
            # The work goes on when the caller is gone, as it would in a remote system.
            await asyncio.shield(asyncio.ensure_future(self._run(seen)))
        elif seen.outcome != DONE:
            seen.executions += 1
            await self._run(seen)
        for warning in self.warnings:
            yield tools_pb2.ExecuteToolResponse(warning=warning)
        yield tools_pb2.ExecuteToolResponse(result=self._result(seen))

    async def _run(self, seen: ToolCallSeen) -> None:
        await self.gate.passed()
        if seen.name == "send_mail":
            self.sent.append(seen.arguments.get("to", ""))
            seen.output = b'{"sent":true}'
        else:
            # Only sums, so that no evaluation is needed.
            total = sum(int(part) for part in seen.arguments.get("expression", "0").split("+"))
            seen.output = json.dumps({"result": total}).encode()
        seen.outcome = DONE

    def _result(self, seen: ToolCallSeen, outcome: int | None = None) -> tools_pb2.ToolResult:
        outcome = seen.outcome if outcome is None else outcome
        error = tools_pb2.ToolError(code="transport.cancelled") if outcome == FAILED else None
        output = seen.output if outcome == DONE else b""
        return tools_pb2.ToolResult(outcome=outcome, output_json=output, error=error, version="1.0.0", attempts=1)

    async def CheckArguments(self, request, context):
        """Everything fits but what holds `wrong`."""
        arguments = json.loads(request.arguments_json)
        violations = [tools_pb2.SchemaViolation(path="/wrong", keyword="additionalProperties")] if "wrong" in arguments else []
        fitting = b"" if violations else canonical(arguments)
        return tools_pb2.CheckArgumentsResponse(
            arguments_json=fitting, violations=violations, input_schema_json=b'{"type":"object"}', version="1.0.0"
        )

    async def CancelToolCall(self, request, context):
        """What becomes of a call as far as the executor can tell; the remote work goes on."""
        key = request.idempotency_key
        self.cancels.append((key, request.for_good))
        seen = self.calls.get(key)
        if seen is None and not request.for_good:
            raise NotFound("there is no such call")
        if seen is None:
            seen = self.calls[key] = ToolCallSeen("", {}, outcome=FAILED)
        known = seen.outcome if seen.outcome != RUNNING else FAILED if seen.name == "calculator" else UNKNOWN
        seen.outcome = known
        return tools_pb2.CancelToolCallResponse(result=self._result(seen, self.forced.get(key, known)))

    async def GetToolCall(self, request, context):
        """By key."""
        seen = self.calls.get(request.idempotency_key)
        if seen is None:
            raise NotFound("there is no such call")
        result = self._result(seen, self.forced.get(request.idempotency_key))
        return tools_pb2.GetToolCallResponse(name=seen.name, version="1.0.0", result=result)

    async def EraseSubject(self, request, context):
        """Remembers whom."""
        self.erasing.erase(request.user)
        return tools_pb2.EraseSubjectResponse(erased=[tools_pb2.ErasedKind(kind="tool_calls", count=1)])


class _Window(dict[str, memory_pb2.Turn]):
    """Turns by run; of those `closed` none is taken."""

    def __init__(self, turns: Mapping[str, memory_pb2.Turn] | None = None) -> None:
        super().__init__(turns or {})
        self.closed: set[str] = set()


class FakeSessions(memory_pb2_grpc.SessionServiceServicer):
    """SessionService: keeps turns by run; recalls them with the parts in `extra`."""

    def __init__(self) -> None:
        self.turns: dict[tuple[str, str], _Window] = defaultdict(_Window)
        self.replaced: dict[tuple[str, str], int] = {}
        self.deleted: list[str] = []
        self.appends: list[str] = []
        self.resets: list[str] = []
        self.extra: list[memory_pb2.RecallPart] = []
        self.failure: BulkheadError | None = None
        self.append_failure: BulkheadError | None = None
        self.gate, self.recalls = Gate(), Gate()
        self.contexts: list[call_context.CallContext] = []

    async def Recall(self, request, context):
        """Recent turns, then `extra`."""
        await self.recalls.passed()
        self.contexts.append(call_context.current())
        if self.failure is not None:
            raise self.failure
        turns = self.turns[call_context.principal().tenant, request.session_id].values()
        parts = [
            memory_pb2.RecallPart(
                kind=memory_pb2.RECALL_KIND_RECENT_TURN, text=t.user_text, assistant_text=t.assistant_text, source_id=t.run_id
            )
            for t in turns
        ]
        return memory_pb2.RecallResponse(parts=[*parts, *self.extra])

    async def ResetSession(self, request, context):
        """Forgets what ended before the time that is given."""
        if self.failure is not None:
            raise self.failure
        self.resets.append(request.idempotency_key)
        turns = self.turns[call_context.principal().tenant, request.session_id]
        before_ms = request.ended_before.ToMilliseconds()
        for run_id in [run_id for run_id, turn in turns.items() if turn.ended_at.ToMilliseconds() < before_ms]:
            del turns[run_id]
        return memory_pb2.ResetSessionResponse()

    async def AppendTurns(self, request, context):
        """Once a run."""
        await self.gate.passed()
        self.appends.append(request.idempotency_key)
        if self.append_failure is not None:
            raise self.append_failure
        session = self.turns[call_context.principal().tenant, request.session_id]
        for turn in request.turns:
            if turn.run_id not in session.closed:
                session.setdefault(turn.run_id, turn)
        return memory_pb2.AppendTurnsResponse(window_turns=len(session))

    async def ReplaceSession(self, request, context):
        """These turns and no others; those of the runs forgotten stay away."""
        if self.append_failure is not None:
            raise self.append_failure
        if any(turn.ByteSize() > MOST_TURN_BYTES for turn in request.turns):
            raise InvalidInput.field("turns", "must be smaller")
        name = call_context.principal().tenant, request.session_id
        if 0 < request.as_of <= self.replaced.get(name, 0):
            return memory_pb2.ReplaceSessionResponse(window_turns=len(self.turns[name]))
        self.replaced[name] = request.as_of
        self.turns[name] = _Window({turn.run_id: turn for turn in request.turns})
        self.turns[name].closed |= set(request.forgotten_run_ids)
        return memory_pb2.ReplaceSessionResponse(window_turns=len(self.turns[name]))

    async def DeleteSession(self, request, context):
        """Its turns are gone; what comes late is kept away by the service itself."""
        if self.append_failure is not None:
            raise self.append_failure
        self.deleted.append(request.session_id)
        return memory_pb2.DeleteSessionResponse(
            deleted_turns=len(self.turns.pop((call_context.principal().tenant, request.session_id), {}))
        )


class FakeMemories(memory_pb2_grpc.MemoryServiceServicer):
    """MemoryService: keeps what is added, once a key."""

    def __init__(self) -> None:
        self.erasing = Erasable()
        self.added: dict[str, memory_pb2.NewMemory] = {}

    async def AddMemories(self, request, context):
        """Once a key."""
        self.added.setdefault(request.idempotency_key, request.memories[0])
        return memory_pb2.AddMemoriesResponse(memories=[memory_pb2.Memory(text=m.text) for m in request.memories])

    async def EraseSubject(self, request, context):
        """Remembers whom, and which sessions were named."""
        self.erasing.erase(request.user)
        self.erasing.sessions += request.session_ids
        return memory_pb2.EraseSubjectResponse(erased=[memory_pb2.ErasedKind(kind="sessions", count=len(request.session_ids))])


@dataclass
class Fakes:
    """All services behind the orchestrator, with their addresses."""

    models: FakeModels = field(default_factory=FakeModels)
    tools: FakeTools = field(default_factory=FakeTools)
    sessions: FakeSessions = field(default_factory=FakeSessions)
    memories: FakeMemories = field(default_factory=FakeMemories)
    addresses: dict[str, str] = field(default_factory=dict)


def _made(service: Callable[[], Service], settings: ServiceSettings) -> Service:
    """A service that needs none of its settings."""
    return service()


@asynccontextmanager
async def fakes(identities: testing.Identities, without: frozenset[str] = frozenset(), made: Fakes | None = None) -> AsyncIterator[Fakes]:
    """Serves all fakes, or those `made` already, but those `without`, whose addresses lead nowhere."""
    made = made or Fakes()
    servicers = {
        "llm_gateway": [partial(llm_pb2_grpc.add_LlmServiceServicer_to_server, made.models)],
        "tool_executor": [partial(tools_pb2_grpc.add_ToolServiceServicer_to_server, made.tools)],
        "memory": [
            partial(memory_pb2_grpc.add_SessionServiceServicer_to_server, made.sessions),
            partial(memory_pb2_grpc.add_MemoryServiceServicer_to_server, made.memories),
        ],
    }
    async with AsyncExitStack() as stack:
        for name, add in servicers.items():
            port = testing.free_port()
            made.addresses[name] = f"127.0.0.1:{port}"
            if name not in without:
                service = partial(Service, name, add, verifier=identities.verifier)
                quick: dict[str, Any] = {"grpc_port": port, "drain_grace_s": 0.2}
                await stack.enter_async_context(testing.running(ServiceSettings(**quick), partial(_made, service)))
        yield made
