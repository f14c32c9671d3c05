"""What a turn needs from outside: a model, tools and memory."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from services.common.identity import Principal
from services.orchestrator.records import Limits, RunRef


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """One tool call as the model asked for it; `arguments` may be anything but JSON. `extra` is the model's, as in Message."""

    call_id: str
    name: str
    arguments: bytes
    extra: bytes = b""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation with a model. `extra` is JSON that its provider wants back: what it thought, signed. `images` are
    (blob id, detail), which stand before the text. `content` is what a model call has in place of the text, OpenAI's content parts as
    JSON; it is kept nowhere."""

    role: str
    text: str
    tool_calls: Sequence[ToolRequest] = ()
    tool_call_id: str = ""
    extra: bytes = b""
    images: Sequence[tuple[str, str]] = ()
    content: bytes = b""

    def encode(self) -> bytes:
        """As it is checkpointed."""
        data: dict[str, Any] = {"role": self.role, "text": self.text}
        if self.tool_calls:
            data["tool_calls"] = [[c.call_id, c.name, c.arguments.decode("utf-8", "replace")] for c in self.tool_calls]
        if self.tool_call_id:
            data["tool_call_id"] = self.tool_call_id
        # In places of their own: a replica of the version before reads the rest.
        if self.extra:
            data["extra"] = self.extra.decode()
        if any(call.extra for call in self.tool_calls):
            data["tool_extras"] = [call.extra.decode() for call in self.tool_calls]
        if self.images:
            data["images"] = self.images
        return orjson.dumps(data)

    @classmethod
    def decode(cls, raw: bytes) -> "Message":
        """The inverse of `encode`."""
        data = orjson.loads(raw)
        told = data.get("tool_calls", ())
        extras = data.get("tool_extras") or [""] * len(told)
        calls = tuple(
            ToolRequest(call_id, name, arguments.encode(), extra.encode())
            for (call_id, name, arguments), extra in zip(told, extras, strict=True)
        )
        images = tuple((blob_id, detail) for blob_id, detail in data.get("images", ()))
        return cls(data["role"], data["text"], calls, data.get("tool_call_id", ""), data.get("extra", "").encode(), images)


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool on offer. `parameters` is a JSON Schema."""

    name: str
    version: str
    description: str
    parameters: bytes
    repeatable: bool = False
    timeout_s: float = 30.0
    # Whether a call needs an approval: '' no, waivable (unless the agent's rules waive it), required (by a person).
    approval: str = ""
    # Of the turn and not of the executor; no rule asks for an approval of its calls.
    own: bool = False
    # Changes nothing.
    read_only: bool = False
    # Of the run's client, who makes its calls; `strict`: the model's provider is to hold their arguments to the schema.
    client: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """Arguments as the tool is given them, canonical JSON, or what does not fit: (JSON Pointer, keyword). `schema` is the tool's."""

    arguments: bytes
    violations: Sequence[tuple[str, str]]
    schema: bytes


@dataclass(frozen=True, slots=True)
class Warned:
    """A degradation, as the data of a `warning` event."""

    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that a model appended."""

    text: str


@dataclass(frozen=True, slots=True)
class ModelFinished:
    """The whole answer of a model call. `usage` has the keys of `turn.state.Usage`; `model` and `provider` name who served it.
    `replayed`: it was given before, under the same key, so that `usage` is nothing."""

    message: Message
    finish_reason: str
    usage: Mapping[str, int]
    model: str = ""
    provider: str = ""
    replayed: bool = False
    # Where it does not have the form that was asked for; then it was shown to nobody.
    misfits: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What to ask a model. `stale_s`: how old an answer of before may be that is taken where every model fails; 0 for none.
    `budget_microusd`: what all model calls of the run may cost together; None for no bound. `tool_choice` and `response_format` are
    OpenAI's, as JSON; empty: not sent."""

    model: str
    messages: Sequence[Message]
    tools: Sequence[ToolDefinition]
    temperature: float | None
    max_tokens: int | None
    run_id: str
    thread_id: str
    key: str
    stale_s: float = 0.0
    budget_microusd: int | None = None
    tool_choice: bytes = b""
    response_format: bytes = b""


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """A sign of life of a tool, as the data of a `tool_call_progress` event."""

    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """How a tool call ended: done, failed, unknown or running. `output` is JSON, empty unless done; `cancel` tells of an order to end
    it; `note` is what the model is told with the output: that something else stands in for the tool; `content` are the events of what it
    gave to be shown, as of turn/content.py."""

    outcome: str
    output: bytes = b""
    version: str = ""
    code: str = ""
    message: str = ""
    duration_ms: int = 0
    citations: Sequence[Mapping[str, Any]] = ()
    cancel: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    content: Sequence[tuple[str, Mapping[str, Any]]] = ()


@dataclass(frozen=True, slots=True)
class RecalledPart:
    """One part of the recalled context; kind is turn, memory or document."""

    kind: str
    text: str
    assistant_text: str = ""
    source_id: str = ""
    citation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recalled:
    """What memory gave for a turn."""

    parts: Sequence[RecalledPart]
    warnings: Sequence[Mapping[str, Any]]


class Models(Protocol):
    """Model calls."""

    def stream(self, call: ModelCall) -> AsyncGenerator[TextDelta | Warned | ModelFinished]:
        """Streams a completion; ModelFinished is last. Raises BulkheadError."""
        ...

    async def spent(self, run_id: str) -> tuple[int, int]:
        """What the calls of a run whose money is limited have cost, and what those at work may cost, in micro-USD. Raises
        BulkheadError."""
        ...


class Tools(Protocol):
    """The tool registry and its calls."""

    async def definitions(self, names: Sequence[str]) -> list[ToolDefinition]:
        """Those of `names` (name or name@version) that the caller may use. Raises BulkheadError."""
        ...

    async def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` (name or name@version) that are no tools at all, whoever asks. Raises BulkheadError."""
        ...

    def execute(
        self, name: str, version: str, arguments: bytes, key: str, run_id: str, thread_id: str, approval: str = ""
    ) -> AsyncGenerator[ToolProgress | Warned | ToolOutcome]:
        """Runs a tool; ToolOutcome is last. `approval` is signed, '' where the call has none. Raises BulkheadError."""
        ...

    async def check(self, name: str, version: str, arguments: bytes) -> Checked:
        """What a call would be given, without running it. Raises BulkheadError."""
        ...

    async def call_of(self, key: str) -> ToolOutcome | None:
        """What is known of a call, None when it was never seen. Raises BulkheadError."""
        ...

    async def cancel(self, key: str, *, for_good: bool) -> ToolOutcome | None:
        """Ends a call and answers what became of it; failed with transport.cancelled where it was stopped in time. `for_good`: its key
        runs nothing from now on, also where no call came with it yet; else None stands for such a key. Raises BulkheadError."""
        ...


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A run that another run asks for; `depth` counts from 1."""

    run_id: str
    thread_id: str
    agent: str
    input: tuple[Mapping[str, str], ...]
    limits: Limits
    parent: RunRef
    depth: int
    # Of the run that asks; both empty: none.
    experiment: str = ""
    arm: str = ""


class Children(Protocol):
    """Runs of other agents on behalf of a run."""

    async def create(self, run: ChildRun, principal: Principal) -> Mapping[str, str] | None:
        """Makes the run, once for each id. Answers {reason, message} where it is refused for good. Raises Overloaded."""
        ...

    async def cancel(self, run_id: str, principal: Principal) -> None:
        """Asks for its end. Raises Overloaded."""
        ...

    async def ended(self, run_id: str, thread_id: str, principal: Principal) -> Mapping[str, Any] | None:
        """What became of a run that was made, as its end is told; empty while it is at work, None where it is there no more, so that
        nobody will hear of its end. Raises Overloaded."""
        ...


class Memory(Protocol):
    """The memory service."""

    async def recall(self, session_id: str, query: str, token_budget: int, documents: bool, memories: bool, run_id: str) -> Recalled:
        """Context of one turn. Raises BulkheadError."""
        ...

    async def reset_session(self, session_id: str, ended_before_ms: int, key: str) -> bool:
        """Forgets the turns that ended before that time; False where there is no such session. Raises BulkheadError."""
        ...

    async def append_turn(self, session_id: str, turn: Mapping[str, Any], key: str) -> None:
        """Appends a finished turn (run_id, user_text, assistant_text, ended_ms, tool_calls). Raises BulkheadError."""
        ...

    async def add_memory(self, session_id: str, text: str, importance: float, key: str) -> None:
        """Stores a long-term memory. Raises BulkheadError."""
        ...
