"""Fixtures: one running platform, with an OTLP receiver of ours behind it."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from services.common import testing
from tests.e2e.harness import Platform, Receiver, start_platform


@pytest.fixture(scope="session")
def otlp() -> Iterator[tuple[Receiver, int]]:
    """An OTLP/gRPC receiver and its port."""
    receiver = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, port
    server.stop(None)


@pytest.fixture(scope="session")
def platform(otlp, tmp_path_factory) -> Iterator[Platform]:
    """One platform for the tests that leave it as they found it; two orchestrators."""
    receiver, port = otlp
    data_dir = tmp_path_factory.mktemp("platform") / "data"
    running = start_platform(data_dir, testing.free_port_base(), receiver, port, "--replicas", "orchestrator=2")
    yield running
    running.process.stop()
