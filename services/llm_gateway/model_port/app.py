"""The model port as an ASGI application: routes, keys, deadlines, one span and one error form for every request."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common.accounts import Accounts
from services.common.errors import BulkheadError, InvalidInput, NotFound, Unauthenticated
from services.common.health import Health
from services.common.rpc import context as call_context
from services.common.rpc.wire import canary_of, extract_trace, request_id_of
from services.llm_gateway.completions import Completions
from services.llm_gateway.model_port.chat import chat_completions
from services.llm_gateway.model_port.embeddings import embeddings
from services.llm_gateway.model_port.errors import Refused, body_of, error_body, error_headers
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.registry import Group
from services.llm_gateway.request_rules import SCOPE

MAX_TIMEOUT_MS = 600_000
log = structlog.get_logger("bulkhead.model_port")
_tracer = trace.get_tracer("bulkhead.model_port")
_duration = get_meter("bulkhead.model_port").create_histogram(
    "bulkhead_http_server_duration_seconds", unit="s", description="Time from a request to the end of its answer."
)

Handler = Callable[[Completions, Exchange, dict[str, Any], float], Awaitable[None]]
_POSTS: dict[str, Handler] = {"/v1/chat/completions": chat_completions, "/v1/embeddings": embeddings}
_MODELS = "/v1/models"


class ModelPort:
    """Serves the OpenAI API over the registry. Keys come from the account store and need the scope models:invoke."""

    def __init__(self, completions: Completions, accounts: Accounts, health: Health) -> None:
        self._completions = completions
        self._accounts = accounts
        self._health = health

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        if exchange.path in ("/health", "/ready"):
            await self._probe(exchange)
            return
        started = time.perf_counter()
        route = _route_of(exchange.path)
        context = call_context.CallContext(
            request_id=request_id_of(exchange.headers.get("x-request-id")), canary=canary_of(exchange.headers.get("x-canary"))
        )
        call_context.enter(context)
        span = _tracer.start_span(
            f"{exchange.method} {route}",
            context=extract_trace(exchange.headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": exchange.method, "http.route": route},
        )
        otel_context.attach(trace.set_span_in_context(span))
        if span.is_recording():
            span.set_attributes({"bulkhead.request_id": context.request_id, "bulkhead.canary": context.canary})
        exchange.common_headers = [(b"x-request-id", context.request_id.encode())]
        try:
            await self._serve(exchange, route, context, span, started)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not exchange.gone or task is None:
                raise
            # The client left, and its call was cancelled down to the provider: this task itself goes on to its end.
            task.uncancel()
            span.set_attribute("error.type", "cancelled")
        except Refused as refused:
            await self._refuse(exchange, refused)
        except BulkheadError as error:
            if error.counts_against_slo:
                span.set_status(Status(StatusCode.ERROR, error.reason))
            span.set_attribute("error.type", error.reason)
            await exchange.answer(error.http_status, error_body(error), error_headers(error))
        except Exception as error:  # noqa: BLE001 - the boundary: every other error becomes an opaque id
            await self._internal(exchange, error, span)
        finally:
            await exchange.close()
            span.set_attribute("http.response.status_code", exchange.status or 499)
            span.end()
            _duration.record(time.perf_counter() - started, {"route": route, "status": exchange.status or 499})

    async def _serve(self, exchange: Exchange, route: str, context: call_context.CallContext, span: trace.Span, started: float) -> None:
        handler = _POSTS.get(route)
        is_models = route.startswith(_MODELS)
        if handler is None and not is_models:
            raise Refused(404, "there is nothing at this path", code="unknown_url")
        wanted = "GET" if is_models else "POST"
        if exchange.method != wanted:
            exchange.common_headers.append((b"allow", wanted.encode()))
            raise Refused(405, f"{route} takes {wanted}", code="method_not_allowed")
        context = await self._authenticated(exchange, context, started)
        call_context.enter(context)
        assert context.principal is not None
        span.set_attribute("bulkhead.tenant", context.principal.tenant)
        if handler is None:
            await self._models(exchange)
            return
        await handler(self._completions, exchange, _object(await exchange.body(), exchange.headers), started)

    async def _authenticated(self, exchange: Exchange, context: call_context.CallContext, started: float) -> call_context.CallContext:
        bearer = exchange.headers.get("authorization", "")
        if bearer[:7].lower() != "bearer ":
            raise Unauthenticated("send an API key as Authorization: Bearer KEY", reason="INVALID_API_KEY")
        principal = await self._accounts.resolve(bearer[7:].strip())
        principal.require(SCOPE)
        return call_context.CallContext(context.request_id, context.canary, _deadline(exchange), principal)

    async def _models(self, exchange: Exchange) -> None:
        registry = self._completions.registry
        named = {**registry.groups, **{alias: registry.groups[name] for alias, name in registry.aliases.items()}}
        if exchange.path.rstrip("/") == _MODELS:
            body = {"object": "list", "data": [_model(name, group) for name, group in named.items()]}
        else:
            name = exchange.path.removeprefix(_MODELS + "/")
            if name not in named:
                raise NotFound("no such model", reason="MODEL_NOT_FOUND", metadata={"model": name[:128]})
            body = _model(name, named[name])
        await exchange.answer(200, orjson.dumps(body))

    async def _probe(self, exchange: Exchange) -> None:
        if exchange.path == "/health":
            await exchange.answer(200, b'{"status":"ok"}')
            return
        ready = self._health.ready
        body = {"ready": ready, "draining": self._health.draining, "failing": self._health.failing()}
        await exchange.answer(200 if ready else 503, orjson.dumps(body))

    async def _refuse(self, exchange: Exchange, refused: Refused) -> None:
        headers = [(b"connection", b"close")] if refused.close else []
        await exchange.answer(refused.status, body_of(refused.message, "invalid_request_error", refused.code, refused.param), headers)

    async def _internal(self, exchange: Exchange, error: Exception, span: trace.Span) -> None:
        error_id = uuid.uuid4().hex[:12]
        log.error("internal_error", path=exchange.path[:200], error_id=error_id, exc_info=error)
        span.set_status(Status(StatusCode.ERROR, "INTERNAL"))
        body = body_of(f"internal error {error_id}", "server_error", "internal")
        if exchange.started:
            await exchange.end_stream(b"data: " + body + b"\n\n")
        else:
            await exchange.answer(500, body)


def _route_of(path: str) -> str:
    """The route for names of spans and metrics, which must be few."""
    if path in _POSTS:
        return path
    if path == _MODELS or path == _MODELS + "/":
        return _MODELS
    return f"{_MODELS}/{{model}}" if path.startswith(_MODELS + "/") else "unknown"


def _deadline(exchange: Exchange) -> float | None:
    value = exchange.headers.get("x-request-timeout-ms")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MAX_TIMEOUT_MS):
        raise InvalidInput.field("x-request-timeout-ms", f"must be an integer from 1 to {MAX_TIMEOUT_MS}")
    return time.monotonic() + int(value) / 1000


def _object(body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refused(415, "send the body as application/json", code="unsupported_media_type")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is not valid JSON (line {error.lineno}, column {error.colno})", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Refused(400, "the body must be a JSON object", code="invalid_json")
    return data


def _model(name: str, group: Group) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": group.deployments[0].provider}
