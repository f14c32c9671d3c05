"""The model port as an ASGI application: routes, keys, deadlines, one span and one error form for every request."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import orjson
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common.errors import BulkheadError, InvalidInput, NotFound, Unauthenticated
from services.common.health import Health
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.common.rpc.wire import canary_of, extract_trace, request_id_of
from services.common.telemetry import Histogram
from services.llm_gateway.model_port.errors import ErrorForm, Refused, error_headers
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Match, Route, Routes, Surface
from services.llm_gateway.offered import offered
from services.llm_gateway.registry import Group, Registry

MAX_TIMEOUT_MS = 600_000
log = structlog.get_logger("bulkhead.model_port")
_tracer = trace.get_tracer("bulkhead.model_port")
_duration = Histogram(
    "bulkhead.model_port",
    "bulkhead_http_server_duration_seconds",
    ("route", "status"),
    description="Time from a request to the end of its answer.",
)

_MODELS = "/v1/models"


class Keys(Protocol):
    """Who a key belongs to."""

    async def resolve(self, secret: str) -> Principal:
        """Raises Unauthenticated, or Overloaded without a store."""
        ...


class ModelPort:
    """Serves the routes of its surfaces. Keys come from the account store and need the scope that the route names."""

    def __init__(
        self,
        registry: Callable[[], Registry],
        surfaces: Iterable[Surface],
        keys: Keys,
        health: Health,
        allows: Callable[[Principal, str], Awaitable[bool]] | None = None,
    ) -> None:
        """`allows` says whether a caller may ask a model group; models that it may not ask are not listed."""
        self._registry = registry
        self._allows = allows
        self._keys = keys
        self._health = health
        own = [Route("GET", _MODELS, self._list_models), Route("GET", _MODELS + "/{model:path}", self._get_model)]
        self._routes = Routes([*own, *(route for surface in surfaces for route in surface.routes())])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        if exchange.path in ("/health", "/ready"):
            await self._probe(exchange)
            return
        exchange.began = started = time.perf_counter()
        match = self._routes.find(exchange.method, exchange.path)
        route, form = match.name, match.errors
        context = call_context.CallContext(
            request_id=request_id_of(exchange.headers.get("x-request-id")), canary=canary_of(exchange.headers.get("x-canary"))
        )
        call_context.enter(context)
        parent = extract_trace(exchange.headers)
        span = _tracer.start_span(
            f"{exchange.method} {route}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": exchange.method, "http.route": route},
        )
        otel_context.attach(trace.set_span_in_context(span, parent))
        if span.is_recording():
            span.set_attributes({"bulkhead.request_id": context.request_id, "bulkhead.canary": context.canary})
        request_id = context.request_id.encode()
        exchange.common_headers = [(b"x-request-id", request_id)]
        if form.request_id_header:
            exchange.common_headers.append((form.request_id_header, request_id))
        try:
            await self._serve(exchange, match, context, span)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not exchange.gone or task is None:
                raise
            # The client left, and its call was cancelled down to the provider: this task itself goes on to its end.
            task.uncancel()
            span.set_attribute("error.type", "cancelled")
        except Refused as refused:
            headers = [(b"connection", b"close")] if refused.close else []
            await exchange.answer(refused.status, form.refused(refused), headers + exchange.elapsed())
        except BulkheadError as error:
            if error.counts_against_slo:
                span.set_status(Status(StatusCode.ERROR, error.reason))
            span.set_attribute("error.type", error.reason)
            await exchange.answer(form.status(error), form.of(error), error_headers(error) + exchange.elapsed())
        except Exception as error:  # noqa: BLE001 - the boundary: every other error becomes an opaque id
            await self._internal(exchange, form, error, span)
        finally:
            await exchange.close()
            span.set_attribute("http.response.status_code", exchange.status or 499)
            span.end()
            _duration.record(time.perf_counter() - started, route, exchange.status or 499)

    async def _serve(self, exchange: Exchange, match: Match, context: call_context.CallContext, span: trace.Span) -> None:
        route = match.route
        if route is None and not match.methods:
            raise Refused(404, "there is nothing at this path", code="unknown_url")
        if route is None:
            allowed = ", ".join(sorted(match.methods))
            exchange.common_headers.append((b"allow", allowed.encode()))
            raise Refused(405, f"{match.name} takes {allowed}", code="method_not_allowed")
        context = await self._authenticated(exchange, context, route.scope)
        call_context.enter(context)
        exchange.principal, exchange.parameters = context.principal, match.parameters
        if span.is_recording() and context.principal is not None:
            span.set_attribute("bulkhead.tenant", context.principal.tenant)
        await route.handle(exchange)

    async def _authenticated(self, exchange: Exchange, context: call_context.CallContext, scope: str | None) -> call_context.CallContext:
        bearer = exchange.headers.get("authorization", "")
        if bearer[:7].lower() == "bearer ":
            secret = bearer[7:].strip()
        elif (secret := exchange.headers.get("x-api-key", "")) == "":
            raise Unauthenticated("send an API key as Authorization: Bearer KEY", reason="INVALID_API_KEY")
        principal = await self._keys.resolve(secret)
        if scope is not None:
            principal.require(scope)
        return call_context.CallContext(context.request_id, context.canary, _deadline(exchange), principal)

    async def _list_models(self, exchange: Exchange) -> None:
        listed = [(name, group) for name, group in offered(self._registry()).items() if await self._may_ask(exchange, group)]
        body = {"object": "list", "data": [_model(name, group) for name, group in listed]}
        await exchange.answer(200, orjson.dumps(body))

    async def _may_ask(self, exchange: Exchange, group: Group) -> bool:
        return self._allows is None or exchange.principal is None or await self._allows(exchange.principal, group.name)

    async def _get_model(self, exchange: Exchange) -> None:
        registry, name = self._registry(), exchange.parameters["model"]
        group = registry.find(name)
        if group is None and name in registry.autos:
            group = registry.groups[registry.autos[name].balanced]
        if group is None:
            raise NotFound("no such model", reason="MODEL_NOT_FOUND", metadata={"model": name[:128]})
        await exchange.answer(200, orjson.dumps(_model(name, group)))

    async def _probe(self, exchange: Exchange) -> None:
        if exchange.path == "/health":
            await exchange.answer(200, b'{"status":"ok"}')
            return
        ready = self._health.ready
        # Names only: whoever asks here shows no key. The problems stand in the log and, for those inside, in the gRPC health check.
        refused = sorted(self._health.refused())
        body = {"ready": ready, "draining": self._health.draining, "failing": self._health.failing(), "config_refused": refused}
        await exchange.answer(200 if ready else 503, orjson.dumps(body))

    async def _internal(self, exchange: Exchange, form: ErrorForm, error: Exception, span: trace.Span) -> None:
        error_id = uuid.uuid4().hex[:12]
        log.error("internal_error", path=exchange.path[:200], error_id=error_id, exc_info=error)
        span.set_status(Status(StatusCode.ERROR, "INTERNAL"))
        body = form.internal(error_id)
        if exchange.started:
            await exchange.end_stream(form.event(body))
        else:
            await exchange.answer(500, body)


def _deadline(exchange: Exchange) -> float | None:
    value = exchange.headers.get("x-request-timeout-ms")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MAX_TIMEOUT_MS):
        raise InvalidInput.field("x-request-timeout-ms", f"must be an integer from 1 to {MAX_TIMEOUT_MS}")
    return time.monotonic() + int(value) / 1000


def _model(name: str, group: Group) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": group.deployments[0].provider}
