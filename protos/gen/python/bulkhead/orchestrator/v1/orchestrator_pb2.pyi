import datetime

from bulkhead.common.v1 import common_pb2 as _common_pb2
from bulkhead.orchestrator.v1 import approvals_pb2 as _approvals_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATUS_UNSPECIFIED: _ClassVar[RunStatus]
    RUN_STATUS_QUEUED: _ClassVar[RunStatus]
    RUN_STATUS_RUNNING: _ClassVar[RunStatus]
    RUN_STATUS_SUCCEEDED: _ClassVar[RunStatus]
    RUN_STATUS_FAILED: _ClassVar[RunStatus]
    RUN_STATUS_CANCELLED: _ClassVar[RunStatus]
    RUN_STATUS_WAITING: _ClassVar[RunStatus]

class OnDisconnect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_DISCONNECT_UNSPECIFIED: _ClassVar[OnDisconnect]
    ON_DISCONNECT_CONTINUE: _ClassVar[OnDisconnect]
    ON_DISCONNECT_CANCEL: _ClassVar[OnDisconnect]

class OnBusy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_BUSY_UNSPECIFIED: _ClassVar[OnBusy]
    ON_BUSY_ENQUEUE: _ClassVar[OnBusy]
    ON_BUSY_REJECT: _ClassVar[OnBusy]
    ON_BUSY_INTERRUPT: _ClassVar[OnBusy]
    ON_BUSY_ROLLBACK: _ClassVar[OnBusy]
    ON_BUSY_STEER: _ClassVar[OnBusy]

class ToolCallContinuation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOOL_CALL_CONTINUATION_UNSPECIFIED: _ClassVar[ToolCallContinuation]
    TOOL_CALL_CONTINUATION_SKIP: _ClassVar[ToolCallContinuation]
    TOOL_CALL_CONTINUATION_FAIL: _ClassVar[ToolCallContinuation]
    TOOL_CALL_CONTINUATION_RETRY: _ClassVar[ToolCallContinuation]
    TOOL_CALL_CONTINUATION_SUBSTITUTE: _ClassVar[ToolCallContinuation]

class Thumbs(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THUMBS_UNSPECIFIED: _ClassVar[Thumbs]
    THUMBS_UP: _ClassVar[Thumbs]
    THUMBS_DOWN: _ClassVar[Thumbs]

class FeedbackSignal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_SIGNAL_UNSPECIFIED: _ClassVar[FeedbackSignal]
    FEEDBACK_SIGNAL_REGENERATE: _ClassVar[FeedbackSignal]
    FEEDBACK_SIGNAL_EDIT: _ClassVar[FeedbackSignal]
    FEEDBACK_SIGNAL_COPY: _ClassVar[FeedbackSignal]
    FEEDBACK_SIGNAL_ABANDON: _ClassVar[FeedbackSignal]
    FEEDBACK_SIGNAL_CORRECTION: _ClassVar[FeedbackSignal]
    FEEDBACK_SIGNAL_DWELL: _ClassVar[FeedbackSignal]
    FEEDBACK_SIGNAL_SCROLL: _ClassVar[FeedbackSignal]
RUN_STATUS_UNSPECIFIED: RunStatus
RUN_STATUS_QUEUED: RunStatus
RUN_STATUS_RUNNING: RunStatus
RUN_STATUS_SUCCEEDED: RunStatus
RUN_STATUS_FAILED: RunStatus
RUN_STATUS_CANCELLED: RunStatus
RUN_STATUS_WAITING: RunStatus
ON_DISCONNECT_UNSPECIFIED: OnDisconnect
ON_DISCONNECT_CONTINUE: OnDisconnect
ON_DISCONNECT_CANCEL: OnDisconnect
ON_BUSY_UNSPECIFIED: OnBusy
ON_BUSY_ENQUEUE: OnBusy
ON_BUSY_REJECT: OnBusy
ON_BUSY_INTERRUPT: OnBusy
ON_BUSY_ROLLBACK: OnBusy
ON_BUSY_STEER: OnBusy
TOOL_CALL_CONTINUATION_UNSPECIFIED: ToolCallContinuation
TOOL_CALL_CONTINUATION_SKIP: ToolCallContinuation
TOOL_CALL_CONTINUATION_FAIL: ToolCallContinuation
TOOL_CALL_CONTINUATION_RETRY: ToolCallContinuation
TOOL_CALL_CONTINUATION_SUBSTITUTE: ToolCallContinuation
THUMBS_UNSPECIFIED: Thumbs
THUMBS_UP: Thumbs
THUMBS_DOWN: Thumbs
FEEDBACK_SIGNAL_UNSPECIFIED: FeedbackSignal
FEEDBACK_SIGNAL_REGENERATE: FeedbackSignal
FEEDBACK_SIGNAL_EDIT: FeedbackSignal
FEEDBACK_SIGNAL_COPY: FeedbackSignal
FEEDBACK_SIGNAL_ABANDON: FeedbackSignal
FEEDBACK_SIGNAL_CORRECTION: FeedbackSignal
FEEDBACK_SIGNAL_DWELL: FeedbackSignal
FEEDBACK_SIGNAL_SCROLL: FeedbackSignal

class Thread(_message.Message):
    __slots__ = ("thread_id", "created_at", "last_seq", "metadata", "parent_thread_id", "forked_at_seq", "expires_at", "oldest_seq")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PARENT_THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    FORKED_AT_SEQ_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SEQ_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    created_at: _timestamp_pb2.Timestamp
    last_seq: int
    metadata: _containers.ScalarMap[str, str]
    parent_thread_id: str
    forked_at_seq: int
    expires_at: _timestamp_pb2.Timestamp
    oldest_seq: int
    def __init__(self, thread_id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_seq: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., parent_thread_id: _Optional[str] = ..., forked_at_seq: _Optional[int] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., oldest_seq: _Optional[int] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("seq", "run_id", "step", "beginning")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BEGINNING_FIELD_NUMBER: _ClassVar[int]
    seq: int
    run_id: str
    step: int
    beginning: bool
    def __init__(self, seq: _Optional[int] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., beginning: _Optional[bool] = ...) -> None: ...

class ForkThreadRequest(_message.Message):
    __slots__ = ("thread_id", "at", "new_thread_id", "idempotency_key", "metadata", "ttl", "continue_run")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    NEW_THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_RUN_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    at: Checkpoint
    new_thread_id: str
    idempotency_key: str
    metadata: _containers.ScalarMap[str, str]
    ttl: _duration_pb2.Duration
    continue_run: bool
    def __init__(self, thread_id: _Optional[str] = ..., at: _Optional[_Union[Checkpoint, _Mapping]] = ..., new_thread_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., continue_run: _Optional[bool] = ...) -> None: ...

class ForkThreadResponse(_message.Message):
    __slots__ = ("thread", "run")
    THREAD_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    thread: Thread
    run: Run
    def __init__(self, thread: _Optional[_Union[Thread, _Mapping]] = ..., run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class RollbackThreadRequest(_message.Message):
    __slots__ = ("thread_id", "to", "idempotency_key")
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    to: Checkpoint
    idempotency_key: str
    def __init__(self, thread_id: _Optional[str] = ..., to: _Optional[_Union[Checkpoint, _Mapping]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class RollbackThreadResponse(_message.Message):
    __slots__ = ("thread", "seq")
    THREAD_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    thread: Thread
    seq: int
    def __init__(self, thread: _Optional[_Union[Thread, _Mapping]] = ..., seq: _Optional[int] = ...) -> None: ...

class DeleteThreadRequest(_message.Message):
    __slots__ = ("thread_id", "idempotency_key")
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    idempotency_key: str
    def __init__(self, thread_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class DeleteThreadResponse(_message.Message):
    __slots__ = ("completed",)
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    completed: bool
    def __init__(self, completed: _Optional[bool] = ...) -> None: ...

class CreateThreadRequest(_message.Message):
    __slots__ = ("thread_id", "metadata", "idempotency_key", "ttl")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    metadata: _containers.ScalarMap[str, str]
    idempotency_key: str
    ttl: _duration_pb2.Duration
    def __init__(self, thread_id: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., idempotency_key: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CreateThreadResponse(_message.Message):
    __slots__ = ("thread",)
    THREAD_FIELD_NUMBER: _ClassVar[int]
    thread: Thread
    def __init__(self, thread: _Optional[_Union[Thread, _Mapping]] = ...) -> None: ...

class GetThreadRequest(_message.Message):
    __slots__ = ("thread_id",)
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    def __init__(self, thread_id: _Optional[str] = ...) -> None: ...

class GetThreadResponse(_message.Message):
    __slots__ = ("thread",)
    THREAD_FIELD_NUMBER: _ClassVar[int]
    thread: Thread
    def __init__(self, thread: _Optional[_Union[Thread, _Mapping]] = ...) -> None: ...

class GetThreadSnapshotRequest(_message.Message):
    __slots__ = ("thread_id",)
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    def __init__(self, thread_id: _Optional[str] = ...) -> None: ...

class GetThreadSnapshotResponse(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: ThreadSnapshot
    def __init__(self, snapshot: _Optional[_Union[ThreadSnapshot, _Mapping]] = ...) -> None: ...

class ThreadSnapshot(_message.Message):
    __slots__ = ("thread", "resume_after_seq", "runs", "approvals", "runs_page_token")
    THREAD_FIELD_NUMBER: _ClassVar[int]
    RESUME_AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    RUNS_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    thread: Thread
    resume_after_seq: int
    runs: _containers.RepeatedCompositeFieldContainer[SnapshotRun]
    approvals: _containers.RepeatedCompositeFieldContainer[_approvals_pb2.Approval]
    runs_page_token: str
    def __init__(self, thread: _Optional[_Union[Thread, _Mapping]] = ..., resume_after_seq: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[SnapshotRun, _Mapping]]] = ..., approvals: _Optional[_Iterable[_Union[_approvals_pb2.Approval, _Mapping]]] = ..., runs_page_token: _Optional[str] = ...) -> None: ...

class SnapshotRun(_message.Message):
    __slots__ = ("run", "input")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    run: Run
    input: _containers.RepeatedCompositeFieldContainer[InputMessage]
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., input: _Optional[_Iterable[_Union[InputMessage, _Mapping]]] = ...) -> None: ...

class ListThreadsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListThreadsResponse(_message.Message):
    __slots__ = ("threads", "next_page_token")
    THREADS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    threads: _containers.RepeatedCompositeFieldContainer[Thread]
    next_page_token: str
    def __init__(self, threads: _Optional[_Iterable[_Union[Thread, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RunLimits(_message.Message):
    __slots__ = ("deadline", "max_steps", "max_tool_calls", "max_cost_microusd", "max_total_tokens")
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    MAX_TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    deadline: _duration_pb2.Duration
    max_steps: int
    max_tool_calls: int
    max_cost_microusd: int
    max_total_tokens: int
    def __init__(self, deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_steps: _Optional[int] = ..., max_tool_calls: _Optional[int] = ..., max_cost_microusd: _Optional[int] = ..., max_total_tokens: _Optional[int] = ...) -> None: ...

class InputMessage(_message.Message):
    __slots__ = ("role", "text", "images", "tool_calls", "tool_call_id")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    role: str
    text: str
    images: _containers.RepeatedCompositeFieldContainer[InputImage]
    tool_calls: _containers.RepeatedCompositeFieldContainer[ClientToolCall]
    tool_call_id: str
    def __init__(self, role: _Optional[str] = ..., text: _Optional[str] = ..., images: _Optional[_Iterable[_Union[InputImage, _Mapping]]] = ..., tool_calls: _Optional[_Iterable[_Union[ClientToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ...) -> None: ...

class InputImage(_message.Message):
    __slots__ = ("blob_id", "detail")
    BLOB_ID_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    blob_id: str
    detail: str
    def __init__(self, blob_id: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ClientTool(_message.Message):
    __slots__ = ("name", "description", "parameters_json", "strict")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters_json: bytes
    strict: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters_json: _Optional[bytes] = ..., strict: _Optional[bool] = ...) -> None: ...

class ClientToolCall(_message.Message):
    __slots__ = ("tool_call_id", "name", "arguments_json")
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    tool_call_id: str
    name: str
    arguments_json: bytes
    def __init__(self, tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[bytes] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run_id", "thread_id", "agent", "agent_version", "status", "cancel_requested", "created_at", "started_at", "ended_at", "output_text", "error", "usage", "attempt", "first_seq", "terminal_seq", "finish_reason", "citations", "queue_position", "expected_wait", "start_at", "priority", "rolled_back_seq", "parent_run_id", "experiment", "arm", "client_tool_calls", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TEXT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_SEQ_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CITATIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_WAIT_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_SEQ_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    thread_id: str
    agent: str
    agent_version: str
    status: RunStatus
    cancel_requested: bool
    created_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    output_text: str
    error: RunError
    usage: _common_pb2.Usage
    attempt: int
    first_seq: int
    terminal_seq: int
    finish_reason: str
    citations: _containers.RepeatedCompositeFieldContainer[_common_pb2.Citation]
    queue_position: int
    expected_wait: _duration_pb2.Duration
    start_at: _timestamp_pb2.Timestamp
    priority: int
    rolled_back_seq: int
    parent_run_id: str
    experiment: str
    arm: str
    client_tool_calls: _containers.RepeatedCompositeFieldContainer[ClientToolCall]
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, run_id: _Optional[str] = ..., thread_id: _Optional[str] = ..., agent: _Optional[str] = ..., agent_version: _Optional[str] = ..., status: _Optional[_Union[RunStatus, str]] = ..., cancel_requested: _Optional[bool] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., output_text: _Optional[str] = ..., error: _Optional[_Union[RunError, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., attempt: _Optional[int] = ..., first_seq: _Optional[int] = ..., terminal_seq: _Optional[int] = ..., finish_reason: _Optional[str] = ..., citations: _Optional[_Iterable[_Union[_common_pb2.Citation, _Mapping]]] = ..., queue_position: _Optional[int] = ..., expected_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., start_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., priority: _Optional[int] = ..., rolled_back_seq: _Optional[int] = ..., parent_run_id: _Optional[str] = ..., experiment: _Optional[str] = ..., arm: _Optional[str] = ..., client_tool_calls: _Optional[_Iterable[_Union[ClientToolCall, _Mapping]]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RunError(_message.Message):
    __slots__ = ("reason", "message", "retryable")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    retryable: bool
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("thread_id", "agent", "input", "limits", "run_id", "idempotency_key", "metadata", "append_only_output", "temperature", "max_tokens", "on_disconnect", "start_at", "priority", "on_busy", "reset_memory", "client_tools", "tool_choice_json", "response_format_json")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    APPEND_ONLY_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ON_BUSY_FIELD_NUMBER: _ClassVar[int]
    RESET_MEMORY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_JSON_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_JSON_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    agent: str
    input: _containers.RepeatedCompositeFieldContainer[InputMessage]
    limits: RunLimits
    run_id: str
    idempotency_key: str
    metadata: _containers.ScalarMap[str, str]
    append_only_output: bool
    temperature: float
    max_tokens: int
    on_disconnect: OnDisconnect
    start_at: _timestamp_pb2.Timestamp
    priority: int
    on_busy: OnBusy
    reset_memory: bool
    client_tools: _containers.RepeatedCompositeFieldContainer[ClientTool]
    tool_choice_json: bytes
    response_format_json: bytes
    def __init__(self, thread_id: _Optional[str] = ..., agent: _Optional[str] = ..., input: _Optional[_Iterable[_Union[InputMessage, _Mapping]]] = ..., limits: _Optional[_Union[RunLimits, _Mapping]] = ..., run_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., append_only_output: _Optional[bool] = ..., temperature: _Optional[float] = ..., max_tokens: _Optional[int] = ..., on_disconnect: _Optional[_Union[OnDisconnect, str]] = ..., start_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., priority: _Optional[int] = ..., on_busy: _Optional[_Union[OnBusy, str]] = ..., reset_memory: _Optional[bool] = ..., client_tools: _Optional[_Iterable[_Union[ClientTool, _Mapping]]] = ..., tool_choice_json: _Optional[bytes] = ..., response_format_json: _Optional[bytes] = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run", "created", "steer_number")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STEER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    run: Run
    created: bool
    steer_number: int
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., created: _Optional[bool] = ..., steer_number: _Optional[int] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("thread_id", "page_size", "page_token", "statuses", "agent")
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    page_size: int
    page_token: str
    statuses: _containers.RepeatedScalarFieldContainer[RunStatus]
    agent: str
    def __init__(self, thread_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., statuses: _Optional[_Iterable[_Union[RunStatus, str]]] = ..., agent: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WaitRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class WaitRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("run_id", "idempotency_key", "reason", "wait")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    idempotency_key: str
    reason: str
    wait: bool
    def __init__(self, run_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., reason: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class RunFilter(_message.Message):
    __slots__ = ("thread_id", "agent", "statuses", "metadata", "schedule_id")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_ID_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    agent: str
    statuses: _containers.RepeatedScalarFieldContainer[RunStatus]
    metadata: _containers.ScalarMap[str, str]
    schedule_id: str
    def __init__(self, thread_id: _Optional[str] = ..., agent: _Optional[str] = ..., statuses: _Optional[_Iterable[_Union[RunStatus, str]]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., schedule_id: _Optional[str] = ...) -> None: ...

class CancelRunsRequest(_message.Message):
    __slots__ = ("filter", "idempotency_key", "reason", "page_size")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    filter: RunFilter
    idempotency_key: str
    reason: str
    page_size: int
    def __init__(self, filter: _Optional[_Union[RunFilter, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., reason: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class CancelRunsResponse(_message.Message):
    __slots__ = ("matched_count", "requested_count", "done")
    MATCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    matched_count: int
    requested_count: int
    done: bool
    def __init__(self, matched_count: _Optional[int] = ..., requested_count: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class StopGenerationRequest(_message.Message):
    __slots__ = ("run_id", "idempotency_key", "wait")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    idempotency_key: str
    wait: bool
    def __init__(self, run_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class StopGenerationResponse(_message.Message):
    __slots__ = ("run", "number")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    run: Run
    number: int
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class CancelToolCallRequest(_message.Message):
    __slots__ = ("run_id", "call_id", "idempotency_key", "continuation", "result_json")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    call_id: str
    idempotency_key: str
    continuation: ToolCallContinuation
    result_json: bytes
    def __init__(self, run_id: _Optional[str] = ..., call_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., continuation: _Optional[_Union[ToolCallContinuation, str]] = ..., result_json: _Optional[bytes] = ...) -> None: ...

class CancelToolCallResponse(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class SteerRunRequest(_message.Message):
    __slots__ = ("run_id", "text", "idempotency_key")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    text: str
    idempotency_key: str
    def __init__(self, run_id: _Optional[str] = ..., text: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class SteerRunResponse(_message.Message):
    __slots__ = ("number", "run")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    number: int
    run: Run
    def __init__(self, number: _Optional[int] = ..., run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class PlanStep(_message.Message):
    __slots__ = ("title", "status")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    title: str
    status: str
    def __init__(self, title: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class UpdatePlanRequest(_message.Message):
    __slots__ = ("run_id", "steps", "version", "idempotency_key")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    steps: _containers.RepeatedCompositeFieldContainer[PlanStep]
    version: int
    idempotency_key: str
    def __init__(self, run_id: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[PlanStep, _Mapping]]] = ..., version: _Optional[int] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class UpdatePlanResponse(_message.Message):
    __slots__ = ("number", "run")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    number: int
    run: Run
    def __init__(self, number: _Optional[int] = ..., run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("seq", "occurred_at", "thread_id", "run_id", "attempt", "type", "data_json", "provisional", "trace_id", "schema_version")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_JSON_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    seq: int
    occurred_at: _timestamp_pb2.Timestamp
    thread_id: str
    run_id: str
    attempt: int
    type: str
    data_json: bytes
    provisional: bool
    trace_id: str
    schema_version: int
    def __init__(self, seq: _Optional[int] = ..., occurred_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., thread_id: _Optional[str] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., type: _Optional[str] = ..., data_json: _Optional[bytes] = ..., provisional: _Optional[bool] = ..., trace_id: _Optional[str] = ..., schema_version: _Optional[int] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class StreamEventsRequest(_message.Message):
    __slots__ = ("thread_id", "run_id", "after_seq", "types", "replay_only")
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    REPLAY_ONLY_FIELD_NUMBER: _ClassVar[int]
    thread_id: str
    run_id: str
    after_seq: int
    types: _containers.RepeatedScalarFieldContainer[str]
    replay_only: bool
    def __init__(self, thread_id: _Optional[str] = ..., run_id: _Optional[str] = ..., after_seq: _Optional[int] = ..., types: _Optional[_Iterable[str]] = ..., replay_only: _Optional[bool] = ...) -> None: ...

class StreamEventsResponse(_message.Message):
    __slots__ = ("batch", "heartbeat")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    batch: EventBatch
    heartbeat: Heartbeat
    def __init__(self, batch: _Optional[_Union[EventBatch, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("last_seq",)
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    last_seq: int
    def __init__(self, last_seq: _Optional[int] = ...) -> None: ...

class Agent(_message.Message):
    __slots__ = ("name", "version", "description", "model", "tools")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    description: str
    model: str
    tools: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., description: _Optional[str] = ..., model: _Optional[str] = ..., tools: _Optional[_Iterable[str]] = ...) -> None: ...

class ListAgentsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAgentsResponse(_message.Message):
    __slots__ = ("agents", "next_page_token")
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    agents: _containers.RepeatedCompositeFieldContainer[Agent]
    next_page_token: str
    def __init__(self, agents: _Optional[_Iterable[_Union[Agent, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetAgentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAgentResponse(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: Agent
    def __init__(self, agent: _Optional[_Union[Agent, _Mapping]] = ...) -> None: ...

class RecordFeedbackRequest(_message.Message):
    __slots__ = ("run_id", "idempotency_key", "rating", "thumbs", "text", "corrected_answer", "signal", "dwell")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    THUMBS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_ANSWER_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    DWELL_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    idempotency_key: str
    rating: int
    thumbs: Thumbs
    text: str
    corrected_answer: str
    signal: FeedbackSignal
    dwell: _duration_pb2.Duration
    def __init__(self, run_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., rating: _Optional[int] = ..., thumbs: _Optional[_Union[Thumbs, str]] = ..., text: _Optional[str] = ..., corrected_answer: _Optional[str] = ..., signal: _Optional[_Union[FeedbackSignal, str]] = ..., dwell: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RecordFeedbackResponse(_message.Message):
    __slots__ = ("feedback_id", "seq")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    seq: int
    def __init__(self, feedback_id: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...
