"""Settings of the tool executor."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.common.settings import Port, ReplicatedSettings


class Settings(ReplicatedSettings):
    """Environment variables of the tool executor; memory_address is where `search_documents` looks."""

    service_name: ClassVar[str] = "tool_executor"

    grpc_port: Port = Field(50053, description="Port of the gRPC listener.")
    metrics_port: Port = Field(9464, description="Port of the Prometheus metrics; 0 turns them off.")
    state_url: str = Field("", description="Valkey of the call records and rate limits, as redis://host:port/0.")
    config_dir: Path = Field(Path("k8s/environments/local/config"), description="Folder with tools.yaml and policies.yaml.")
    audit_days: int = Field(0, ge=0, le=3650, description="Days that audit records are kept in the state store; 0 keeps none.")

    def problems(self) -> list[str]:
        """What is missing to start."""
        return [*super().problems(), *self.missing("state_url"), *self.unreadable("config_dir", "identity_keys_file")]
