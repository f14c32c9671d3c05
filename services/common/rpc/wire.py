"""The metadata that every hop carries, read and written in one place."""

import time
from collections.abc import Iterable, Mapping

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.rpc.context import CallContext, new_request_id

CANARY = "x-canary"
REQUEST_ID = "x-request-id"
AUTHORIZATION = "authorization"
MAX_REQUEST_ID = 128
# They come from outside and go on to every service as gRPC metadata, of which 8 KiB are taken: what is longer is dropped.
MAX_TRACESTATE = 512
MAX_BAGGAGE = 2048

_trace_context = TraceContextTextMapPropagator()
_baggage = W3CBaggagePropagator()


def canary_of(value: str | None) -> bool:
    """Only the exact value `true` is a canary; anything else is dropped and never forwarded."""
    return value == "true"


def request_id_of(value: str | None) -> str:
    """The caller's request id where it is short and printable ASCII, else a new one."""
    if value and len(value) <= MAX_REQUEST_ID and value.isascii() and value.isprintable():
        return value
    return new_request_id()


def extract_trace(carrier: Mapping[str, str]) -> otel_context.Context:
    """W3C trace context and baggage of incoming headers (lower-case names) as an OpenTelemetry context."""
    parent = carrier if len(carrier.get("tracestate", "")) <= MAX_TRACESTATE else {"traceparent": carrier.get("traceparent", "")}
    context = _trace_context.extract(parent, context=otel_context.Context())
    return _baggage.extract(carrier, context=context) if 0 < len(carrier.get("baggage", "")) <= MAX_BAGGAGE else context


def inject_trace() -> list[tuple[str, str]]:
    """The current trace context as header pairs."""
    span = trace.get_current_span().get_span_context()
    pairs: list[tuple[str, str]] = []
    if span.is_valid:
        pairs.append(("traceparent", f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"))
        if span.trace_state:
            pairs.append(("tracestate", span.trace_state.to_header()))
    if baggage.get_all():
        carrier: dict[str, str] = {}
        _baggage.inject(carrier)
        pairs.extend(carrier.items())
    return pairs


def metadata_of(context: CallContext | None, token: str) -> list[tuple[str, str]]:
    """Outgoing gRPC metadata of a call made within `context`."""
    pairs = inject_trace()
    if context is not None:
        pairs.append((REQUEST_ID, context.request_id))
        if context.canary:
            pairs.append((CANARY, "true"))
    if token:
        pairs.append((AUTHORIZATION, f"Bearer {token}"))
    return pairs


def context_of(metadata: Iterable[tuple[str, str]], remaining_s: float | None) -> tuple[CallContext, str, dict[str, str]]:
    """Reads incoming metadata: the call's context without its principal, the bearer token, and the raw text pairs."""
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    bearer = carrier.get(AUTHORIZATION, "")
    token = bearer[7:] if bearer[:7].lower() == "bearer " else ""
    context = CallContext(
        request_id=request_id_of(carrier.get(REQUEST_ID)),
        canary=canary_of(carrier.get(CANARY)),
        deadline=None if remaining_s is None else time.monotonic() + remaining_s,
        token=token,
    )
    return context, token, carrier
