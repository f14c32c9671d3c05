"""models.yaml in LiteLLM's shape, validated as a whole: every problem is listed, every key without effect is named."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Request fields that litellm_params may set for calls that leave them out.
REQUEST_DEFAULTS = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty", "seed", "stop",
    "reasoning_effort", "parallel_tool_calls", "user", "dimensions",
)  # fmt: skip
STRATEGIES = ("least-busy", "simple-shuffle")

Price = Annotated[Decimal, Field(ge=0, le=1)]
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


class LitellmParams(_Section):
    """litellm_params of one deployment."""

    model: Annotated[str, Field(min_length=1)]
    api_base: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    organization: str | None = None
    timeout: Seconds | None = None
    stream_timeout: Seconds | None = None
    weight: Annotated[float, Field(gt=0)] | None = None
    order: int | None = None
    input_cost_per_token: Price | None = None
    output_cost_per_token: Price | None = None
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

    def defaults(self) -> dict[str, Any]:
        """Request fields for calls that leave them out."""
        found = {name: getattr(self, name) for name in REQUEST_DEFAULTS if getattr(self, name) is not None}
        return {**(self.extra_body or {}), **found}


class ModelInfo(_Section):
    """model_info of one deployment. Prices in US dollars a token."""

    id: str | None = None
    mode: Literal["chat", "completion", "embedding"] | None = None
    input_cost_per_token: Price | None = None
    output_cost_per_token: Price | None = None
    cache_read_input_token_cost: Price | None = None
    output_cost_per_reasoning_token: Price | None = None
    max_input_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Any = None
    max_output_tokens: Any = None
    output_vector_size: Annotated[int, Field(ge=1)] | None = None
    supports_reasoning: bool = False
    simulated: bool = False
    # A provider of one's own, which also gets the baggage (it may name users) and the run id.
    trusted: bool = False
    base_model: Any = None
    description: Any = None
    litellm_provider: Any = None
    supports_function_calling: Any = None
    supports_vision: Any = None
    supports_response_schema: Any = None
    supports_tool_choice: Any = None
    supports_system_messages: Any = None


class ModelEntry(_Section):
    """One deployment."""

    model_name: Annotated[str, Field(min_length=1, max_length=128)]
    litellm_params: LitellmParams
    model_info: Annotated[ModelInfo, _None_is_empty_map] = ModelInfo()


class RouterSettings(_Section):
    """router_settings."""

    num_retries: Annotated[int, Field(ge=0, le=10)] | None = None
    fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    default_fallbacks: Annotated[list[str], _None_is_empty_list] = []
    context_window_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    content_policy_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    max_fallbacks: Annotated[int, Field(ge=0)] | None = None
    model_group_alias: Annotated[dict[str, str | dict[str, Any]], _None_is_empty_map] = {}
    routing_strategy: str = "least-busy"
    timeout: Seconds | None = None


class LitellmSettings(_Section):
    """litellm_settings."""

    num_retries: Annotated[int, Field(ge=0, le=10)] | None = None
    request_timeout: Seconds | None = None
    fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    default_fallbacks: Annotated[list[str], _None_is_empty_list] = []
    context_window_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []
    content_policy_fallbacks: Annotated[Fallbacks, _None_is_empty_list] = []


class GeneralSettings(_Section):
    """general_settings."""

    always_include_stream_usage: bool = False


class ModelsFile(_Section):
    """The whole file."""

    model_list: Annotated[list[ModelEntry], Field(min_length=1)]
    router_settings: Annotated[RouterSettings, _None_is_empty_map] = RouterSettings()
    litellm_settings: Annotated[LitellmSettings, _None_is_empty_map] = LitellmSettings()
    general_settings: Annotated[GeneralSettings, _None_is_empty_map] = GeneralSettings()

    def without_effect(self) -> list[str]:
        """Paths of keys that mean nothing to this version."""
        found = list(self.unknown())
        for name in ("router_settings", "litellm_settings", "general_settings"):
            found += [f"{name}.{key}" for key in getattr(self, name).unknown()]
        for number, entry in enumerate(self.model_list):
            found += [f"model_list[{number}].{key}" for key in entry.unknown()]
            for name in ("litellm_params", "model_info"):
                found += [f"model_list[{number}].{name}.{key}" for key in getattr(entry, name).unknown()]
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
