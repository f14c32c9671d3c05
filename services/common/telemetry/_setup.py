"""Sets up the one tracer provider and the one meter provider of a process."""

import time
from collections.abc import Callable
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import start_http_server

from services.common.settings import ServiceSettings, StartRefused
from services.common.telemetry._instruments import SECONDS, joined
from services.common.telemetry._unrecorded import Unrecorded

# The Python exporter reads seconds here, and its own default would hold up a shutdown for longer than the flush may take.
EXPORT_TIMEOUT_S = 2


class _Prometheus(PrometheusMetricReader):
    """Also reads the instruments of hot paths."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(disable_target_info=False)
        self._resource = resource

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(joined(metrics_data, self._resource), timeout_millis, **kwargs)


class _Periodic(PeriodicExportingMetricReader):
    """Also reads the instruments of hot paths."""

    def __init__(self, exporter: MetricExporter, resource: Resource) -> None:
        self._resource = resource
        super().__init__(exporter, export_interval_millis=15_000)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(joined(metrics_data, self._resource), timeout_millis, **kwargs)


def configure(settings: ServiceSettings) -> Callable[[], None]:
    """Installs the providers, starts the metrics port, and answers a blocking function that flushes and ends them.

    Without an OTLP endpoint nothing is recorded, but trace ids are still made and passed on, for logs and errors.
    Raises StartRefused when the metrics port is taken.
    """
    resource = Resource.create(
        {
            "service.name": f"bulkhead-{settings.service_name.replace('_', '-')}",
            "service.version": settings.version,
            "service.instance.id": settings.instance,
            "deployment.environment.name": settings.env,
            "bulkhead.track": settings.track,
        }
    )
    exported = bool(settings.otlp_endpoint)
    tracers: trace.TracerProvider = Unrecorded()
    stop_traces: Callable[[], None] = _nothing
    readers: list[MetricReader] = []
    if exported:
        # Imported here: without an endpoint the exporters would only cost memory.
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        insecure = not settings.otlp_endpoint.startswith("https://")
        spans = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S)
        sampler = ParentBased(TraceIdRatioBased(settings.trace_sample_ratio))
        recording = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        recording.add_span_processor(BatchSpanProcessor(spans, max_queue_size=8192, schedule_delay_millis=1000))
        tracers, stop_traces = recording, recording.shutdown
        values = OTLPMetricExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S)
        readers.append(_Periodic(values, resource))
    stop_metrics: Callable[[], None] = _nothing
    if settings.metrics_port:
        readers.append(_Prometheus(resource))
        try:
            server, thread = start_http_server(settings.metrics_port, addr=settings.host)
        except OSError:
            raise StartRefused([f"port {settings.metrics_port} is taken (BULKHEAD_METRICS_PORT)"]) from None

        def stop_metrics() -> None:
            server.shutdown()
            server.server_close()
            thread.join(1.0)

    views = [View(instrument_unit="s", instrument_name="*", aggregation=ExplicitBucketHistogramAggregation(SECONDS))]
    meters = MeterProvider(resource=resource, metric_readers=readers, views=views, shutdown_on_exit=False)
    # A reader without any instrument of the SDK's is never called, and those of hot paths would be missing with it.
    started = time.time()
    meters.get_meter("bulkhead.process").create_observable_gauge(
        "bulkhead_process_started_seconds", [lambda _: [Observation(started)]], description="When the process started, in Unix seconds."
    )
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)

    def flush() -> None:
        stop_traces()
        meters.shutdown()
        stop_metrics()

    return flush


def _nothing() -> None:
    return None
