"""What `up` starts: which processes, how many of each, on which ports. Nothing here touches the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.cli.failure import UsageProblem
from services.cli.up.ports import LISTENERS, SPAN, Kind, Listener, listeners_of, port_of
from services.common.edges import EDGES

STORES = ("valkey_state", "valkey_cache", "milvus")
SERVICES = ("gateway", "orchestrator", "llm_gateway", "tool_executor", "memory")
SIMULATOR = "simulator"
STORES_OF: Mapping[str, tuple[str, ...]] = {
    "gateway": ("valkey_state",),
    "orchestrator": ("valkey_state",),
    "llm_gateway": ("valkey_state", "valkey_cache"),
    "tool_executor": ("valkey_state", "valkey_cache"),
    "memory": ("valkey_state", "valkey_cache", "milvus"),
    "simulator": (),
}
MAX_REPLICAS = 16


@dataclass(frozen=True, slots=True)
class Planned:
    """One process to start: the `index`-th of its name. A port of 0 is to be chosen when it starts."""

    name: str
    index: int
    ports: Mapping[Kind, int]

    @property
    def label(self) -> str:
        """Name of its log and pid files, as `orchestrator-0`."""
        return f"{self.name}-{self.index}"

    @property
    def is_store(self) -> bool:
        """Whether it holds state for the others."""
        return self.name in STORES


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to start. `partial`: a service lacks one that it calls, so it can never become ready, only alive."""

    processes: Sequence[Planned]
    partial: bool = False
    names: frozenset[str] = field(default=frozenset())

    def first(self, name: str) -> Planned | None:
        """The first replica of `name`, or None when it is not started."""
        return next((p for p in self.processes if p.name == name and p.index == 0), None)

    def fixed_ports(self) -> list[tuple[Listener, int]]:
        """The ports that must be free before anything is started."""
        return [
            (listener, planned.ports[listener.kind])
            for planned in self.processes
            for listener in listeners_of(planned.name)
            if planned.ports[listener.kind]
        ]


def service_name(text: str) -> str:
    """`llm-gateway` and `llm_gateway` alike. Raises UsageProblem for anything that is not a service."""
    name = text.strip().replace("-", "_")
    if name not in STORES_OF:
        raise UsageProblem(f"there is no service {text!r}; services: {', '.join(STORES_OF)}")
    return name


def parse_replicas(values: Sequence[str]) -> dict[str, int]:
    """`["orchestrator=2"]` as a mapping. Raises UsageProblem."""
    counts: dict[str, int] = {}
    for value in values:
        name, equals, number = value.partition("=")
        name = service_name(name)
        if not equals or not number.isdigit() or not 1 <= int(number) <= MAX_REPLICAS:
            raise UsageProblem(f"--replicas {value}: expected SERVICE=N with N from 1 to {MAX_REPLICAS}, as orchestrator=2")
        if name == SIMULATOR:
            raise UsageProblem("--replicas simulator: there is one simulator, at the address that models.yaml names")
        counts[name] = int(number)
    return counts


def make_plan(
    *, only: Sequence[str] = (), replicas: Mapping[str, int] | None = None, port_base: int | None = None, simulator: bool = True
) -> Plan:
    """The processes to start, stores first. `simulator`: whether the models in force are served by it. Raises UsageProblem."""
    if port_base is not None and not 1 <= port_base <= 65536 - SPAN:
        raise UsageProblem(f"--port-base {port_base}: expected 1 to {65536 - SPAN}, as {SPAN} ports in a row are used")
    replicas = replicas or {}
    chosen = [service_name(name) for name in only] or [*SERVICES, *([SIMULATOR] if simulator else [])]
    if "llm_gateway" in chosen and simulator and SIMULATOR not in chosen:
        chosen.append(SIMULATOR)
    if unused := sorted(set(replicas) - set(chosen)):
        raise UsageProblem(f"--replicas {unused[0]}: it is not among what --only starts")
    names = [s for s in STORES if any(s in STORES_OF[name] for name in chosen)]
    names += [s for s in (SIMULATOR, *reversed(SERVICES)) if s in chosen]
    processes = [
        Planned(name, index, {li.kind: port_of(li, port_base) if index == 0 else 0 for li in LISTENERS if li.process == name})
        for name in names
        for index in range(replicas.get(name, 1))
    ]
    lacking = {edge.callee for edge in EDGES if edge.caller in chosen} - set(chosen)
    return Plan(processes, partial=bool(lacking), names=frozenset(names))
