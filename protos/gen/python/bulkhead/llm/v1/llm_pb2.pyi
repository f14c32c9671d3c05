import datetime

from bulkhead.common.v1 import common_pb2 as _common_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Message(_message.Message):
    __slots__ = ("role", "text", "content_json", "tool_calls", "tool_call_id", "name", "reasoning", "refusal", "extra_json")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_JSON_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    role: str
    text: str
    content_json: bytes
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    name: str
    reasoning: str
    refusal: str
    extra_json: bytes
    def __init__(self, role: _Optional[str] = ..., text: _Optional[str] = ..., content_json: _Optional[bytes] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., reasoning: _Optional[str] = ..., refusal: _Optional[str] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("tool_call_id", "name", "arguments_json", "extra_json")
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    tool_call_id: str
    name: str
    arguments_json: bytes
    extra_json: bytes
    def __init__(self, tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class ToolDefinition(_message.Message):
    __slots__ = ("name", "description", "parameters_json", "tool_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_FIELD_NUMBER: _ClassVar[int]
    TOOL_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters_json: bytes
    tool_json: bytes
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters_json: _Optional[bytes] = ..., tool_json: _Optional[bytes] = ...) -> None: ...

class CompletionInput(_message.Message):
    __slots__ = ("model", "messages", "tools", "tool_choice_json", "temperature", "max_tokens", "response_format_json", "extra_json", "run_id", "thread_id", "cache", "run_budget_microusd", "max_cost_microusd", "low_priority", "arm", "finish_unattended")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_JSON_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_JSON_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    RUN_BUDGET_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    LOW_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    FINISH_UNATTENDED_FIELD_NUMBER: _ClassVar[int]
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    tools: _containers.RepeatedCompositeFieldContainer[ToolDefinition]
    tool_choice_json: bytes
    temperature: float
    max_tokens: int
    response_format_json: bytes
    extra_json: bytes
    run_id: str
    thread_id: str
    cache: CacheControl
    run_budget_microusd: int
    max_cost_microusd: int
    low_priority: bool
    arm: str
    finish_unattended: bool
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[ToolDefinition, _Mapping]]] = ..., tool_choice_json: _Optional[bytes] = ..., temperature: _Optional[float] = ..., max_tokens: _Optional[int] = ..., response_format_json: _Optional[bytes] = ..., extra_json: _Optional[bytes] = ..., run_id: _Optional[str] = ..., thread_id: _Optional[str] = ..., cache: _Optional[_Union[CacheControl, _Mapping]] = ..., run_budget_microusd: _Optional[int] = ..., max_cost_microusd: _Optional[int] = ..., low_priority: _Optional[bool] = ..., arm: _Optional[str] = ..., finish_unattended: _Optional[bool] = ...) -> None: ...

class CacheControl(_message.Message):
    __slots__ = ("no_cache", "no_store", "max_age", "ttl", "semantic", "importance", "stale_if_error")
    NO_CACHE_FIELD_NUMBER: _ClassVar[int]
    NO_STORE_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_FIELD_NUMBER: _ClassVar[int]
    STALE_IF_ERROR_FIELD_NUMBER: _ClassVar[int]
    no_cache: bool
    no_store: bool
    max_age: _duration_pb2.Duration
    ttl: _duration_pb2.Duration
    semantic: bool
    importance: float
    stale_if_error: _duration_pb2.Duration
    def __init__(self, no_cache: _Optional[bool] = ..., no_store: _Optional[bool] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., semantic: _Optional[bool] = ..., importance: _Optional[float] = ..., stale_if_error: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("input", "idempotency_key")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    input: CompletionInput
    idempotency_key: str
    def __init__(self, input: _Optional[_Union[CompletionInput, _Mapping]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ("message", "outcome", "details")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    message: Message
    outcome: CompletionOutcome
    details: AnswerDetails
    def __init__(self, message: _Optional[_Union[Message, _Mapping]] = ..., outcome: _Optional[_Union[CompletionOutcome, _Mapping]] = ..., details: _Optional[_Union[AnswerDetails, _Mapping]] = ...) -> None: ...

class StreamCompleteRequest(_message.Message):
    __slots__ = ("input", "idempotency_key", "tell_opening", "text_only")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TELL_OPENING_FIELD_NUMBER: _ClassVar[int]
    TEXT_ONLY_FIELD_NUMBER: _ClassVar[int]
    input: CompletionInput
    idempotency_key: str
    tell_opening: bool
    text_only: bool
    def __init__(self, input: _Optional[_Union[CompletionInput, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., tell_opening: _Optional[bool] = ..., text_only: _Optional[bool] = ...) -> None: ...

class StreamCompleteResponse(_message.Message):
    __slots__ = ("text_delta", "tool_call_delta", "warning", "finished", "reasoning_delta", "refusal_delta", "detail_delta", "opened")
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_DELTA_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    REASONING_DELTA_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_DELTA_FIELD_NUMBER: _ClassVar[int]
    DETAIL_DELTA_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    text_delta: TextDelta
    tool_call_delta: ToolCallDelta
    warning: _common_pb2.Warning
    finished: CompletionFinished
    reasoning_delta: ReasoningDelta
    refusal_delta: RefusalDelta
    detail_delta: DetailDelta
    opened: StreamOpened
    def __init__(self, text_delta: _Optional[_Union[TextDelta, _Mapping]] = ..., tool_call_delta: _Optional[_Union[ToolCallDelta, _Mapping]] = ..., warning: _Optional[_Union[_common_pb2.Warning, _Mapping]] = ..., finished: _Optional[_Union[CompletionFinished, _Mapping]] = ..., reasoning_delta: _Optional[_Union[ReasoningDelta, _Mapping]] = ..., refusal_delta: _Optional[_Union[RefusalDelta, _Mapping]] = ..., detail_delta: _Optional[_Union[DetailDelta, _Mapping]] = ..., opened: _Optional[_Union[StreamOpened, _Mapping]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("text", "choice")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    text: str
    choice: int
    def __init__(self, text: _Optional[str] = ..., choice: _Optional[int] = ...) -> None: ...

class ReasoningDelta(_message.Message):
    __slots__ = ("text", "choice")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    text: str
    choice: int
    def __init__(self, text: _Optional[str] = ..., choice: _Optional[int] = ...) -> None: ...

class RefusalDelta(_message.Message):
    __slots__ = ("text", "choice")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    text: str
    choice: int
    def __init__(self, text: _Optional[str] = ..., choice: _Optional[int] = ...) -> None: ...

class DetailDelta(_message.Message):
    __slots__ = ("choice", "logprobs", "delta_json", "choice_json")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DELTA_JSON_FIELD_NUMBER: _ClassVar[int]
    CHOICE_JSON_FIELD_NUMBER: _ClassVar[int]
    choice: int
    logprobs: Logprobs
    delta_json: bytes
    choice_json: bytes
    def __init__(self, choice: _Optional[int] = ..., logprobs: _Optional[_Union[Logprobs, _Mapping]] = ..., delta_json: _Optional[bytes] = ..., choice_json: _Optional[bytes] = ...) -> None: ...

class StreamOpened(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: CompletionOutcome
    def __init__(self, outcome: _Optional[_Union[CompletionOutcome, _Mapping]] = ...) -> None: ...

class ToolCallDelta(_message.Message):
    __slots__ = ("index", "tool_call_id", "name", "arguments_fragment", "choice", "extra_json")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    index: int
    tool_call_id: str
    name: str
    arguments_fragment: str
    choice: int
    extra_json: bytes
    def __init__(self, index: _Optional[int] = ..., tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_fragment: _Optional[str] = ..., choice: _Optional[int] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class CompletionFinished(_message.Message):
    __slots__ = ("message", "outcome", "details")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    message: Message
    outcome: CompletionOutcome
    details: AnswerDetails
    def __init__(self, message: _Optional[_Union[Message, _Mapping]] = ..., outcome: _Optional[_Union[CompletionOutcome, _Mapping]] = ..., details: _Optional[_Union[AnswerDetails, _Mapping]] = ...) -> None: ...

class CompletionOutcome(_message.Message):
    __slots__ = ("finish_reason", "model", "provider_model", "provider", "deployment_id", "response_id", "usage", "attempts", "fallbacks", "warnings", "cached", "retries", "routing_json", "cost_nanousd", "cache_write_tokens", "timing", "limits", "upstream_headers")
    class UpstreamHeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_MODEL_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    ROUTING_JSON_FIELD_NUMBER: _ClassVar[int]
    COST_NANOUSD_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_HEADERS_FIELD_NUMBER: _ClassVar[int]
    finish_reason: str
    model: str
    provider_model: str
    provider: str
    deployment_id: str
    response_id: str
    usage: _common_pb2.Usage
    attempts: int
    fallbacks: int
    warnings: _containers.RepeatedCompositeFieldContainer[_common_pb2.Warning]
    cached: str
    retries: int
    routing_json: bytes
    cost_nanousd: int
    cache_write_tokens: int
    timing: CallTiming
    limits: _containers.RepeatedCompositeFieldContainer[RateLimitState]
    upstream_headers: _containers.ScalarMap[str, str]
    def __init__(self, finish_reason: _Optional[str] = ..., model: _Optional[str] = ..., provider_model: _Optional[str] = ..., provider: _Optional[str] = ..., deployment_id: _Optional[str] = ..., response_id: _Optional[str] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., attempts: _Optional[int] = ..., fallbacks: _Optional[int] = ..., warnings: _Optional[_Iterable[_Union[_common_pb2.Warning, _Mapping]]] = ..., cached: _Optional[str] = ..., retries: _Optional[int] = ..., routing_json: _Optional[bytes] = ..., cost_nanousd: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., timing: _Optional[_Union[CallTiming, _Mapping]] = ..., limits: _Optional[_Iterable[_Union[RateLimitState, _Mapping]]] = ..., upstream_headers: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CallTiming(_message.Message):
    __slots__ = ("queue_us", "reserve_us", "upstream_us", "retry_us")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    RESERVE_US_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_US_FIELD_NUMBER: _ClassVar[int]
    RETRY_US_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    reserve_us: int
    upstream_us: int
    retry_us: int
    def __init__(self, queue_us: _Optional[int] = ..., reserve_us: _Optional[int] = ..., upstream_us: _Optional[int] = ..., retry_us: _Optional[int] = ...) -> None: ...

class AnswerDetails(_message.Message):
    __slots__ = ("logprobs", "choice_json", "further_choices", "usage_json", "extra_json")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_JSON_FIELD_NUMBER: _ClassVar[int]
    FURTHER_CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_JSON_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    logprobs: Logprobs
    choice_json: bytes
    further_choices: _containers.RepeatedCompositeFieldContainer[Choice]
    usage_json: bytes
    extra_json: bytes
    def __init__(self, logprobs: _Optional[_Union[Logprobs, _Mapping]] = ..., choice_json: _Optional[bytes] = ..., further_choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., usage_json: _Optional[bytes] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("index", "message", "finish_reason", "logprobs", "extra_json")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    index: int
    message: Message
    finish_reason: str
    logprobs: Logprobs
    extra_json: bytes
    def __init__(self, index: _Optional[int] = ..., message: _Optional[_Union[Message, _Mapping]] = ..., finish_reason: _Optional[str] = ..., logprobs: _Optional[_Union[Logprobs, _Mapping]] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class Logprobs(_message.Message):
    __slots__ = ("content", "refusal")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    content: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    refusal: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, content: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., refusal: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token", "logprob", "utf8", "top")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    UTF8_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token: str
    logprob: float
    utf8: bytes
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, token: _Optional[str] = ..., logprob: _Optional[float] = ..., utf8: _Optional[bytes] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("model", "texts", "run_id", "run_budget_microusd", "max_cost_microusd", "cache", "dimensions", "idempotency_key", "finish_unattended", "token_lists", "extra_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_BUDGET_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    FINISH_UNATTENDED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LISTS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    run_id: str
    run_budget_microusd: int
    max_cost_microusd: int
    cache: CacheControl
    dimensions: int
    idempotency_key: str
    finish_unattended: bool
    token_lists: _containers.RepeatedCompositeFieldContainer[TokenList]
    extra_json: bytes
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., run_id: _Optional[str] = ..., run_budget_microusd: _Optional[int] = ..., max_cost_microusd: _Optional[int] = ..., cache: _Optional[_Union[CacheControl, _Mapping]] = ..., dimensions: _Optional[int] = ..., idempotency_key: _Optional[str] = ..., finish_unattended: _Optional[bool] = ..., token_lists: _Optional[_Iterable[_Union[TokenList, _Mapping]]] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embeddings", "model", "dimension", "usage", "warnings", "cached", "outcome")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    model: str
    dimension: int
    usage: _common_pb2.Usage
    warnings: _containers.RepeatedCompositeFieldContainer[_common_pb2.Warning]
    cached: str
    outcome: CompletionOutcome
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., model: _Optional[str] = ..., dimension: _Optional[int] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., warnings: _Optional[_Iterable[_Union[_common_pb2.Warning, _Mapping]]] = ..., cached: _Optional[str] = ..., outcome: _Optional[_Union[CompletionOutcome, _Mapping]] = ...) -> None: ...

class TokenList(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "offered")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    offered: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., offered: _Optional[bool] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "mode", "providers", "max_input_tokens", "embedding_dimension", "simulated")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIMENSION_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    name: str
    mode: str
    providers: _containers.RepeatedScalarFieldContainer[str]
    max_input_tokens: int
    embedding_dimension: int
    simulated: bool
    def __init__(self, name: _Optional[str] = ..., mode: _Optional[str] = ..., providers: _Optional[_Iterable[str]] = ..., max_input_tokens: _Optional[int] = ..., embedding_dimension: _Optional[int] = ..., simulated: _Optional[bool] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("model", "query", "documents", "top_n", "run_id", "run_budget_microusd", "max_cost_microusd", "cache", "idempotency_key", "finish_unattended", "extra_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_BUDGET_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    FINISH_UNATTENDED_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    model: str
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    top_n: int
    run_id: str
    run_budget_microusd: int
    max_cost_microusd: int
    cache: CacheControl
    idempotency_key: str
    finish_unattended: bool
    extra_json: bytes
    def __init__(self, model: _Optional[str] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., top_n: _Optional[int] = ..., run_id: _Optional[str] = ..., run_budget_microusd: _Optional[int] = ..., max_cost_microusd: _Optional[int] = ..., cache: _Optional[_Union[CacheControl, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., finish_unattended: _Optional[bool] = ..., extra_json: _Optional[bytes] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("results", "model", "usage", "warnings", "cached", "outcome", "search_units")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SEARCH_UNITS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RankedDocument]
    model: str
    usage: _common_pb2.Usage
    warnings: _containers.RepeatedCompositeFieldContainer[_common_pb2.Warning]
    cached: str
    outcome: CompletionOutcome
    search_units: int
    def __init__(self, results: _Optional[_Iterable[_Union[RankedDocument, _Mapping]]] = ..., model: _Optional[str] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., warnings: _Optional[_Iterable[_Union[_common_pb2.Warning, _Mapping]]] = ..., cached: _Optional[str] = ..., outcome: _Optional[_Union[CompletionOutcome, _Mapping]] = ..., search_units: _Optional[int] = ...) -> None: ...

class RankedDocument(_message.Message):
    __slots__ = ("index", "score")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    index: int
    score: float
    def __init__(self, index: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class CountTokensRequest(_message.Message):
    __slots__ = ("input",)
    INPUT_FIELD_NUMBER: _ClassVar[int]
    input: CompletionInput
    def __init__(self, input: _Optional[_Union[CompletionInput, _Mapping]] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("input_tokens", "input_tokens_bound", "estimated")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_BOUND_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    input_tokens_bound: int
    estimated: bool
    def __init__(self, input_tokens: _Optional[int] = ..., input_tokens_bound: _Optional[int] = ..., estimated: _Optional[bool] = ...) -> None: ...

class GetModelHealthRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelHealthResponse(_message.Message):
    __slots__ = ("deployments",)
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[DeploymentHealth]
    def __init__(self, deployments: _Optional[_Iterable[_Union[DeploymentHealth, _Mapping]]] = ...) -> None: ...

class DeploymentHealth(_message.Message):
    __slots__ = ("model", "deployment_id", "breaker", "retry_at", "in_flight", "queued", "latency", "failure_rate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    RETRY_AT_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_RATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    deployment_id: str
    breaker: str
    retry_at: _timestamp_pb2.Timestamp
    in_flight: int
    queued: int
    latency: _duration_pb2.Duration
    failure_rate: float
    def __init__(self, model: _Optional[str] = ..., deployment_id: _Optional[str] = ..., breaker: _Optional[str] = ..., retry_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., in_flight: _Optional[int] = ..., queued: _Optional[int] = ..., latency: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., failure_rate: _Optional[float] = ...) -> None: ...

class GetBudgetRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetBudgetResponse(_message.Message):
    __slots__ = ("budgets", "limits")
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetState]
    limits: _containers.RepeatedCompositeFieldContainer[RateLimitState]
    def __init__(self, budgets: _Optional[_Iterable[_Union[BudgetState, _Mapping]]] = ..., limits: _Optional[_Iterable[_Union[RateLimitState, _Mapping]]] = ...) -> None: ...

class BudgetState(_message.Message):
    __slots__ = ("scope", "scope_id", "period", "limit_microusd", "spent_microusd", "reserved_microusd", "resets_at")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    SPENT_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    RESERVED_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    RESETS_AT_FIELD_NUMBER: _ClassVar[int]
    scope: str
    scope_id: str
    period: str
    limit_microusd: int
    spent_microusd: int
    reserved_microusd: int
    resets_at: _timestamp_pb2.Timestamp
    def __init__(self, scope: _Optional[str] = ..., scope_id: _Optional[str] = ..., period: _Optional[str] = ..., limit_microusd: _Optional[int] = ..., spent_microusd: _Optional[int] = ..., reserved_microusd: _Optional[int] = ..., resets_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RateLimitState(_message.Message):
    __slots__ = ("scope", "scope_id", "kind", "limit", "remaining", "reset_after")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    RESET_AFTER_FIELD_NUMBER: _ClassVar[int]
    scope: str
    scope_id: str
    kind: str
    limit: int
    remaining: int
    reset_after: _duration_pb2.Duration
    def __init__(self, scope: _Optional[str] = ..., scope_id: _Optional[str] = ..., kind: _Optional[str] = ..., limit: _Optional[int] = ..., remaining: _Optional[int] = ..., reset_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class EraseSubjectRequest(_message.Message):
    __slots__ = ("user", "idempotency_key")
    USER_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    user: str
    idempotency_key: str
    def __init__(self, user: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class EraseSubjectResponse(_message.Message):
    __slots__ = ("erased",)
    ERASED_FIELD_NUMBER: _ClassVar[int]
    erased: _containers.RepeatedCompositeFieldContainer[ErasedKind]
    def __init__(self, erased: _Optional[_Iterable[_Union[ErasedKind, _Mapping]]] = ...) -> None: ...

class ErasedKind(_message.Message):
    __slots__ = ("kind", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    count: int
    def __init__(self, kind: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("batch_id", "status", "endpoint", "input_file_id", "output_file_id", "error_file_id", "total", "completed", "failed", "created_at", "expires_at", "ended_at", "usage", "problems", "metadata", "model", "completion_window", "errors", "in_progress_at", "finalizing_at", "cancelling_at")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FILE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FILE_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FILE_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_WINDOW_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    IN_PROGRESS_AT_FIELD_NUMBER: _ClassVar[int]
    FINALIZING_AT_FIELD_NUMBER: _ClassVar[int]
    CANCELLING_AT_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    status: str
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    total: int
    completed: int
    failed: int
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    usage: _common_pb2.Usage
    problems: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.ScalarMap[str, str]
    model: str
    completion_window: _duration_pb2.Duration
    errors: _containers.RepeatedCompositeFieldContainer[BatchProblem]
    in_progress_at: _timestamp_pb2.Timestamp
    finalizing_at: _timestamp_pb2.Timestamp
    cancelling_at: _timestamp_pb2.Timestamp
    def __init__(self, batch_id: _Optional[str] = ..., status: _Optional[str] = ..., endpoint: _Optional[str] = ..., input_file_id: _Optional[str] = ..., output_file_id: _Optional[str] = ..., error_file_id: _Optional[str] = ..., total: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., problems: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., model: _Optional[str] = ..., completion_window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., errors: _Optional[_Iterable[_Union[BatchProblem, _Mapping]]] = ..., in_progress_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finalizing_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cancelling_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class BatchProblem(_message.Message):
    __slots__ = ("code", "message", "line", "param")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    line: int
    param: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., line: _Optional[int] = ..., param: _Optional[str] = ...) -> None: ...

class CreateBatchRequest(_message.Message):
    __slots__ = ("input_jsonl", "input_file_id", "endpoint", "completion_window", "metadata", "idempotency_key", "results_kept")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INPUT_JSONL_FIELD_NUMBER: _ClassVar[int]
    INPUT_FILE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_WINDOW_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RESULTS_KEPT_FIELD_NUMBER: _ClassVar[int]
    input_jsonl: bytes
    input_file_id: str
    endpoint: str
    completion_window: _duration_pb2.Duration
    metadata: _containers.ScalarMap[str, str]
    idempotency_key: str
    results_kept: _duration_pb2.Duration
    def __init__(self, input_jsonl: _Optional[bytes] = ..., input_file_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., completion_window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., idempotency_key: _Optional[str] = ..., results_kept: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CreateBatchResponse(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class GetBatchRequest(_message.Message):
    __slots__ = ("batch_id",)
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    def __init__(self, batch_id: _Optional[str] = ...) -> None: ...

class GetBatchResponse(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class ListBatchesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBatchesResponse(_message.Message):
    __slots__ = ("batches", "next_page_token")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[Batch]
    next_page_token: str
    def __init__(self, batches: _Optional[_Iterable[_Union[Batch, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelBatchRequest(_message.Message):
    __slots__ = ("batch_id", "idempotency_key")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    idempotency_key: str
    def __init__(self, batch_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class CancelBatchResponse(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class ReadBatchResultsRequest(_message.Message):
    __slots__ = ("batch_id", "errors")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    errors: bool
    def __init__(self, batch_id: _Optional[str] = ..., errors: _Optional[bool] = ...) -> None: ...

class ReadBatchResultsResponse(_message.Message):
    __slots__ = ("jsonl",)
    JSONL_FIELD_NUMBER: _ClassVar[int]
    jsonl: bytes
    def __init__(self, jsonl: _Optional[bytes] = ...) -> None: ...
