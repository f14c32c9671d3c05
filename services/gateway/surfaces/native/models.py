"""Bodies and parameters that the native API takes. Unknown fields and wrong types are refused, nothing is converted."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from services.common.errors import InvalidInput
from services.gateway.client_tools import MOST_DESCRIPTION_BYTES, MOST_TOOLS, Call
from services.gateway.client_tools import NAME_PATTERN as TOOL_PATTERN
from services.gateway.inputs import MOST_ID_CHARS, MOST_IMAGES, Image, Said, check_answers

ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"
DOCUMENT_ID_PATTERN = r"^[A-Za-z0-9._-]{1,128}$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_LABELS = 16
MAX_LABEL_BYTES = 512
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_TEXT_BYTES = 2 * 1024 * 1024
MOST_PRIORITY = 10
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


def _not_only_dots(value: str) -> str:
    if set(value) == {"."}:
        # Clients and proxies resolve such path segments away, so a thing of that name could never be fetched.
        raise ValueError("must not consist of dots only")
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_LABELS:
        raise ValueError(f"must have at most {MAX_LABELS} entries")
    for key, text in value.items():
        if not key or len(key.encode()) > MAX_LABEL_BYTES or len(text.encode()) > MAX_LABEL_BYTES:
            raise ValueError(f"keys and values must have 1 to {MAX_LABEL_BYTES} and up to {MAX_LABEL_BYTES} bytes")
    return value


def _rfc3339(value: Any) -> Any:
    # Numbers and digits would be taken as seconds or milliseconds, whichever seems likelier.
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be an RFC 3339 time with a time zone, as 2026-01-31T12:00:00Z")
    return value


def _since_1970(value: datetime) -> datetime:
    try:
        if value.timestamp() >= 0:
            Timestamp().FromDatetime(value)
            return value
    except (OverflowError, ValueError):  # at the end of the calendar its time zone leads out of it
        pass
    raise ValueError("must be from 1970 to 9999")


Id = Annotated[str, StringConstraints(pattern=ID_PATTERN), AfterValidator(_not_only_dots)]
DocumentId = Annotated[str, StringConstraints(pattern=DOCUMENT_ID_PATTERN), AfterValidator(_not_only_dots)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ToolName = Annotated[str, StringConstraints(pattern=f"^{TOOL_PATTERN}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=MOST_ID_CHARS)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
IdPath = Annotated[str, Path(pattern=ID_PATTERN)]
DocumentIdPath = Annotated[str, Path(pattern=DOCUMENT_ID_PATTERN)]
NamePath = Annotated[str, Path(pattern=NAME_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Largest number of entries.")]
OfStatus = Annotated[
    list[Literal["queued", "waiting", "running", "succeeded", "failed", "cancelled"]] | None,
    Query(description="Only runs of this status; may be there several times."),
]
OfAgent = Annotated[str | None, Query(min_length=1, max_length=128, description="Only runs of this agent.")]
After = Annotated[str, Query(max_length=1024, description="`next_after` of the page before.")]
Moment = Annotated[datetime, Field(strict=False), BeforeValidator(_rfc3339), AfterValidator(_since_1970)]
TtlMs = Annotated[int, Field(ge=1000, le=3650 * 86_400_000, description="The thread is deleted when it had no new run for so long.")]
Query1k = Annotated[str, StringConstraints(min_length=1, max_length=8000)]


class Body(BaseModel):
    """A JSON body of the native API."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ThreadCreate(Body):
    """A new thread. An id that is already there answers that thread."""

    thread_id: Id | None = None
    metadata: Labels = Field(default_factory=dict)
    ttl_ms: TtlMs | None = Field(None, description="Absent: as the tier says. A thread that has one already keeps it.")


class InputMessage(Body):
    """One message of the input."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT_BYTES)]


class InputImage(Body):
    """An image of an input."""

    blob_id: Id
    detail: Literal["low", "high", "auto"] = "auto"


class ClientToolCall(Body):
    """A call that the client was asked to make."""

    tool_call_id: CallId
    name: ToolName
    arguments: Annotated[str, Field(max_length=MAX_TEXT_BYTES, description="As the model wrote them.")]


class RunMessage(Body):
    """One message of a run's input."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=MAX_TEXT_BYTES)] = ""
    images: Annotated[list[InputImage], Field(max_length=MOST_IMAGES, description="Of role user; blobs of at most 2 MiB.")] = Field(
        default_factory=list
    )
    tool_calls: Annotated[list[ClientToolCall], Field(description="Of role assistant: calls of the client's tools.")] = Field(
        default_factory=list
    )
    tool_call_id: CallId | None = Field(None, description="Of role tool: the call that gave the content.")


class ClientTool(Body):
    """A tool that the client calls itself."""

    name: ToolName
    description: Annotated[str, Field(max_length=MOST_DESCRIPTION_BYTES)] = ""
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of its arguments, an object; at most 32 KiB.")
    strict: bool = Field(False, description="The model's provider is to hold the arguments to the schema.")


class RunLimits(Body):
    """Bounds of one run; what is absent is the agent's, and the tier's bounds hold in any case."""

    deadline_ms: Annotated[int, Field(ge=1, le=86_400_000, description="Active time; waiting in the queue does not count.")] | None = None
    max_steps: Annotated[int, Field(ge=1, le=INT32_MAX, description="Model calls.")] | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_cost_microusd: Annotated[int, Field(ge=1, le=INT64_MAX, description="Millionths of a US dollar.")] | None = None
    max_total_tokens: Annotated[int, Field(ge=1, le=INT64_MAX, description="Input and output tokens of all model calls.")] | None = None


def _messages(value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of messages")
    return value


def _goes_together(value: list[RunMessage]) -> list[RunMessage]:
    last = value[-1]
    if last.role not in ("user", "tool"):
        raise ValueError("the last message must be of role user, or of role tool")
    if last.role == "user" and not last.content.strip() and not last.images:
        raise ValueError("the last message must not be empty")
    for at, message in enumerate(value):
        if (message.role == "tool") != (message.tool_call_id is not None):
            raise ValueError(f"message {at}: tool_call_id goes with the role tool, which needs it")
        if (message.images and message.role != "user") or (message.tool_calls and message.role != "assistant"):
            raise ValueError(f"message {at}: images go with the role user, tool_calls with the role assistant")
    try:
        check_answers(said(value), "tool_call_id", whole=False)
    except InvalidInput as error:
        raise ValueError(error.message) from error
    return value


def said(messages: Sequence[RunMessage]) -> list[Said]:
    """The messages as every surface has them."""
    return [
        Said(
            one.role, one.content, f"message {at}", tuple(Image("", image.detail, image.blob_id) for image in one.images),
            tuple(Call(call.tool_call_id, call.name, call.arguments) for call in one.tool_calls), one.tool_call_id or "",
        )
        for at, one in enumerate(messages)
    ]  # fmt: skip


def _ends_with_user(value: list[InputMessage]) -> list[InputMessage]:
    if value[-1].role != "user":
        raise ValueError("the last message must be of role user")
    if not value[-1].content.strip():
        raise ValueError("the last message must not be empty")
    return value


Input = Annotated[
    list[InputMessage],
    Field(min_length=1, max_length=1000),
    BeforeValidator(_messages, json_schema_input_type=str | list[InputMessage]),
    AfterValidator(_ends_with_user),
]


RunInput = Annotated[
    list[RunMessage],
    Field(min_length=1, max_length=1000),
    BeforeValidator(_messages, json_schema_input_type=str | list[RunMessage]),
    AfterValidator(_goes_together),
]
ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]


class RunCreate(Body):
    """A new run."""

    input: RunInput
    agent: Name | None = Field(None, description="Absent: the first agent of the configuration.")
    limits: RunLimits | None = None
    run_id: Id | None = Field(None, description="Chosen by the caller, so that it can be cancelled before the answer.")
    metadata: Labels = Field(default_factory=dict)
    stream: bool = Field(False, description="Answer with the run's events as server-sent events.")
    on_disconnect: Literal["continue", "cancel"] = Field("continue", description="What becomes of the run when a streaming client leaves.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    on_busy: Literal["enqueue", "reject", "interrupt", "rollback", "steer"] = Field(
        "enqueue", description="What becomes of it where another run of the thread has not ended. `steer`: no run is made."
    )
    start_at: Moment | None = Field(None, description="RFC 3339 with a time zone, at most 366 days ahead. Past: at once.")
    priority: int = Field(0, ge=-MOST_PRIORITY, le=MOST_PRIORITY, description="Higher goes first among the tenant's runs that wait.")
    reset_memory: bool = Field(False, description="The thread's earlier turns are forgotten. Long-term memories and documents stay.")
    append_only_output: bool = Field(False, description="Text once sent is never taken back by `attempt_superseded`.")
    client_tools: list[ClientTool] = Field(default_factory=list, max_length=MOST_TOOLS, description="Tools that the client calls itself.")
    tool_choice: ToolChoice | None = Field(None, description="As OpenAI's, for the first model call.")
    response_format: dict[str, Any] | None = Field(None, description="As OpenAI's: text, json_object or json_schema; at most 64 KiB.")


class RunCancel(Body):
    """Why a run is to end."""

    reason: Annotated[str, Field(max_length=200)] = ""


class DocumentCreate(Body):
    """A document to ingest."""

    title: Annotated[str, Field(min_length=1, max_length=512)]
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_BYTES)]
    content_type: Literal["text/markdown", "text/plain"] = "text/markdown"
    document_id: DocumentId | None = Field(None, description="Absent: made from the title. The same id replaces the version before.")


class DocumentSearch(Body):
    """A search in documents."""

    query: Query1k
    limit: Annotated[int, Field(ge=1, le=50)] = 5
    document_ids: Annotated[list[DocumentId], Field(max_length=100)] = Field(default_factory=list)


class MemoryCreate(Body):
    """A memory to keep."""

    text: Annotated[str, Field(min_length=1, max_length=8000)]
    importance: Annotated[float, Field(gt=0, le=1)] = 0.5
    kind: Literal["fact", "episode"] = "fact"
    session_id: Id | None = None
    expires_at: Moment | None = Field(None, description="RFC 3339, with a time zone.")


class MemorySearch(Body):
    """A search in memories."""

    query: Query1k
    limit: Annotated[int, Field(ge=1, le=100)] = 10


class AgentChat(Body):
    """One message to an agent."""

    user_input: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_BYTES)]
    session_id: Id | None = Field(None, description="Absent: a new session.")
