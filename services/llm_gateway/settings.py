"""Settings of the LLM gateway.

BULKHEAD_GRPC_PORT=50052
BULKHEAD_HTTP_PORT=8081                          # the OpenAI-compatible model port; 0 (default) leaves it off
BULKHEAD_CONFIG_DIR=/etc/bulkhead/config         # holds models.yaml
BULKHEAD_STATE_URL=redis://127.0.0.1:6379/0      # accounts of the model port
BULKHEAD_MODEL_FIRST_TOKEN_TIMEOUT_S=10          # one of the four timeouts of a model call
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from services.common.settings import Port, PositiveSeconds, ReplicatedSettings

MODELS_FILE = "models.yaml"
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 1000.0


def _weights(value: Any) -> Any:
    """Reads tier=weight,tier=weight. Raises ValueError, which never repeats what was written: a mistyped variable may hold a secret."""
    if not isinstance(value, str):
        return value
    found: dict[str, float] = {}
    for pair in value.split(","):
        tier, equals, weight = (part.strip() for part in pair.partition("="))
        if not tier or not equals or tier in found:
            raise ValueError("write tier=weight for each tier once, with commas between them")
        try:
            found[tier] = float(weight)
        except ValueError:
            found[tier] = 0.0
        if not LEAST_WEIGHT <= found[tier] <= MOST_WEIGHT:
            raise ValueError(f"a weight is a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return found


TierWeights = Annotated[dict[str, float], NoDecode, BeforeValidator(_weights)]


class Settings(ReplicatedSettings):
    """Settings of the LLM gateway, beside those that every service has. Retries and timeouts can be set per model as well."""

    service_name: ClassVar[str] = "llm_gateway"

    grpc_port: Port = Field(50052, description="Port of the gRPC listener.")
    http_port: Port = Field(0, description="Port of the OpenAI-compatible model port; 0 leaves it off.")
    metrics_port: Port = Field(9463, description="Port of the Prometheus metrics; 0 turns them off.")
    config_dir: Path = Field(Path("k8s/environments/local/config"), description="Folder that holds models.yaml.")
    state_url: str = Field("", description="Valkey with the accounts, as redis://host:port/0.")
    state_replicas: int = Field(
        0, ge=0, le=5, description="Replicas that must have a reservation, what it cost, a key or an idempotency record on disk (WAITAOF)."
    )
    least_state_replicas: int = Field(
        0, ge=0, le=5, description="Refuses to start with a lower BULKHEAD_STATE_REPLICAS: money that was spent must not be there again."
    )
    audit_days: int = Field(0, ge=0, le=3650, description="Days that audit records are kept in the state store; 0 keeps none.")
    cache_url: str = Field("", description="Valkey for cached answers; empty: in the process and in cache_dir only.")
    cache_ttl_s: PositiveSeconds = Field(3600.0, description="Life of a cached answer; cache_params.ttl of models.yaml wins.")
    cache_l1_entries: Annotated[int, Field(ge=0)] = Field(1000, description="Answers that a process keeps in its own memory.")
    cache_stale_s: Annotated[float, Field(ge=0)] = Field(
        86_400.0, description="How much longer an answer is kept for the case that every provider fails."
    )
    cache_disk_bytes: Annotated[int, Field(ge=0)] = Field(1024**3, description="Most bytes of the disk cache.")
    cache_dir: Path | None = Field(None, description="Folder of the disk cache; absent turns it off.")
    cache_per_user: bool = Field(False, description="Keep cached answers apart by user, not only by tenant.")
    cache_semantic_model: str = Field(
        "", description="Embedding model that finds similar questions; models.yaml (cache_params) wins. Empty: no semantic cache."
    )
    cache_semantic_static: bool = Field(
        False, description="Let static embedders decide about similar questions; they tell 'cancel' from 'do not cancel' badly."
    )
    store_timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = Field(
        50, description="Longest wait for a store on the way of a call, its replicas apart. Budgets fail closed after it, caches open."
    )
    price_unknown: Literal["deny", "zero"] = Field(
        "zero", description="What happens to calls of models without a known price: refused, or counted as free with a warning."
    )
    master_key: str = Field(
        "", repr=False, description="The operator's key for the admin routes of the model port; wins over general_settings.master_key."
    )
    http_workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Processes that share the model port; their metrics ports follow one another."
    )
    http_worker: Annotated[int, Field(ge=0, le=63)] = Field(0, description="Which of them this one is; set by the first for the others.")
    files_dir: Path | None = Field(None, description="Folder of uploaded files and batch results; absent: no files, no batches.")
    files_max_bytes: Annotated[int, Field(ge=1)] = Field(200 * 1024 * 1024, description="Largest file that can be uploaded, in bytes.")
    files_tenant_bytes: Annotated[int, Field(ge=1)] = Field(
        10 * 1024**3, description="Most bytes that the files of one tenant take up, uploads under way and results of batches included."
    )
    files_tenant_count: Annotated[int, Field(ge=1)] = Field(10_000, description="Most files of one tenant.")
    batch_concurrency: Annotated[int, Field(ge=1, le=256)] = Field(8, description="Lines of one batch that are asked at the same time.")
    ledger_dir: Path | None = Field(None, description="Folder to export the ledger to, one JSONL file a day.")
    ledger_lines: Annotated[int, Field(ge=1000)] = Field(1_000_000, description="Ledger lines a tenant that the store keeps, about.")
    run_answers_kept_s: PositiveSeconds = Field(
        120.0, description="How long an answer to a model call of a run can be given again, in seconds; other keyed calls: 24 hours."
    )
    queue_wait_s: PositiveSeconds = Field(10.0, description="Longest wait for a place at a deployment that is full.")
    queue_length: Annotated[int, Field(ge=0)] = Field(1000, description="Calls that may wait at one deployment before more are refused.")
    queue_per_tenant: Annotated[int, Field(ge=0)] = Field(100, description="How many of those may be of one tenant.")
    # The default is written as the variable is, and read like it.
    queue_tier_weights: TierWeights = Field(
        "free=1,pro=2,enterprise=4",  # type: ignore[arg-type]
        description="How the places of a full deployment are shared out between tiers; one that is not named weighs 1.",
    )
    genai_semconv: Literal["latest", "previous"] = Field(
        "latest", description="Names of the GenAI metrics and attributes: today's conventions, or those before them."
    )
    capture_content: bool = Field(False, description="Put prompts and answers into spans. They hold what users wrote.")
    hedge_after_p95: bool = Field(False, description="Ask a second deployment when the first token takes longer than it mostly does.")
    hedge_extra_cost: Annotated[float, Field(ge=0, le=0.5)] = Field(0.05, description="Most that second requests may cost, as a share.")
    model_connect_timeout_s: PositiveSeconds = Field(5.0, description="Time to connect to a provider.")
    model_first_token_timeout_s: PositiveSeconds = Field(10.0, description="Time to the first token of a stream.")
    model_reasoning_first_token_timeout_s: PositiveSeconds = Field(
        60.0, description="The same for models with model_info.supports_reasoning."
    )
    model_between_tokens_timeout_s: PositiveSeconds = Field(10.0, description="Longest silence within an answer that has begun.")
    model_total_timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        120.0, description="Longest time of one model call with all its attempts; a caller's deadline can only shorten it."
    )
    model_num_retries: Annotated[int, Field(ge=0, le=10)] = Field(
        3, description="Retries a model; router_settings.num_retries of models.yaml wins."
    )
    model_max_attempts: Annotated[int, Field(ge=1, le=32)] = Field(8, description="Most upstream attempts of one call, over all models.")
    model_retry_base_s: PositiveSeconds = Field(1.0, description="Base delay of the exponential backoff with full jitter.")
    model_retry_cap_s: PositiveSeconds = Field(10.0, description="Longest wait before a retry, a provider's Retry-After included.")

    def problems(self) -> list[str]:
        """Missing stores, keys and files."""
        found = [*super().problems(), *self.missing("state_url"), *self.unreadable("identity_keys_file")]
        if not (self.config_dir / MODELS_FILE).is_file():
            found.append(f"BULKHEAD_CONFIG_DIR: {self.config_dir / MODELS_FILE} does not exist")
        return found
