"""Settings of the gateway.

BULKHEAD_HTTP_PORT=8080                               # products and the console
BULKHEAD_STATE_URL=redis://127.0.0.1:6379/0           # keys and rate limits
BULKHEAD_ORCHESTRATOR_ADDRESS=127.0.0.1:50051         # likewise MEMORY and TOOL_EXECUTOR
BULKHEAD_IDENTITY_KEYS_FILE=keys/jwks.json
BULKHEAD_IDENTITY_SIGNING_KEY_FILE=keys/gateway.pem   # it issues the internal token of each request
"""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from services.common.settings import Port, PositiveSeconds, ServiceSettings

NEEDED_SERVICES = ("orchestrator", "memory", "tool_executor")


class Settings(ServiceSettings):
    """Settings of the gateway, beside those of every service."""

    service_name: ClassVar[str] = "gateway"

    http_port: Port = Field(8080, description="Port of the product API and the console.")
    metrics_port: Port = Field(9461, description="Port of the Prometheus metrics; 0 turns them off.")
    state_url: str = Field("", description="Valkey with keys and rate limits, as redis://host:port/0.")
    state_replicas: int = Field(
        0,
        ge=0,
        le=5,
        description="Replicas that must have an idempotency record or a change of an API key on disk (WAITAOF), before it counts.",
    )
    audit_days: int = Field(0, ge=0, le=3650, description="Days that audit records are kept in the state store; 0 keeps none.")
    config_dir: Path = Field(Path("k8s/environments/local/config"), description="Folder with policies.yaml.")
    body_limit_bytes: Annotated[int, Field(ge=1024)] = Field(4 * 1024 * 1024, description="Largest request body, in bytes.")
    body_timeout_s: PositiveSeconds = Field(20.0, description="Time for a client to send its whole body, in seconds.")
    upload_limit_bytes: Annotated[int, Field(ge=1024, le=25 * 1024 * 1024)] = Field(
        25 * 1024 * 1024, description="Largest blob that is taken, in bytes."
    )
    upload_timeout_s: PositiveSeconds = Field(
        300.0, description="Time for a client to send a blob, in seconds; nothing of it may be silent for longer than the time of a body."
    )
    # What is deeper orjson reads and does not write: it could not be passed on.
    json_depth_limit: Annotated[int, Field(ge=4, le=254)] = Field(64, description="Deepest nesting of JSON that is accepted.")
    sse_heartbeat_s: Annotated[float, Field(gt=0, le=15)] = Field(10.0, description="Longest silence on an event stream, in seconds.")
    stream_max_age_s: PositiveSeconds = Field(3600.0, description="Age at which a stream is closed, resumable, in seconds.")
    stream_reconnect_s: PositiveSeconds = Field(30.0, description="How long a stream looks for an orchestrator, in seconds.")
    stream_silence_s: PositiveSeconds = Field(
        45.0, description="Silence of the orchestrator, without a sign of life, after which a stream dials again, in seconds."
    )
    slow_reader_s: PositiveSeconds = Field(30.0, description="A client that takes no byte for this long is closed, in seconds.")
    wait_limit_s: PositiveSeconds = Field(600.0, description="Longest wait for an answer that is not streamed, in seconds.")
    proof_wait_s: PositiveSeconds = Field(
        10.0, description="On OpenAI routes: how long the headers wait for a sign that the run works, in seconds."
    )
    websocket_message_bytes: Annotated[int, Field(ge=1024)] = Field(1024 * 1024, description="Largest message of a WebSocket, in bytes.")
    websocket_commands_per_s: Annotated[float, Field(gt=0)] = Field(20.0, description="Commands a second on one WebSocket.")
    websocket_watches: Annotated[int, Field(ge=1)] = Field(32, description="Runs and threads that one WebSocket may watch at a time.")
    websocket_idle_s: PositiveSeconds = Field(300.0, description="A WebSocket without watch and command is closed, in seconds.")
    websocket_ping_s: PositiveSeconds = Field(20.0, description="Time between pings of a WebSocket, and to answer one, in seconds.")
    websocket_origins: str = Field(
        "", description="Origins of web pages that may open a WebSocket, beside the gateway's own, by commas; * for any."
    )

    def problems(self) -> list[str]:
        """What is missing beyond single fields."""
        found = self.missing("state_url")
        found += self.unreadable("identity_signing_key_file", "config_dir")
        if self.address_file is None:
            found += self.missing(*(f"{service}_address" for service in NEEDED_SERVICES))
        return found
