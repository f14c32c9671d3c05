import datetime

from bulkhead.orchestrator.v1 import orchestrator_pb2 as _orchestrator_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hook(_message.Message):
    __slots__ = ("hook_id", "agent", "thread_id", "instructions", "description", "created_at", "earlier_secret_until")
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EARLIER_SECRET_UNTIL_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    agent: str
    thread_id: str
    instructions: str
    description: str
    created_at: _timestamp_pb2.Timestamp
    earlier_secret_until: _timestamp_pb2.Timestamp
    def __init__(self, hook_id: _Optional[str] = ..., agent: _Optional[str] = ..., thread_id: _Optional[str] = ..., instructions: _Optional[str] = ..., description: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., earlier_secret_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateHookRequest(_message.Message):
    __slots__ = ("agent", "thread_id", "instructions", "description", "secret", "idempotency_key")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    agent: str
    thread_id: str
    instructions: str
    description: str
    secret: str
    idempotency_key: str
    def __init__(self, agent: _Optional[str] = ..., thread_id: _Optional[str] = ..., instructions: _Optional[str] = ..., description: _Optional[str] = ..., secret: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class CreateHookResponse(_message.Message):
    __slots__ = ("hook", "secret")
    HOOK_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    hook: Hook
    secret: str
    def __init__(self, hook: _Optional[_Union[Hook, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class ListHooksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHooksResponse(_message.Message):
    __slots__ = ("hooks",)
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    hooks: _containers.RepeatedCompositeFieldContainer[Hook]
    def __init__(self, hooks: _Optional[_Iterable[_Union[Hook, _Mapping]]] = ...) -> None: ...

class GetHookRequest(_message.Message):
    __slots__ = ("hook_id",)
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    def __init__(self, hook_id: _Optional[str] = ...) -> None: ...

class GetHookResponse(_message.Message):
    __slots__ = ("hook",)
    HOOK_FIELD_NUMBER: _ClassVar[int]
    hook: Hook
    def __init__(self, hook: _Optional[_Union[Hook, _Mapping]] = ...) -> None: ...

class DeleteHookRequest(_message.Message):
    __slots__ = ("hook_id", "idempotency_key")
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    idempotency_key: str
    def __init__(self, hook_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class DeleteHookResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotateHookSecretRequest(_message.Message):
    __slots__ = ("hook_id", "overlap", "idempotency_key")
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    overlap: _duration_pb2.Duration
    idempotency_key: str
    def __init__(self, hook_id: _Optional[str] = ..., overlap: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class RotateHookSecretResponse(_message.Message):
    __slots__ = ("hook", "secret")
    HOOK_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    hook: Hook
    secret: str
    def __init__(self, hook: _Optional[_Union[Hook, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class AcceptHookRequest(_message.Message):
    __slots__ = ("hook_id", "agent", "webhook_id", "webhook_timestamp", "webhook_signature", "body")
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_ID_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    agent: str
    webhook_id: str
    webhook_timestamp: str
    webhook_signature: str
    body: bytes
    def __init__(self, hook_id: _Optional[str] = ..., agent: _Optional[str] = ..., webhook_id: _Optional[str] = ..., webhook_timestamp: _Optional[str] = ..., webhook_signature: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class AcceptHookResponse(_message.Message):
    __slots__ = ("run", "created")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    run: _orchestrator_pb2.Run
    created: bool
    def __init__(self, run: _Optional[_Union[_orchestrator_pb2.Run, _Mapping]] = ..., created: _Optional[bool] = ...) -> None: ...
