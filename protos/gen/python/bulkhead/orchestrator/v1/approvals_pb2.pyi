import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ApprovalKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_KIND_UNSPECIFIED: _ClassVar[ApprovalKind]
    APPROVAL_KIND_TOOL_CALL: _ClassVar[ApprovalKind]
    APPROVAL_KIND_TOOL_OUTCOME_UNKNOWN: _ClassVar[ApprovalKind]

class ApprovalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_STATE_UNSPECIFIED: _ClassVar[ApprovalState]
    APPROVAL_STATE_OPEN: _ClassVar[ApprovalState]
    APPROVAL_STATE_APPROVED: _ClassVar[ApprovalState]
    APPROVAL_STATE_REJECTED: _ClassVar[ApprovalState]
    APPROVAL_STATE_EXPIRED: _ClassVar[ApprovalState]
    APPROVAL_STATE_CANCELLED: _ClassVar[ApprovalState]
    APPROVAL_STATE_ANSWERED: _ClassVar[ApprovalState]
APPROVAL_KIND_UNSPECIFIED: ApprovalKind
APPROVAL_KIND_TOOL_CALL: ApprovalKind
APPROVAL_KIND_TOOL_OUTCOME_UNKNOWN: ApprovalKind
APPROVAL_STATE_UNSPECIFIED: ApprovalState
APPROVAL_STATE_OPEN: ApprovalState
APPROVAL_STATE_APPROVED: ApprovalState
APPROVAL_STATE_REJECTED: ApprovalState
APPROVAL_STATE_EXPIRED: ApprovalState
APPROVAL_STATE_CANCELLED: ApprovalState
APPROVAL_STATE_ANSWERED: ApprovalState

class Approvers(_message.Message):
    __slots__ = ("users", "scopes", "requester", "delegated_by")
    USERS_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_FIELD_NUMBER: _ClassVar[int]
    DELEGATED_BY_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedScalarFieldContainer[str]
    scopes: _containers.RepeatedScalarFieldContainer[str]
    requester: bool
    delegated_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, users: _Optional[_Iterable[str]] = ..., scopes: _Optional[_Iterable[str]] = ..., requester: _Optional[bool] = ..., delegated_by: _Optional[_Iterable[str]] = ...) -> None: ...

class ApprovalDecision(_message.Message):
    __slots__ = ("verb", "user", "reason", "decided_at", "arguments_digest", "delegated_to")
    VERB_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DELEGATED_TO_FIELD_NUMBER: _ClassVar[int]
    verb: str
    user: str
    reason: str
    decided_at: _timestamp_pb2.Timestamp
    arguments_digest: str
    delegated_to: str
    def __init__(self, verb: _Optional[str] = ..., user: _Optional[str] = ..., reason: _Optional[str] = ..., decided_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., arguments_digest: _Optional[str] = ..., delegated_to: _Optional[str] = ...) -> None: ...

class Approval(_message.Message):
    __slots__ = ("approval_id", "kind", "state", "run_id", "thread_id", "requester", "call_id", "tool", "tool_version", "arguments_json", "arguments_digest", "input_schema_json", "reason", "created_at", "expires_at", "on_expiry", "approvers", "four_eyes", "decisions", "decidable")
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    TOOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ON_EXPIRY_FIELD_NUMBER: _ClassVar[int]
    APPROVERS_FIELD_NUMBER: _ClassVar[int]
    FOUR_EYES_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    DECIDABLE_FIELD_NUMBER: _ClassVar[int]
    approval_id: str
    kind: ApprovalKind
    state: ApprovalState
    run_id: str
    thread_id: str
    requester: str
    call_id: str
    tool: str
    tool_version: str
    arguments_json: bytes
    arguments_digest: str
    input_schema_json: bytes
    reason: str
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    on_expiry: str
    approvers: Approvers
    four_eyes: bool
    decisions: _containers.RepeatedCompositeFieldContainer[ApprovalDecision]
    decidable: bool
    def __init__(self, approval_id: _Optional[str] = ..., kind: _Optional[_Union[ApprovalKind, str]] = ..., state: _Optional[_Union[ApprovalState, str]] = ..., run_id: _Optional[str] = ..., thread_id: _Optional[str] = ..., requester: _Optional[str] = ..., call_id: _Optional[str] = ..., tool: _Optional[str] = ..., tool_version: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., arguments_digest: _Optional[str] = ..., input_schema_json: _Optional[bytes] = ..., reason: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., on_expiry: _Optional[str] = ..., approvers: _Optional[_Union[Approvers, _Mapping]] = ..., four_eyes: _Optional[bool] = ..., decisions: _Optional[_Iterable[_Union[ApprovalDecision, _Mapping]]] = ..., decidable: _Optional[bool] = ...) -> None: ...

class ListApprovalsRequest(_message.Message):
    __slots__ = ("run_id", "thread_id", "state", "decidable", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DECIDABLE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    thread_id: str
    state: ApprovalState
    decidable: bool
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[str] = ..., thread_id: _Optional[str] = ..., state: _Optional[_Union[ApprovalState, str]] = ..., decidable: _Optional[bool] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListApprovalsResponse(_message.Message):
    __slots__ = ("approvals", "next_page_token")
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    approvals: _containers.RepeatedCompositeFieldContainer[Approval]
    next_page_token: str
    def __init__(self, approvals: _Optional[_Iterable[_Union[Approval, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetApprovalRequest(_message.Message):
    __slots__ = ("approval_id",)
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    approval_id: str
    def __init__(self, approval_id: _Optional[str] = ...) -> None: ...

class GetApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class Approve(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Edit(_message.Message):
    __slots__ = ("arguments_json",)
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    arguments_json: bytes
    def __init__(self, arguments_json: _Optional[bytes] = ...) -> None: ...

class Reject(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Delegate(_message.Message):
    __slots__ = ("user", "scope")
    USER_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    user: str
    scope: str
    def __init__(self, user: _Optional[str] = ..., scope: _Optional[str] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("done_json", "failed", "retry", "cancel_run")
    DONE_JSON_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    CANCEL_RUN_FIELD_NUMBER: _ClassVar[int]
    done_json: bytes
    failed: bool
    retry: bool
    cancel_run: bool
    def __init__(self, done_json: _Optional[bytes] = ..., failed: _Optional[bool] = ..., retry: _Optional[bool] = ..., cancel_run: _Optional[bool] = ...) -> None: ...

class DecideApprovalRequest(_message.Message):
    __slots__ = ("approval_id", "approve", "edit", "reject", "delegate", "outcome", "reason", "idempotency_key", "arguments_digest")
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    APPROVE_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    DELEGATE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    approval_id: str
    approve: Approve
    edit: Edit
    reject: Reject
    delegate: Delegate
    outcome: Outcome
    reason: str
    idempotency_key: str
    arguments_digest: str
    def __init__(self, approval_id: _Optional[str] = ..., approve: _Optional[_Union[Approve, _Mapping]] = ..., edit: _Optional[_Union[Edit, _Mapping]] = ..., reject: _Optional[_Union[Reject, _Mapping]] = ..., delegate: _Optional[_Union[Delegate, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., reason: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., arguments_digest: _Optional[str] = ...) -> None: ...

class DecideApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...
