"""Settings of the LLM gateway.

BULKHEAD_GRPC_PORT=50052
BULKHEAD_HTTP_PORT=8081                          # the OpenAI-compatible model port; 0 (default) leaves it off
BULKHEAD_CONFIG_DIR=/etc/bulkhead/config         # holds models.yaml
BULKHEAD_STATE_URL=redis://127.0.0.1:6379/0      # accounts of the model port
BULKHEAD_MODEL_FIRST_TOKEN_TIMEOUT_S=10          # one of the four timeouts of a model call
"""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from services.common.settings import Port, PositiveSeconds, ServiceSettings

MODELS_FILE = "models.yaml"


class Settings(ServiceSettings):
    """Settings of the LLM gateway, beside those that every service has. Retries and timeouts can be set per model as well."""

    service_name: ClassVar[str] = "llm_gateway"

    grpc_port: Port = Field(50052, description="Port of the gRPC listener.")
    http_port: Port = Field(0, description="Port of the OpenAI-compatible model port; 0 leaves it off.")
    metrics_port: Port = Field(9463, description="Port of the Prometheus metrics; 0 turns them off.")
    config_dir: Path = Field(Path("k8s/environments/local/config"), description="Folder that holds models.yaml.")
    state_url: str = Field("", description="Valkey with the accounts, as redis://host:port/0.")
    cache_url: str = Field("", description="Valkey for what may be lost; not used yet.")
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
