"""Traces over OTLP/gRPC, metrics for Prometheus (and OTLP where configured)."""

from services.common.telemetry._setup import configure

__all__ = ["configure"]
