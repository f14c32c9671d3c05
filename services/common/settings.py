"""Process settings: environment variables `BULKHEAD_*`, read once at the start, validated all at once, then frozen.

class Settings(ServiceSettings):
    service_name: ClassVar[str] = "memory"
    grpc_port: Port = Field(50054, description="Port of the gRPC listener.")

settings = load(Settings)      # prints every problem and exits with status 2 when something is wrong
"""

import os
import re
import socket
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from dotenv import dotenv_values
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.variables import KNOWN

PREFIX = "BULKHEAD_"
# What `bulkhead up` and the command line know by such names, and no service.
BESIDE = frozenset({"URL", "LLM_URL", "API_KEY", "DATA_DIR", "SIMULATOR_URL"})
# Kubernetes gives each pod such variables for each service of the release.
_LINK_NAME = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)\Z")
_LINK_VALUE = re.compile(r"(tcp|udp)://")
# Letters that were forgotten, doubled or exchanged; beyond it names are other names.
_NEAR = 0.8
Port = Annotated[int, Field(ge=0, le=65535)]
PositiveSeconds = Annotated[float, Field(gt=0)]

# What an environment stands for, and nothing else: code and charts ask for settings, never for the environment's name.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "local": {
        "log_level": "DEBUG",
        "log_format": "console",
        "drain_grace_s": 6.0,
        "drain_flush_s": 1.0,
        "policy_set": "dev",
        "webhook_allow_private": True,
    },
    "dev": {"log_level": "DEBUG", "log_format": "console", "drain_grace_s": 6.0, "drain_flush_s": 1.0, "policy_set": "dev"},
    "test": {"log_level": "INFO", "log_format": "json", "policy_set": "test"},
    "staging": {
        "log_level": "INFO",
        "log_format": "json",
        "policy_set": "prod",
        "price_unknown": "deny",
        "audit_days": 400,
        "envelope_keys_required": True,
    },
    "prod": {
        "log_level": "INFO",
        "log_format": "json",
        "policy_set": "prod",
        "price_unknown": "deny",
        "audit_days": 400,
        "least_state_replicas": 1,
        "envelope_keys_required": True,
    },
}
# A file of root keys, as docs and charts show it too.
MAKE_ROOT_KEYS = """printf '{"keys": [{"id": "%s", "key": "%s"}]}' "$(date +%Y-%m)" "$(openssl rand -base64 32)" > keys.json"""


class StartRefused(Exception):
    """The process must not start; `problems` lists every reason, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _package_version() -> str:
    try:
        return version("bulkhead")
    except PackageNotFoundError:
        return "0+unknown"


class ServiceSettings(BaseSettings):
    """Settings that every service has. Each field is the variable of the same name in capitals after `BULKHEAD_`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)
    service_name: ClassVar[str] = ""

    env: Literal["local", "dev", "test", "staging", "prod"] = Field(
        "local", description="Picks the presets below; any variable beats its preset."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level that is logged.")
    log_format: Literal["console", "json"] = Field("json", description="Readable lines or one JSON object a line.")
    log_sink: Literal["stdout", "jsonl_daily"] = Field(
        "stdout", description="Where log lines go; jsonl_daily writes one file a day into log_dir."
    )
    log_dir: Path = Field(Path(".bulkhead/logs"), description="Folder of the daily files.")
    policy_set: Literal["dev", "test", "prod"] = Field("prod", description="Which set of tier limits of policies.yaml holds.")
    host: str = Field("127.0.0.1", description="Address that the listeners bind to.")
    grpc_port: Port = Field(0, description="Port of the gRPC listener.")
    metrics_port: Port = Field(0, description="Port of the Prometheus metrics; 0 turns them off.")
    instance: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", description="Name of this process among its replicas."
    )
    version: str = Field(default_factory=_package_version, description="Version that logs, traces and metrics carry.")
    track: Literal["stable", "canary"] = Field("stable", description="Release track of this process.")
    drain_grace_s: PositiveSeconds = Field(25.0, description="Time for the work in flight after SIGTERM, in seconds.")
    drain_flush_s: PositiveSeconds = Field(3.0, description="Time to flush telemetry at the end, in seconds.")
    otlp_endpoint: str = Field("", description="OTLP/gRPC collector as http://host:port; empty exports no traces.")
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of new traces that is recorded; a caller's decision wins.")
    identity_keys_file: Path | None = Field(None, description="JWKS with the public keys of all issuers of internal tokens.")
    identity_signing_key_file: Path | None = Field(None, description="Ed25519 private key (PKCS8 PEM) of this issuer.")
    address_file: Path | None = Field(
        None, description="JSON file of the services' addresses, read again when it changes; wins over the addresses."
    )
    orchestrator_address: str = Field("", description="host:port of the orchestrator.")
    llm_gateway_address: str = Field("", description="host:port of the LLM gateway.")
    tool_executor_address: str = Field("", description="host:port of the tool executor.")
    memory_address: str = Field("", description="host:port of the memory service.")

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if isinstance(values, dict):
            preset = PRESETS.get(str(values.get("env", "local")), {})
            values = {**{k: v for k, v in preset.items() if k in cls.model_fields}, **values}
        return values

    def addresses(self) -> dict[str, str]:
        """The fixed addresses of the other services, by service name."""
        return {
            "orchestrator": self.orchestrator_address,
            "llm_gateway": self.llm_gateway_address,
            "tool_executor": self.tool_executor_address,
            "memory": self.memory_address,
        }

    def problems(self) -> list[str]:
        """What is wrong beyond the single fields; a service extends it. Each line names the variable and the way out."""
        return []

    def missing(self, *names: str) -> list[str]:
        """A problem line for each named setting that is empty."""
        return [f"{PREFIX}{name.upper()} is required" for name in names if not getattr(self, name)]

    def unencrypted(self, keys_file: Path | None, *, required: bool) -> list[str]:
        """A problem line where what is kept of people would be stored in plain text and must not be."""
        if keys_file is not None or not required:
            return []
        return [
            f"{PREFIX}ENVELOPE_KEYS_FILE is required: what is kept of people is not stored in plain text here. One file is for orchestrator"
            f" and memory; this makes it: {MAKE_ROOT_KEYS}"
        ]

    def unreadable(self, *names: str) -> list[str]:
        """A problem line for each named file that is missing or cannot be read; an unset one is a problem as well."""
        found = []
        for name in names:
            path: Path | None = getattr(self, name)
            if path is None:
                found.append(f"{PREFIX}{name.upper()} is required")
            elif not path.exists():
                found.append(f"{PREFIX}{name.upper()}: {path} does not exist")
            elif not os.access(path, os.R_OK):
                found.append(f"{PREFIX}{name.upper()}: {path} cannot be read")
        return found


class ReplicatedSettings(ServiceSettings):
    """Of a service that keeps in the state store what no loss of a primary may take."""

    state_replicas: int = Field(
        0,
        ge=0,
        le=5,
        description="Replicas that must have on disk, before it counts (WAITAOF), what must not be lost: accepts, claims and checkpoints of"
        " runs, claims of tool calls that must not be made twice, idempotency and audit records.",
    )
    least_state_replicas: int = Field(
        0, ge=0, le=5, description="Refuses to start with a lower BULKHEAD_STATE_REPLICAS: one disk that is lost must lose nothing."
    )

    def problems(self) -> list[str]:
        """Too few replicas."""
        if self.state_replicas >= self.least_state_replicas:
            return super().problems()
        return [
            *super().problems(),
            f"BULKHEAD_STATE_REPLICAS is {self.state_replicas} and must be at least {self.least_state_replicas}: set it to the replicas"
            " of the state store that must have a write on disk",
        ]


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def parse(cls: type[SettingsT]) -> SettingsT:
    """Reads and validates the environment. Raises StartRefused with every problem."""
    try:
        settings = cls(_env_file=_env_file())
    except ValidationError as error:
        # The rejected value is not repeated: a mistyped variable may hold a secret.
        lines = [f"{PREFIX}{'_'.join(str(p) for p in e['loc']).upper()}: {e['msg']}" for e in error.errors()]
        raise StartRefused(lines) from None
    if problems := settings.problems():
        raise StartRefused(problems)
    return settings


def _env_file() -> str | None:
    # Kubernetes gives each pod its environment; a stray file there must not change it.
    inside_kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ
    return None if inside_kubernetes else f".env.{os.environ.get(f'{PREFIX}ENV', 'local')}"


def unknown_variables() -> dict[str, str]:
    """Variables `BULKHEAD_*` that no process of the platform knows, each with the setting that it is probably meant to be, or ""."""
    file, found = _env_file(), {}
    written = dotenv_values(file) if file is not None and Path(file).is_file() else {}
    for name, value in sorted({**written, **os.environ}.items()):
        bare = name[len(PREFIX) :].upper()
        if not name.upper().startswith(PREFIX) or bare in KNOWN or bare in BESIDE:
            continue
        if _LINK_NAME.search(name) or _LINK_VALUE.match(value or ""):
            continue
        near = get_close_matches(bare, KNOWN, n=1, cutoff=_NEAR)
        found[name] = PREFIX + near[0] if near else ""
    return found


def load(cls: type[SettingsT]) -> SettingsT:
    """As `parse`, but for `__main__`: prints every problem and leaves with status 2."""
    try:
        return parse(cls)
    except StartRefused as refusal:
        print(f"{cls.service_name}: cannot start", *(f"  - {p}" for p in refusal.problems), sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
