"""models.yaml in LiteLLM's shape, validated as a whole: every problem is listed, every key without effect is named."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.llm_gateway.price_config import PriceKeys

# Request fields that litellm_params may set for calls that leave them out.
REQUEST_DEFAULTS = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty", "seed", "stop",
    "reasoning_effort", "parallel_tool_calls", "user", "dimensions",
)  # fmt: skip
# Names of LiteLLM's that mean one of ours.
STRATEGIES = {
    "least-busy": "least-busy",
    "simple-shuffle": "simple-shuffle",
    "latency-based-routing": "latency-based-routing",
    "usage-based-routing": "usage-based-routing",
    "usage-based-routing-v2": "usage-based-routing",
    "cost-based": "cost-based",
    "cost-based-routing": "cost-based",
}
# LiteLLM's exceptions and the failure classes whose retries they bound.
RETRY_POLICY = {
    "TimeoutErrorRetries": ("timeout_connect", "timeout_first_token", "timeout_total", "stalled"),
    "RateLimitErrorRetries": ("rate_limited",),
    "InternalServerErrorRetries": ("transient", "cut"),
    "BadRequestErrorRetries": (),
    "AuthenticationErrorRetries": (),
    "ContentPolicyViolationErrorRetries": (),
}
# Kinds of LiteLLM's caches that the built-in ones stand for.
# LiteLLM's names for what may be cached.
CALL_TYPES = {
    "completion": "chat", "acompletion": "chat", "embedding": "embed", "aembedding": "embed", "rerank": "rerank", "arerank": "rerank",
}  # fmt: skip
CACHE_TYPES = frozenset({"local", "redis", "disk", "redis-semantic", "qdrant-semantic"})
PERIOD = r"[1-9][0-9]{0,4}(s|m|h|d|w|mo)"

Seconds = Annotated[float, Field(gt=0)]
Fallbacks = list[dict[str, list[str]]]
_None_is_empty_list = BeforeValidator(lambda value: [] if value is None else value)
_None_is_empty_map = BeforeValidator(lambda value: {} if value is None else value)


class _Section(BaseModel):
    """A mapping whose unknown keys are kept, to be named."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def unknown(self) -> list[str]:
        """Keys that mean nothing here."""
        return sorted(self.model_extra or ())


class StreamOptions(_Section):
    """litellm_params.stream_options."""

    include_usage: bool | None = None


class LitellmParams(PriceKeys):
    """litellm_params of one deployment."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    api_base: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    api_version: str | None = None
    organization: str | None = None
    timeout: Seconds | None = None
    stream_timeout: Seconds | None = None
    weight: Annotated[float, Field(gt=0)] | None = None
    order: int | None = None
    rpm: Annotated[int, Field(ge=0)] | None = None
    tpm: Annotated[int, Field(ge=0)] | None = None
    max_parallel_requests: Annotated[int, Field(ge=0)] | None = None
    drop_params: bool = False
    additional_drop_params: Annotated[list[str], _None_is_empty_list] = []
    extra_headers: dict[str, str] | None = None
    extra_body: dict[str, Any] | None = None
    temperature: Any = None
    top_p: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    seed: Any = None
    stop: Any = None
    reasoning_effort: Any = None
    parallel_tool_calls: Any = None
    user: Any = None
    dimensions: Any = None
    stream_options: StreamOptions | None = None

    def defaults(self) -> dict[str, Any]:
        """Request fields for calls that leave them out."""
        found = {name: getattr(self, name) for name in REQUEST_DEFAULTS if getattr(self, name) is not None}
        return {**(self.extra_body or {}), **found}


class ModelInfo(PriceKeys):
    """model_info of one deployment. Prices in US dollars a token; supports_… say what it can do, absent ones are not known."""

    id: str | None = None
    mode: Literal["chat", "completion", "responses", "embedding", "rerank"] | None = None
    max_input_tokens: Annotated[int, Field(ge=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    output_vector_size: Annotated[int, Field(ge=1)] | None = None
    supports_reasoning: bool = False
    supports_function_calling: bool | None = None
    supports_parallel_function_calling: bool | None = None
    supports_tool_choice: bool | None = None
    supports_vision: bool | None = None
    supports_response_schema: bool | None = None
    supports_system_messages: bool | None = None
    supports_assistant_prefill: bool | None = None
    simulated: bool = False
    # A provider of one's own, which also gets the baggage (it may name users) and the run id.
    trusted: bool = False
    # The entry of the price table, where the deployment's own name says too little (Azure).
    base_model: str | None = None
    # From here on: what only describes a model, as it stands in LiteLLM's table and in what its database writes.
    max_tokens: Any = None
    description: Any = None
    litellm_provider: Any = None
    supports_prompt_caching: Any = None
    supports_pdf_input: Any = None
    supports_audio_input: Any = None
    supports_audio_output: Any = None
    supports_web_search: Any = None
    created_by: Any = None
    created_at: Any = None
    updated_by: Any = None
    updated_at: Any = None
    db_model: Any = None


class ModelEntry(_Section):
    """One deployment."""

    model_name: Annotated[str, Field(min_length=1, max_length=128)]
    litellm_params: LitellmParams
    model_info: Annotated[ModelInfo, _None_is_empty_map] = ModelInfo()


class AutoThresholds(_Section):
    """Where the complexity of a request changes the model; see auto_route."""

    simple: Annotated[float, Field(ge=0, le=1)] = 0.3
    budget: Annotated[float, Field(ge=0, le=1)] = 0.5
    standard: Annotated[float, Field(ge=0, le=1)] = 0.7


class AutoRouter(_Section):
    """One model group that stands for three: which one answers depends on the request and on the budget that is left."""

    name: Annotated[str, Field(min_length=1, max_length=128)] = "auto"
    cheap: str
    balanced: str
    best: str
    thresholds: AutoThresholds = AutoThresholds()
    # A model that is asked for the complexity in one word; none is asked where it is absent.
    classifier: str | None = None


class RouterSettings(_Section):
    """router_settings."""

    num_retries: Annotated[int, Field(ge=0, le=10)] | None = None
    retry_policy: Annotated[dict[str, Annotated[int, Field(ge=0, le=10)]], _None_is_empty_map] = {}
    allowed_fails: Annotated[int, Field(ge=0, le=1000)] | None = None
    cooldown_time: Seconds | None = None
    fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    default_fallbacks: Annotated[list[str], _None_is_empty_list] = []
    context_window_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    content_policy_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    max_fallbacks: Annotated[int, Field(ge=0)] | None = None
    model_group_alias: Annotated[dict[str, str | dict[str, Any]], _None_is_empty_map] = {}
    routing_strategy: str = "least-busy"
    default_max_parallel_requests: Annotated[int, Field(ge=0)] | None = None
    # What a deployment can take is always looked at before a call.
    enable_pre_call_checks: Any = None
    timeout: Seconds | None = None
    auto_router: AutoRouter | list[AutoRouter] | None = None


class CacheParams(_Section):
    """litellm_settings.cache_params. Where the entries are kept is a setting of the process (BULKHEAD_CACHE_URL)."""

    type: str | None = None
    ttl: Seconds | None = None
    mode: Literal["default_on", "default_off"] = "default_on"
    similarity_threshold: Annotated[float, Field(ge=0.5, le=1)] | None = None
    redis_semantic_cache_embedding_model: str | None = None
    qdrant_semantic_cache_embedding_model: str | None = None
    supported_call_types: list[str] | None = None

    def operations(self) -> frozenset[str]:
        """What is cached: chat, embed, rerank."""
        if self.supported_call_types is None:
            return frozenset(CALL_TYPES.values())
        return frozenset(CALL_TYPES[name] for name in self.supported_call_types if name in CALL_TYPES)


class LitellmSettings(_Section):
    """litellm_settings."""

    num_retries: Annotated[int, Field(ge=0, le=10)] | None = None
    request_timeout: Seconds | None = None
    allowed_fails: Annotated[int, Field(ge=0, le=1000)] | None = None
    fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    default_fallbacks: Annotated[list[str], _None_is_empty_list] = []
    context_window_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    content_policy_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    drop_params: bool = False
    cache: bool = False
    cache_params: Annotated[CacheParams, _None_is_empty_map] = CacheParams()
    # In US dollars; the budget of each tenant that has none of its own.
    max_budget: Annotated[Decimal, Field(ge=0, le=10**9)] | None = None
    budget_duration: Annotated[str, Field(pattern=rf"^{PERIOD}$")] | None = None


class GeneralSettings(_Section):
    """general_settings."""

    # For every deployment; absent: where the provider is known to tell the usage of a stream when it is asked to.
    always_include_stream_usage: bool | None = None
    master_key: str | None = None


class ModelsFile(_Section):
    """The whole file."""

    model_list: Annotated[list[ModelEntry], Field(min_length=1)]
    router_settings: Annotated[RouterSettings, _None_is_empty_map] = RouterSettings()
    litellm_settings: Annotated[LitellmSettings, _None_is_empty_map] = LitellmSettings()
    general_settings: Annotated[GeneralSettings, _None_is_empty_map] = GeneralSettings()

    def auto_routers(self) -> list[AutoRouter]:
        """All `auto` models."""
        found = self.router_settings.auto_router
        return [] if found is None else found if isinstance(found, list) else [found]

    def without_effect(self) -> list[str]:
        """Paths of keys that mean nothing to this version."""
        found = list(self.unknown())
        for name in ("router_settings", "litellm_settings", "general_settings"):
            found += [f"{name}.{key}" for key in getattr(self, name).unknown()]
        for number, entry in enumerate(self.model_list):
            found += [f"model_list[{number}].{key}" for key in entry.unknown()]
            for name in ("litellm_params", "model_info"):
                found += [f"model_list[{number}].{name}.{key}" for key in getattr(entry, name).unknown()]
        found += [f"litellm_settings.cache_params.{key}" for key in self.litellm_settings.cache_params.unknown()]
        kind = self.litellm_settings.cache_params.type
        if kind is not None and kind not in CACHE_TYPES:
            found.append(f"litellm_settings.cache_params.type={kind}")
        named = self.litellm_settings.cache_params.supported_call_types or ()
        found += [f"litellm_settings.cache_params.supported_call_types={name}" for name in named if name not in CALL_TYPES]
        found += [f"router_settings.retry_policy.{key}" for key in self.router_settings.retry_policy if key not in RETRY_POLICY]
        for router in self.auto_routers():
            found += [f"router_settings.auto_router.{key}" for key in (*router.unknown(), *router.thresholds.unknown())]
        if self.router_settings.routing_strategy not in STRATEGIES:
            found.append(f"router_settings.routing_strategy={self.router_settings.routing_strategy}")
        return found


def merged(fallbacks: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """LiteLLM's list of one-key mappings as one mapping; lists of the same model are joined."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in fallbacks:
        for model, targets in entry.items():
            found[model] = (*found.get(model, ()), *targets)
    return found
