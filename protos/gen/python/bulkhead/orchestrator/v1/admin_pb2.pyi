import datetime

from bulkhead.orchestrator.v1 import orchestrator_pb2 as _orchestrator_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErasureState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERASURE_STATE_UNSPECIFIED: _ClassVar[ErasureState]
    ERASURE_STATE_PENDING: _ClassVar[ErasureState]
    ERASURE_STATE_DONE: _ClassVar[ErasureState]
ERASURE_STATE_UNSPECIFIED: ErasureState
ERASURE_STATE_PENDING: ErasureState
ERASURE_STATE_DONE: ErasureState

class GetQuotaRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetQuotaResponse(_message.Message):
    __slots__ = ("tier", "concurrent_runs", "queued_runs", "delayed_runs", "task_time")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_RUNS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_RUNS_FIELD_NUMBER: _ClassVar[int]
    DELAYED_RUNS_FIELD_NUMBER: _ClassVar[int]
    TASK_TIME_FIELD_NUMBER: _ClassVar[int]
    tier: str
    concurrent_runs: Allowance
    queued_runs: Allowance
    delayed_runs: Allowance
    task_time: _duration_pb2.Duration
    def __init__(self, tier: _Optional[str] = ..., concurrent_runs: _Optional[_Union[Allowance, _Mapping]] = ..., queued_runs: _Optional[_Union[Allowance, _Mapping]] = ..., delayed_runs: _Optional[_Union[Allowance, _Mapping]] = ..., task_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Allowance(_message.Message):
    __slots__ = ("used", "limit")
    USED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    used: int
    limit: int
    def __init__(self, used: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ForgetSubjectRequest(_message.Message):
    __slots__ = ("user", "idempotency_key")
    USER_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    user: str
    idempotency_key: str
    def __init__(self, user: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class ForgetSubjectResponse(_message.Message):
    __slots__ = ("erasure",)
    ERASURE_FIELD_NUMBER: _ClassVar[int]
    erasure: Erasure
    def __init__(self, erasure: _Optional[_Union[Erasure, _Mapping]] = ...) -> None: ...

class GetErasureRequest(_message.Message):
    __slots__ = ("erasure_id",)
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    erasure_id: str
    def __init__(self, erasure_id: _Optional[str] = ...) -> None: ...

class GetErasureResponse(_message.Message):
    __slots__ = ("erasure",)
    ERASURE_FIELD_NUMBER: _ClassVar[int]
    erasure: Erasure
    def __init__(self, erasure: _Optional[_Union[Erasure, _Mapping]] = ...) -> None: ...

class Erasure(_message.Message):
    __slots__ = ("erasure_id", "state", "created_at", "done_at", "parts", "subject_digest")
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    DONE_AT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    erasure_id: str
    state: ErasureState
    created_at: _timestamp_pb2.Timestamp
    done_at: _timestamp_pb2.Timestamp
    parts: _containers.RepeatedCompositeFieldContainer[ErasurePart]
    subject_digest: str
    def __init__(self, erasure_id: _Optional[str] = ..., state: _Optional[_Union[ErasureState, str]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., done_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[ErasurePart, _Mapping]]] = ..., subject_digest: _Optional[str] = ...) -> None: ...

class ErasurePart(_message.Message):
    __slots__ = ("service", "state", "attempts", "last_reason", "done_at", "erased")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    LAST_REASON_FIELD_NUMBER: _ClassVar[int]
    DONE_AT_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    service: str
    state: ErasureState
    attempts: int
    last_reason: str
    done_at: _timestamp_pb2.Timestamp
    erased: _containers.RepeatedCompositeFieldContainer[ErasedCount]
    def __init__(self, service: _Optional[str] = ..., state: _Optional[_Union[ErasureState, str]] = ..., attempts: _Optional[int] = ..., last_reason: _Optional[str] = ..., done_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., erased: _Optional[_Iterable[_Union[ErasedCount, _Mapping]]] = ...) -> None: ...

class ErasedCount(_message.Message):
    __slots__ = ("kind", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    count: int
    def __init__(self, kind: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class ListFeedbackRequest(_message.Message):
    __slots__ = ("run_id", "agent", "since", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    agent: str
    since: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[str] = ..., agent: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFeedbackResponse(_message.Message):
    __slots__ = ("feedback", "next_page_token")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    feedback: _containers.RepeatedCompositeFieldContainer[FeedbackEntry]
    next_page_token: str
    def __init__(self, feedback: _Optional[_Iterable[_Union[FeedbackEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FeedbackEntry(_message.Message):
    __slots__ = ("feedback_id", "run_id", "thread_id", "agent", "agent_version", "agent_digest", "model", "canary", "rating", "thumbs", "text", "corrected_answer", "signal", "dwell", "recorded_at", "experiment", "arm")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    AGENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    THUMBS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_ANSWER_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    DWELL_FIELD_NUMBER: _ClassVar[int]
    RECORDED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    run_id: str
    thread_id: str
    agent: str
    agent_version: str
    agent_digest: str
    model: str
    canary: bool
    rating: int
    thumbs: _orchestrator_pb2.Thumbs
    text: str
    corrected_answer: str
    signal: _orchestrator_pb2.FeedbackSignal
    dwell: _duration_pb2.Duration
    recorded_at: _timestamp_pb2.Timestamp
    experiment: str
    arm: str
    def __init__(self, feedback_id: _Optional[str] = ..., run_id: _Optional[str] = ..., thread_id: _Optional[str] = ..., agent: _Optional[str] = ..., agent_version: _Optional[str] = ..., agent_digest: _Optional[str] = ..., model: _Optional[str] = ..., canary: _Optional[bool] = ..., rating: _Optional[int] = ..., thumbs: _Optional[_Union[_orchestrator_pb2.Thumbs, str]] = ..., text: _Optional[str] = ..., corrected_answer: _Optional[str] = ..., signal: _Optional[_Union[_orchestrator_pb2.FeedbackSignal, str]] = ..., dwell: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., recorded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., experiment: _Optional[str] = ..., arm: _Optional[str] = ...) -> None: ...
