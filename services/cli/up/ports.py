"""The ports of everything that `up` starts: the fixed defaults, or sixteen in a row from `--port-base`."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

LOOPBACK = "127.0.0.1"
Kind = Literal["http", "grpc", "metrics", "store"]


@dataclass(frozen=True, slots=True)
class Listener:
    """One port of one process. `offset` counts from --port-base; `variable` is the setting that holds the port."""

    process: str
    kind: Kind
    default: int
    offset: int
    variable: str


LISTENERS: tuple[Listener, ...] = (
    Listener("gateway", "http", 8080, 0, "BULKHEAD_HTTP_PORT"),
    Listener("llm_gateway", "http", 8081, 1, "BULKHEAD_HTTP_PORT"),
    Listener("orchestrator", "grpc", 50051, 2, "BULKHEAD_GRPC_PORT"),
    Listener("llm_gateway", "grpc", 50052, 3, "BULKHEAD_GRPC_PORT"),
    Listener("tool_executor", "grpc", 50053, 4, "BULKHEAD_GRPC_PORT"),
    Listener("memory", "grpc", 50054, 5, "BULKHEAD_GRPC_PORT"),
    Listener("simulator", "http", 8090, 6, "BULKHEAD_HTTP_PORT"),
    Listener("gateway", "metrics", 9461, 7, "BULKHEAD_METRICS_PORT"),
    Listener("orchestrator", "metrics", 9462, 8, "BULKHEAD_METRICS_PORT"),
    Listener("llm_gateway", "metrics", 9463, 9, "BULKHEAD_METRICS_PORT"),
    Listener("tool_executor", "metrics", 9464, 10, "BULKHEAD_METRICS_PORT"),
    Listener("memory", "metrics", 9465, 11, "BULKHEAD_METRICS_PORT"),
    Listener("simulator", "metrics", 9466, 12, "BULKHEAD_METRICS_PORT"),
    Listener("valkey_state", "store", 6479, 13, "BULKHEAD_STATE_URL"),
    Listener("valkey_cache", "store", 6480, 14, "BULKHEAD_CACHE_URL"),
    Listener("milvus", "store", 19530, 15, "BULKHEAD_MILVUS_URI"),
)
SPAN = len(LISTENERS)


def listeners_of(process: str) -> list[Listener]:
    """The ports of one process."""
    return [listener for listener in LISTENERS if listener.process == process]


def port_of(listener: Listener, port_base: int | None) -> int:
    """The port of the first replica."""
    return listener.default if port_base is None else port_base + listener.offset


def is_free(port: int) -> bool:
    """Whether a server could bind `port` on loopback now."""
    with socket.socket() as probe:
        # As the servers bind: what lingers in TIME_WAIT is no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_ports(count: int, avoid: Iterable[int] = ()) -> list[int]:
    """`count` different ports that are free now and not in `avoid`."""
    taken = set(avoid)
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = probe.getsockname()[1]
        if port not in taken:
            taken.add(port)
            found.append(port)
    return found
