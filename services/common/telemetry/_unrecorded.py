"""Spans that nobody exports: ids for logs, errors and the next hop, at a quarter of what a sampler that says no costs."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

# W3C Trace Context, level 2: whether the trace id is random is told along the whole trace.
_PLAIN, _RANDOM = TraceFlags(TraceFlags.DEFAULT), TraceFlags(TraceFlags.RANDOM_TRACE_ID)


class Unrecorded(trace.TracerProvider):
    """The provider of a process without an OTLP endpoint."""

    def get_tracer(self, instrumenting_module_name: str, *_: Any, **__: Any) -> trace.Tracer:
        """The same for all."""
        return _Tracer()


class _Tracer(trace.Tracer):
    def start_span(self, name: str, context: Context | None = None, *_: Any, **__: Any) -> Span:
        """A span below that of `context`, or the first of a trace; never sampled."""
        parent = trace.get_current_span(context).get_span_context()
        if parent.is_valid:
            trace_id, state = parent.trace_id, parent.trace_state
            flags = _RANDOM if parent.trace_flags & TraceFlags.RANDOM_TRACE_ID else _PLAIN
        else:
            trace_id, state, flags = random.getrandbits(128) or 1, None, _RANDOM
        return NonRecordingSpan(SpanContext(trace_id, random.getrandbits(64) or 1, False, flags, state))

    @contextmanager
    def start_as_current_span(self, name: str, context: Context | None = None, *_: Any, **kwargs: Any) -> Iterator[Span]:
        """As the SDK's."""
        with trace.use_span(self.start_span(name, context)) as span:
            yield span
