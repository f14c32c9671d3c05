"""Settings of the orchestrator."""

import math
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from services.common.settings import Port, PositiveSeconds, ServiceSettings

DEFAULT_CONFIG = Path("k8s/environments/local/config")
# The example of the Standard Webhooks specification, but for the last, so that all of it ends within three days.
_MINUTE, _HOUR = 60.0, 3600.0
WEBHOOK_RETRIES_S = (5.0, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 20 * _HOUR)
MOST_WEBHOOK_RETRIES = 32


class Settings(ServiceSettings):
    """Each field is the variable of the same name in capitals after `BULKHEAD_`."""

    service_name: ClassVar[str] = "orchestrator"
    grpc_port: Port = Field(50051, description="Port of the gRPC listener.")
    metrics_port: Port = Field(9462, description="Port of the Prometheus metrics; 0 turns them off.")
    state_url: str = Field(
        "",
        description="URL of the state store (Valkey or Redis 7.2 or newer), or redis+sentinel://host:port,host:port/name.",
    )
    state_replicas: int = Field(
        0, ge=0, le=5, description="Replicas that must have an accept, a claim and a checkpoint on disk before it counts (WAITAOF)."
    )
    least_state_replicas: int = Field(
        0,
        ge=0,
        le=5,
        description="Refuses to start with a lower BULKHEAD_STATE_REPLICAS: one disk that is lost must lose no run.",
    )
    config_dir: Path = Field(DEFAULT_CONFIG, description="Folder of agents.yaml, policies.yaml and prompts/.")
    lease_s: PositiveSeconds = Field(3.0, description="How long a run stays with its owner without a heartbeat, in seconds.")
    heartbeat_s: PositiveSeconds = Field(1.0, description="Time between heartbeats, in seconds; well below the lease.")
    sweep_s: PositiveSeconds = Field(0.5, description="Time between looks for runs without an owner, in seconds.")
    crash_budget: Annotated[int, Field(ge=1)] = Field(3, description="Times a run's worker may be lost before the run is given up.")
    max_active_runs: Annotated[int, Field(ge=1)] = Field(256, description="Runs that one process works on at the same time.")
    other_track_after_s: PositiveSeconds = Field(
        10.0, description="Time after which a run without an owner is offered to the other release track, in seconds."
    )
    delta_batch_s: PositiveSeconds = Field(0.03, le=1.0, description="Longest time that model text waits to be written, in seconds.")
    store_patience_s: PositiveSeconds = Field(
        30.0, description="How long a run waits for an absent state store before its process gives it up, in seconds."
    )
    watch_heartbeat_s: PositiveSeconds = Field(10.0, description="Time between signs of life to an idle watcher, in seconds.")
    watch_max_age_s: PositiveSeconds = Field(3600.0, description="Age at which a watcher is asked to come back, in seconds.")
    segments_dir: Path | None = Field(
        None, description="Folder, the same for all replicas, that logs of ended runs move to; absent: they stay in the state store."
    )
    segments_after_s: PositiveSeconds = Field(
        300.0, description="Time after a run's end at which its log moves to the folder of segments, in seconds."
    )
    envelope_keys_file: Path | None = Field(
        None, description="Root keys that encrypt personal data, the same for orchestrator and memory; absent: nothing is encrypted."
    )
    webhook_allow_private: bool = Field(
        False, description="Lets webhooks go to private addresses and over plain http; for development only."
    )
    webhook_retries_s: tuple[float, ...] = Field(
        WEBHOOK_RETRIES_S, description="Longest waits before each further try to deliver a webhook, in seconds, as a JSON list."
    )
    schedule_grace_s: PositiveSeconds = Field(
        60.0, description="How late a tick of a schedule may be and is still made up, in seconds, whatever its catch-up policy."
    )
    schedule_least_interval_s: PositiveSeconds = Field(60.0, description="Shortest fixed interval of a schedule, in seconds.")
    audit_days: int = Field(0, ge=0, le=3650, description="Days that audit records are kept in the state store; 0 keeps none.")

    def problems(self) -> list[str]:
        """Required settings, readable files, replicas, and a lease that outlives its heartbeats."""
        found = self.missing("state_url")
        if self.address_file is None:
            found += self.missing("llm_gateway_address", "tool_executor_address", "memory_address")
        found += self.unreadable("identity_keys_file", "identity_signing_key_file", "config_dir")
        if self.state_replicas < self.least_state_replicas:
            found.append(
                f"BULKHEAD_STATE_REPLICAS is {self.state_replicas} and must be at least {self.least_state_replicas}: set it to the replicas"
                " of the state store that must have a write on disk"
            )
        if self.heartbeat_s * 2 > self.lease_s:
            found.append("BULKHEAD_HEARTBEAT_S must be at most half of BULKHEAD_LEASE_S")
        if len(self.webhook_retries_s) > MOST_WEBHOOK_RETRIES or not all(0 < wait_s < math.inf for wait_s in self.webhook_retries_s):
            found.append(f"BULKHEAD_WEBHOOK_RETRIES_S must be at most {MOST_WEBHOOK_RETRIES} positive numbers")
        return found
