"""Traces over OTLP/gRPC, metrics for Prometheus (and OTLP where configured), instruments for hot paths."""

from services.common.telemetry._instruments import Counter, Histogram
from services.common.telemetry._setup import configure

__all__ = ["Counter", "Histogram", "configure"]
