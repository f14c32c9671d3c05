"""The command line and the environment variables of each process."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.up.plan import Plan, Planned
from services.cli.up.ports import LISTENERS, LOOPBACK, Kind, listeners_of, port_of
from services.cli.up.workspace import Workspace
from services.common import embedded

ISSUERS = ("gateway", "orchestrator", "llm_gateway", "memory")
# Who encrypts what is kept of people, with the same root keys.
ENCRYPTING = ("orchestrator", "memory")
ENVELOPE_KEYS = "BULKHEAD_ENVELOPE_KEYS_FILE"
GRPC_SERVICES = ("orchestrator", "llm_gateway", "tool_executor", "memory")


@dataclass(frozen=True, slots=True)
class Wiring:
    """How the processes find each other. `base` is the environment that all inherit."""

    workspace: Workspace
    plan: Plan
    config_dir: Path
    base: Mapping[str, str]
    port_base: int | None = None

    def port(self, name: str, kind: Kind) -> int:
        """Port of the first replica of `name`, started or not."""
        planned = self.plan.first(name)
        if planned is not None:
            return planned.ports[kind]
        return next(port_of(li, self.port_base) for li in LISTENERS if li.process == name and li.kind == kind)

    @property
    def state_url(self) -> str:
        """URL of the store of record."""
        return f"redis://{LOOPBACK}:{self.port('valkey_state', 'store')}/0"

    def command(self, planned: Planned, ports: Mapping[Kind, int]) -> list[str]:
        """The command line of one process on `ports`."""
        if planned.name == "valkey_state":
            return embedded.valkey_state_command(ports["store"], self.workspace.store(planned.name))
        if planned.name == "valkey_cache":
            return embedded.valkey_cache_command(ports["store"], self.workspace.store(planned.name))
        if planned.name == "milvus":
            return embedded.milvus_command(ports["store"], self.workspace.store(planned.name))
        # -P: a folder `services` in the current directory must not be taken for ours.
        return [sys.executable, "-P", "-m", f"services.{planned.name}"]

    def variables(self, planned: Planned, ports: Mapping[Kind, int]) -> dict[str, str]:
        """The whole environment of one process on `ports`. What `up` owns wins over what it inherited."""
        if planned.is_store:
            return dict(self.base)
        own = {
            "BULKHEAD_HOST": LOOPBACK,
            "BULKHEAD_INSTANCE": planned.label,
            # The log files are ours, and one form is enough for them.
            "BULKHEAD_LOG_FORMAT": "json",
            "BULKHEAD_LOG_SINK": "stdout",
            "BULKHEAD_CONFIG_DIR": str(self.config_dir),
            "BULKHEAD_SIMULATOR_URL": f"http://{LOOPBACK}:{self.port('simulator', 'http')}/v1",
        }
        own.update({listener.variable: str(ports[listener.kind]) for listener in listeners_of(planned.name)})
        if planned.name == "simulator":
            own["BULKHEAD_SIMULATOR_LOG"] = str(self.workspace.logs / "simulator-served.jsonl")
            return {**self.base, **own}
        own.update(
            {
                "BULKHEAD_STATE_URL": self.state_url,
                "BULKHEAD_CACHE_URL": f"redis://{LOOPBACK}:{self.port('valkey_cache', 'store')}/0",
                "BULKHEAD_MILVUS_URI": f"http://{LOOPBACK}:{self.port('milvus', 'store')}",
                "BULKHEAD_IDENTITY_KEYS_FILE": str(self.workspace.keys / "jwks.json"),
                "BULKHEAD_ADDRESS_FILE": str(self.workspace.addresses),
            }
        )
        if planned.name == "llm_gateway":
            own["BULKHEAD_FILES_DIR"] = str(self.workspace.root / "files")
            # A laptop's disk and its other work stand still longer than a server's.
            own.setdefault("BULKHEAD_STORE_TIMEOUT_MS", self.base.get("BULKHEAD_STORE_TIMEOUT_MS", "2000"))
        if planned.name == "orchestrator":
            own["BULKHEAD_SEGMENTS_DIR"] = str(self.workspace.root / "segments")
        if planned.name in ENCRYPTING and ENVELOPE_KEYS not in self.base:
            own[ENVELOPE_KEYS] = str(self.workspace.envelope_keys)
        own.update({f"BULKHEAD_{name.upper()}_ADDRESS": f"{LOOPBACK}:{self.port(name, 'grpc')}" for name in GRPC_SERVICES})
        if planned.name in ISSUERS:
            own["BULKHEAD_IDENTITY_SIGNING_KEY_FILE"] = str(self.workspace.keys / f"{planned.name}.pem")
        return {**self.base, **own}


def base_environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What all processes inherit: `.env.<environment>` in `folder`, and over it the variables of this process."""
    file = folder / f".env.{environ.get('BULKHEAD_ENV', 'local')}"
    if not file.is_file():
        return dict(environ)
    from dotenv import dotenv_values

    return {**{name: value for name, value in dotenv_values(file).items() if value is not None}, **environ}


def address_book(running: Sequence[tuple[str, Mapping[Kind, int]]]) -> dict[str, list[str]]:
    """Content of the address file: every replica of every gRPC service, as `host:port`."""
    book: dict[str, list[str]] = {}
    for name, ports in running:
        if ports.get("grpc"):
            book.setdefault(name, []).append(f"{LOOPBACK}:{ports['grpc']}")
    return book
