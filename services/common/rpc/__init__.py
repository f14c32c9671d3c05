"""gRPC inside Bulkhead: one place that serves, one place that dials, one context that travels with every call."""

import os

# gRPC's newer engine hands each event from thread to thread before Python's loop sees it, which took a sixth of the CPU of every
# service that calls another one. Without it one thread polls. Read once, when grpc is imported, so it stands before any such import.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
