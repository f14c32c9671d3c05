"""The outermost layer, as pure ASGI: request id, canary, trace, metrics, and one log line a request."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common.errors import BulkheadError
from services.common.rpc import context as call_context
from services.common.rpc.wire import CANARY, REQUEST_ID, canary_of, extract_trace, request_id_of
from services.gateway.edge.exchange import SCOPE_KEY, Exchange, shown_path
from services.gateway.edge.problems import internal, refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

QUIET_ROUTES = frozenset({"/health", "/ready"})
# Client Closed Request: nobody reads it, but logs and metrics tell it apart from what we failed at.
CLIENT_CLOSED = 499
log = structlog.get_logger("bulkhead.http")
_tracer = trace.get_tracer("bulkhead.http")
_meter = get_meter("bulkhead.http")
_requests = _meter.create_counter("http_requests_total", description="HTTP requests by route, method and status.")
_duration = _meter.create_histogram("http_request_duration_seconds", unit="s", description="Time from a request to its last byte.")


class Edge:
    """Wraps the application. Every answer carries x-request-id; whatever goes wrong inside becomes an answer."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = request_id_of(carrier.get(REQUEST_ID))
        canary = canary_of(carrier.get(CANARY))
        parent = extract_trace(carrier)
        method, path = scope["method"], shown_path(scope["path"])
        span = _tracer.start_span(
            method, context=parent, kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method, "url.path": path, "bulkhead.canary": canary, "bulkhead.request_id": request_id,
            },
        )  # fmt: skip
        exchange = Exchange(request_id, f"{span.get_span_context().trace_id:032x}", span, carrier, canary)
        scope[SCOPE_KEY] = exchange
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    *exchange.answer_headers,
                    (b"x-request-id", request_id.encode("ascii")),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        token = otel_context.attach(trace.set_span_in_context(span, parent))
        with call_context.bind(call_context.CallContext(request_id=request_id, canary=canary)):
            try:
                await self._app(scope, receive, answer)
            except Exception as error:
                # Starlette says of an error that comes in the midst of an answer that it came then, and what it was is the cause of that.
                known = error.__cause__ if status and isinstance(error.__cause__, BulkheadError) else error
                if isinstance(known, BulkheadError):
                    # Answers that have begun cannot become errors: the connection is broken off, and that is all a client sees.
                    exchange.error = known.reason
                    log.warning("answer_broken_off", path=path, reason=known.reason)
                    if status == 0:
                        await refusal(scope, known)(scope, receive, answer)
                else:
                    exchange.error = "INTERNAL"
                    log.error("internal_error", path=path, error_id=exchange.error_id, exc_info=error)
                    if status == 0:
                        await internal(scope)(scope, receive, answer)
            finally:
                self._note(scope, exchange, status or CLIENT_CLOSED, time.perf_counter() - started)
                otel_context.detach(token)

    def _note(self, scope: Scope, exchange: Exchange, status: int, elapsed_s: float) -> None:
        method = scope["method"]
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        _requests.add(1, {"route": route, "method": method, "status": str(status)})
        _duration.record(elapsed_s, {"route": route, "method": method})
        span = exchange.span
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            if exchange.tenant:
                span.set_attribute("bulkhead.tenant", exchange.tenant)
            if exchange.error:
                span.set_attribute("error.type", exchange.error)
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR, exchange.error))
        span.end()
        fields = {"method": method, "route": route, "status": status, "duration_ms": round(elapsed_s * 1000, 1)}
        for name in ("tenant", "thread_id", "run_id", "error"):
            if value := getattr(exchange, name):
                fields[name] = value
        if route in QUIET_ROUTES and status < 500:
            log.debug("http_request", **fields)
        else:
            log.info("http_request", **fields)
