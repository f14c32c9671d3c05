from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_microusd", "estimated", "model_calls", "tool_calls")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    MODEL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    reasoning_tokens: int
    cost_microusd: int
    estimated: bool
    model_calls: int
    tool_calls: int
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_input_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., cost_microusd: _Optional[int] = ..., estimated: _Optional[bool] = ..., model_calls: _Optional[int] = ..., tool_calls: _Optional[int] = ...) -> None: ...

class Warning(_message.Message):
    __slots__ = ("code", "capability_lost", "fallback", "user_message", "attributes_json")
    CODE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_LOST_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    USER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_JSON_FIELD_NUMBER: _ClassVar[int]
    code: str
    capability_lost: str
    fallback: str
    user_message: str
    attributes_json: bytes
    def __init__(self, code: _Optional[str] = ..., capability_lost: _Optional[str] = ..., fallback: _Optional[str] = ..., user_message: _Optional[str] = ..., attributes_json: _Optional[bytes] = ...) -> None: ...

class Citation(_message.Message):
    __slots__ = ("citation_id", "document_id", "document_version", "title", "char_start", "char_end", "content_hash", "heading")
    CITATION_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CHAR_START_FIELD_NUMBER: _ClassVar[int]
    CHAR_END_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    HEADING_FIELD_NUMBER: _ClassVar[int]
    citation_id: str
    document_id: str
    document_version: int
    title: str
    char_start: int
    char_end: int
    content_hash: str
    heading: str
    def __init__(self, citation_id: _Optional[str] = ..., document_id: _Optional[str] = ..., document_version: _Optional[int] = ..., title: _Optional[str] = ..., char_start: _Optional[int] = ..., char_end: _Optional[int] = ..., content_hash: _Optional[str] = ..., heading: _Optional[str] = ...) -> None: ...
