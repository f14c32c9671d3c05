"""The whole platform as a user starts it: `bulkhead up`, and an OTLP receiver that keeps what it is sent."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.common import testing
from services.common.testing import Process


@dataclass(frozen=True)
class Span:
    """One received span, with its attributes as plain values."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    attributes: dict = field(hash=False)
    error: bool = False


class Receiver(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps every span that arrives over OTLP/gRPC."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    def Export(self, request, context):
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            return metrics_service_pb2.ExportMetricsServiceResponse()
        with self._lock:
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                for scope in resource.scope_spans:
                    self._spans.extend(_span(service, raw) for raw in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """All spans so far, or those of one trace."""
        with self._lock:
            return [span for span in self._spans if trace_id is None or span.trace_id == trace_id]


def _span(service: str, raw) -> Span:
    attributes = {}
    for pair in raw.attributes:
        kind = pair.value.WhichOneof("value")
        attributes[pair.key] = getattr(pair.value, kind) if kind else None
    return Span(
        service, raw.name, raw.trace_id.hex(), raw.span_id.hex(), raw.parent_span_id.hex(), raw.kind, attributes, raw.status.code == 2
    )


@dataclass
class Platform:
    """A running platform."""

    process: Process
    data_dir: Path
    base: int
    receiver: Receiver
    env: dict[str, str]

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return self.env["BULKHEAD_URL"]

    @property
    def key(self) -> str:
        """API key that `up` made."""
        return self.env["BULKHEAD_API_KEY"]

    @property
    def simulator(self) -> str:
        """Base URL of the simulator."""
        return f"http://127.0.0.1:{self.base + 6}"

    def pid(self, service: str, number: int = 0) -> int:
        """Process id of one replica."""
        return int((self.data_dir / "run" / f"{service}-{number}.pid").read_text())

    def replaced(self, service: str, old: int) -> bool:
        """Whether another process has taken the place of `old`; between the two there is no file."""
        try:
            pid = self.pid(service)
        except (FileNotFoundError, ValueError):
            return False
        return pid != old and psutil.pid_exists(pid)


def read_env(path: Path) -> dict[str, str]:
    """The variables of a dev.env file."""
    pairs = (line.split("=", 1) for line in path.read_text().splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip().removeprefix("export "): value.strip().strip("'\"") for name, value in pairs}


def start_platform(
    data_dir: Path, base: int, receiver: Receiver, otlp_port: int, *arguments: str, env: dict[str, str] | None = None
) -> Platform:
    """Runs `bulkhead up` and returns when it has printed that everything is ready."""
    command = testing.python("-m", "services.cli", "up", "--port-base", str(base), "--data-dir", str(data_dir), *arguments)
    log = data_dir.parent / f"{data_dir.name}-up.log"
    clean = {"OPENAI_API_KEY": "", "BULKHEAD_OTLP_ENDPOINT": f"http://127.0.0.1:{otlp_port}", **(env or {})}
    size = log.stat().st_size if log.exists() else 0
    process = Process(command, env=clean, log=log)

    def ready() -> bool:
        text = process.output()[size:]
        assert process.running(), f"`up` ended:\n{text[-4000:]}"
        return f"http://127.0.0.1:{base}" in text and (data_dir / "dev.env").exists()

    try:
        testing.eventually(ready, "`bulkhead up` is ready", timeout_s=90)
    except BaseException:
        process.stop()
        raise
    return Platform(process, data_dir, base, receiver, read_env(data_dir / "dev.env"))
