"""Settings of the orchestrator."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from services.common.settings import Port, PositiveSeconds, ReplicatedSettings
from services.orchestrator.results import INLINE_BYTES

DEFAULT_CONFIG = Path("k8s/environments/local/config")
# The example of the Standard Webhooks specification, but for the last, so that all of it ends within three days.
_MINUTE, _HOUR = 60.0, 3600.0
WEBHOOK_RETRIES_S = (5.0, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 20 * _HOUR)
MOST_WEBHOOK_RETRIES = 32
BUCKET_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()-]+)*/?")
ENDPOINT = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+/?")


class Settings(ReplicatedSettings):
    """Each field is the variable of the same name in capitals after `BULKHEAD_`."""

    service_name: ClassVar[str] = "orchestrator"
    grpc_port: Port = Field(50051, description="Port of the gRPC listener.")
    metrics_port: Port = Field(9462, description="Port of the Prometheus metrics; 0 turns them off.")
    state_url: str = Field(
        "",
        description="URL of the state store (Valkey or Redis 7.2 or newer), or redis+sentinel://host:port,host:port/name.",
    )
    config_dir: Path = Field(DEFAULT_CONFIG, description="Folder of agents.yaml, policies.yaml and prompts/.")
    lease_s: PositiveSeconds = Field(3.0, description="How long a run stays with its owner without a heartbeat, in seconds.")
    heartbeat_s: PositiveSeconds = Field(1.0, description="Time between heartbeats, in seconds; well below the lease.")
    sweep_s: PositiveSeconds = Field(0.5, description="Time between looks for runs without an owner, in seconds.")
    crash_budget: Annotated[int, Field(ge=1)] = Field(
        3, description="A run that loses so many owners without a checkpoint in between is given up."
    )
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
    segments_url: str = Field("", description="Bucket that logs of ended runs move to instead of a folder: s3://bucket/prefix.")
    segments_endpoint: str = Field("", description="Address of the bucket's server, http(s)://host:port; empty: AWS.")
    segments_region: str = Field("us-east-1", description="Region of the bucket, which signatures name.")
    segments_path_style: bool = Field(True, description="Names the bucket in the path of a request and not before the host.")
    segments_credentials_dir: Path | None = Field(
        None,
        description="Folder with the files access_key_id, secret_access_key and perhaps session_token; absent: what AWS's variables say.",
    )
    segments_ca_file: Path | None = Field(
        None, description="Certificates, as PEM, that the bucket's server may be known by besides those of the system."
    )
    segments_after_s: PositiveSeconds = Field(
        300.0, description="Time after a run's end at which its log moves to the folder or bucket of segments, in seconds."
    )
    results_inline_bytes: int = Field(
        INLINE_BYTES,
        ge=1024,
        description="Results of tools that are larger, in bytes, stand in the folder or bucket of segments and not in the state store.",
    )
    blobs_most_bytes_per_tenant: int = Field(
        10 * 1024**3, ge=1, description="What all blobs of a tenant may take, in bytes; they stand in the folder or bucket of segments."
    )
    envelope_keys_file: Path | None = Field(
        None, description="Root keys that encrypt personal data, the same for orchestrator and memory; absent: nothing is encrypted."
    )
    envelope_keys_required: bool = Field(
        False, description="Refuses to start without BULKHEAD_ENVELOPE_KEYS_FILE: personal data is not stored in plain text."
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
    hook_messages_per_minute: Annotated[int, Field(ge=1)] = Field(
        60, description="Messages that a hook takes in a minute; they count among the requests of its maker as well."
    )
    audit_days: int = Field(0, ge=0, le=3650, description="Days that audit records are kept in the state store; 0 keeps none.")

    def problems(self) -> list[str]:
        """Required settings, readable files, replicas, and a lease that outlives its heartbeats."""
        found = [*super().problems(), *self.missing("state_url")]
        if self.address_file is None:
            found += self.missing("llm_gateway_address", "tool_executor_address", "memory_address")
        found += self.unreadable("identity_keys_file", "identity_signing_key_file", "config_dir")
        found += self.unencrypted(self.envelope_keys_file, required=self.envelope_keys_required)
        found += self._segment_problems()
        if self.heartbeat_s * 2 > self.lease_s:
            found.append("BULKHEAD_HEARTBEAT_S must be at most half of BULKHEAD_LEASE_S")
        if len(self.webhook_retries_s) > MOST_WEBHOOK_RETRIES or not all(0 < wait_s < math.inf for wait_s in self.webhook_retries_s):
            found.append(f"BULKHEAD_WEBHOOK_RETRIES_S must be at most {MOST_WEBHOOK_RETRIES} positive numbers")
        return found

    def _segment_problems(self) -> list[str]:
        """One place for segments, and a bucket that can be meant."""
        found = []
        if not self.segments_url:
            if self.segments_endpoint or self.segments_credentials_dir or self.segments_ca_file:
                found.append("BULKHEAD_SEGMENTS_ENDPOINT, _CREDENTIALS_DIR and _CA_FILE are for BULKHEAD_SEGMENTS_URL, which is not set")
            return found
        if self.segments_dir is not None:
            found.append("BULKHEAD_SEGMENTS_DIR and BULKHEAD_SEGMENTS_URL: set one of them, logs move to one place")
        if not BUCKET_URL.fullmatch(self.segments_url):
            found.append("BULKHEAD_SEGMENTS_URL must be s3://bucket or s3://bucket/prefix")
        if self.segments_endpoint and not ENDPOINT.fullmatch(self.segments_endpoint):
            found.append("BULKHEAD_SEGMENTS_ENDPOINT must be http://host:port or https://host:port, without a path")
        if self.segments_ca_file is not None:
            found += self.unreadable("segments_ca_file")
        if self.segments_credentials_dir is not None:
            for name in ("access_key_id", "secret_access_key"):
                if not os.access(self.segments_credentials_dir / name, os.R_OK):
                    found.append(f"BULKHEAD_SEGMENTS_CREDENTIALS_DIR: {self.segments_credentials_dir / name} cannot be read")
        return found
