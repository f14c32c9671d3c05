"""A process without an OTLP endpoint makes ids and passes them on, and says to everybody below that nothing is sampled."""

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from services.common.telemetry._unrecorded import Unrecorded

PARENT = SpanContext(0x5EED, 0xB0, True, TraceFlags(TraceFlags.SAMPLED), TraceState([("vendor", "x")]))


def told(tracer, context=None):
    """What of a span does not differ from one to the next."""
    span = tracer.start_span("any", context, kind=trace.SpanKind.SERVER, attributes={"a": 1})
    found = span.get_span_context()
    return span.is_recording(), found.is_valid, found.is_remote, found.trace_flags, dict(found.trace_state)


def test_spans_are_those_of_the_sdk_when_its_sampler_always_refuses():
    ours, theirs = Unrecorded().get_tracer("x", "1"), TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("x")
    below = trace.set_span_in_context(NonRecordingSpan(PARENT))
    for context in (None, below):
        assert told(ours, context) == told(theirs, context)


def test_a_span_belongs_to_the_trace_around_it_and_has_an_id_of_its_own():
    tracer = Unrecorded().get_tracer("x")
    with tracer.start_as_current_span("outer") as outer:
        inner = tracer.start_span("inner").get_span_context()
    identity = outer.get_span_context()
    assert inner.trace_id == identity.trace_id
    assert inner.span_id != identity.span_id
    assert tracer.start_span("other").get_span_context().trace_id != identity.trace_id
    assert tracer.start_span("below", trace.set_span_in_context(NonRecordingSpan(PARENT))).get_span_context().trace_id == PARENT.trace_id
