"""Answers of the native API, as its OpenAPI document describes them. The answers themselves are made by shapes.py."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Out(BaseModel):
    """An answer; clients must ignore fields that they do not know."""

    model_config = ConfigDict(extra="allow")


class FieldError(Out):
    """One field that is wrong."""

    field: str
    detail: str


class Problem(Out):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    reason: str
    retryable: bool
    request_id: str
    trace_id: str
    errors: list[FieldError] = Field(default_factory=list)


class ThreadOut(Out):
    """A thread."""

    thread_id: str
    created_at: str | None
    last_seq: int
    metadata: dict[str, str]
    parent_thread_id: str | None
    forked_at_seq: int
    expires_at: str | None
    oldest_seq: int


class UsageOut(Out):
    """What a run consumed."""

    input_tokens: int
    output_tokens: int
    cost_microusd: int
    model_calls: int
    tool_calls: int


class CitationOut(Out):
    """A source; char_start and char_end count Unicode code points of the document's text."""

    citation_id: str
    document_id: str
    title: str
    heading: str
    char_start: int
    char_end: int


class RunErrorOut(Out):
    """Why a run failed."""

    reason: str
    message: str
    retryable: bool


class ClientToolCallOut(Out):
    """A call that the client of a run is asked to make; its arguments are as the model wrote them."""

    tool_call_id: str
    name: str
    arguments: str


class RunOut(Out):
    """A run."""

    run_id: str
    thread_id: str
    agent: str
    agent_version: str
    status: Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled"]
    cancel_requested: bool
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    output_text: str
    finish_reason: str | None
    error: RunErrorOut | None
    usage: UsageOut
    citations: list[CitationOut]
    attempt: int
    first_seq: int
    terminal_seq: int
    queue_position: int | None
    expected_wait_ms: int | None
    start_at: str | None
    priority: int
    rolled_back_seq: int | None
    parent_run_id: str | None
    experiment: str | None
    arm: str | None
    client_tool_calls: list[ClientToolCallOut] | None = Field(
        None,
        description="With the finish_reason `tool_calls`: what the client is asked to call. The next run of the thread brings the results.",
    )
    metadata: dict[str, str] | None = Field(None, description="The caller's labels; null in lists.")
    steer_number: int = Field(0, description="Where no run was made: number of the message that steers this one.")


class CancelOut(Out):
    """A cancel that was recorded; `run` is absent where the id is not known yet."""

    run_id: str
    cancel_requested: bool
    run: RunOut | None


class EventOut(Out):
    """One event of a thread's log."""

    seq: int
    ts: str
    thread_id: str
    run_id: str | None
    attempt: int
    type: str
    data: dict[str, Any]
    provisional: bool
    trace_id: str | None
    schema_version: int


class ReplayOut(Out):
    """The log of a thread."""

    thread_id: str
    events: list[EventOut]


class DocumentOut(Out):
    """A document."""

    document_id: str
    version: int
    title: str
    content_type: str
    chunk_count: int
    size_bytes: int
    content_hash: str
    created_at: str | None


class PassageOut(Out):
    """A passage of a document."""

    text: str
    citation: CitationOut
    score: float


class MemoryOut(Out):
    """A long-term memory."""

    memory_id: str
    text: str
    importance: float
    kind: str
    session_id: str | None
    created_at: str | None
    expires_at: str | None


class AgentOut(Out):
    """An agent."""

    name: str
    version: str
    description: str
    model: str
    tools: list[str]


class ToolOut(Out):
    """A tool."""

    name: str
    version: str
    description: str
    input_schema: Any


class WarningOut(Out):
    """A degradation that the user should see."""

    code: str
    user_message: str


class ChatOut(Out):
    """The answer of an agent."""

    result: str
    session_id: str
    status: Literal["queued", "running", "waiting", "succeeded"]
    latency_ms: int
    run_id: str
    citations: list[dict[str, Any]]
    usage: dict[str, Any]
    warnings: list[dict[str, Any]]


class ThreadPage(Out):
    """Threads, newest first."""

    data: list[ThreadOut]
    next_after: str | None


class RunPage(Out):
    """Runs, newest first."""

    data: list[RunOut]
    next_after: str | None


class DocumentPage(Out):
    """Documents, newest first."""

    data: list[DocumentOut]
    next_after: str | None


class MemoryPage(Out):
    """Memories, newest first."""

    data: list[MemoryOut]
    next_after: str | None


class AgentPage(Out):
    """Agents, in the order of the configuration."""

    data: list[AgentOut]
    next_after: str | None


class ToolPage(Out):
    """Tools by name."""

    data: list[ToolOut]
    next_after: str | None


class PassageList(Out):
    """Passages by falling score."""

    data: list[PassageOut]
    warnings: list[WarningOut]


class MemoryList(Out):
    """Memories by falling score."""

    data: list[MemoryOut]
    warnings: list[WarningOut]
