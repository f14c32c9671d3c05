"""gRPC inside Bulkhead: one place that serves, one place that dials, one context that travels with every call."""
