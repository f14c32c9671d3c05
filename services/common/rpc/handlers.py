"""What every incoming RPC passes through: identity, deadline, trace, errors, metrics, one log line.

Handlers are wrapped once, when a servicer is registered, and not by aio interceptors, which build a new handler for
each call. The generated `add_…_to_server` functions get a `Registrar` in place of the server.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common import edges
from services.common.errors import BulkheadError, DeadlineExceeded, Internal, InvalidInput, Unauthenticated, to_status
from services.common.identity import Verifier
from services.common.rpc import context as call_context
from services.common.rpc.wire import context_of, extract_trace
from services.common.telemetry import Histogram

# gRPC reports "no deadline" as a time so far away that no caller can mean it.
FAR_AWAY_S = 10 * 365 * 24 * 3600.0
# Of a stream of requests that was refused before its end.
MOST_TAKEN_BYTES = 32 * 1024 * 1024

log = structlog.get_logger("bulkhead.rpc")
_tracer = trace.get_tracer("bulkhead.rpc")
_duration = Histogram(
    "bulkhead.rpc",
    "bulkhead_rpc_server_duration_seconds",
    ("method", "code"),
    description="Time from a request to its last response.",
)


class Registrar:
    """Stands in for a grpc.aio.Server while servicers are added, and wraps each of their handlers."""

    def __init__(self, server: grpc.aio.Server, service: str, verifier: Verifier, active: "ActiveCalls") -> None:
        self._server = server
        self._service = service
        self._verifier = verifier
        self._active = active
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Does nothing: the same handlers come again, by name, through add_registered_method_handlers."""

    def add_registered_method_handlers(self, name: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """Adds `handlers` of the proto service `name`, wrapped."""
        wrapped = {method: self._wrap(f"/{name}/{method}", handler) for method, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, wrapped),))
        self.names.append(name)

    def _wrap(self, path: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        guard = _Guard(path, self._service, self._verifier, self._active)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                guard.unary(handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                guard.stream(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_unary:
            # The behaviour gets an iterator of requests in the place of one.
            return grpc.stream_unary_rpc_method_handler(
                guard.unary(handler.stream_unary, streams=True), handler.request_deserializer, handler.response_serializer
            )
        raise TypeError(f"{path}: streams both ways are not served")


class ActiveCalls:
    """The tasks of the calls in flight, so that a drain can wait until they have cleaned up."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self) -> asyncio.Task:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        return task

    def leave(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)

    async def ended(self, timeout_s: float) -> None:
        """Returns when the calls in flight have cleaned up after themselves, or after `timeout_s`."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)


class _Guard:
    def __init__(self, path: str, service: str, verifier: Verifier, active: ActiveCalls) -> None:
        self._path = path
        self._span_name = path[1:]
        self._service = service
        self._verifier = verifier
        self._active = active
        self._needs_deadline = path not in edges.NO_DEADLINE_NEEDED
        self._needs_principal = path not in edges.NO_PRINCIPAL_NEEDED
        self._attributes = {"rpc.system": "grpc", "rpc.method": path[1:]}

    def _enter(self, context: grpc.aio.ServicerContext) -> tuple[trace.Span, BulkheadError | None]:
        """Reads the metadata and starts the server span; what is wrong with the call comes back as an error."""
        remaining = context.time_remaining()
        if remaining is not None and remaining > FAR_AWAY_S:
            remaining = None
        call, token, carrier = context_of(context.invocation_metadata() or (), remaining)
        refusal: BulkheadError | None = None
        try:
            if token:
                call = call_context.CallContext(call.request_id, call.canary, call.deadline, self._verifier.verify(token), token)
            elif self._needs_principal:
                raise Unauthenticated("the call carries no internal token", reason="TOKEN_MISSING")
        except Unauthenticated as error:
            refusal = error
        if refusal is None and remaining is None and self._needs_deadline:
            refusal = InvalidInput("the call has no deadline; set one", reason="DEADLINE_MISSING")
        parent = extract_trace(carrier)
        span = _tracer.start_span(self._span_name, context=parent, kind=SpanKind.SERVER, attributes=self._attributes)
        if span.is_recording():
            span.set_attribute("bulkhead.request_id", call.request_id)
            span.set_attribute("bulkhead.canary", call.canary)
            if call.principal is not None:
                span.set_attribute("bulkhead.tenant", call.principal.tenant)
                if call.principal.run_id:
                    span.set_attribute("bulkhead.run_id", call.principal.run_id)
        call_context.enter(call)
        # With its baggage, which goes on to the calls that are made here.
        otel_context.attach(trace.set_span_in_context(span, parent))
        return span, refusal

    def unary(self, behavior: Callable, *, streams: bool = False) -> Callable:
        """Wraps a behaviour with one response; with `streams` it gets an iterator of requests."""

        async def handle(request, context):
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            task = self._active.enter()
            span = trace.INVALID_SPAN
            try:
                span, refusal = self._enter(context)
                if refusal is not None:
                    raise refusal
                return await behavior(request, context)
            except asyncio.CancelledError as error:
                code = grpc.StatusCode.CANCELLED
                if task.cancelling():
                    raise
                code = grpc.StatusCode.INTERNAL
                await self._answer_stray(error, context, span)
            except Exception as error:  # noqa: BLE001 - the boundary, where every error becomes a row of the table
                failure = self._failure(error, span)
                code = failure.code
                if streams:
                    await _taken(request)
                await _abort(context, failure, span)
            finally:
                self._active.leave(task)
                span.end()
                _duration.record(time.perf_counter() - started, self._span_name, code.name)

        return handle

    def stream(self, behavior: Callable) -> Callable:
        """Wraps a unary-stream behaviour, which must be an async generator."""

        async def handle(request, context):
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            task = self._active.enter()
            span = trace.INVALID_SPAN
            responses = behavior(request, context)
            try:
                span, refusal = self._enter(context)
                if refusal is not None:
                    raise refusal
                async for response in responses:
                    yield response
            except GeneratorExit:
                code = grpc.StatusCode.CANCELLED
                raise
            except asyncio.CancelledError as error:
                code = grpc.StatusCode.CANCELLED
                if task.cancelling():
                    raise
                code = grpc.StatusCode.INTERNAL
                await self._answer_stray(error, context, span)
            except Exception as error:  # noqa: BLE001 - the boundary, where every error becomes a row of the table
                failure = self._failure(error, span)
                code = failure.code
                await _abort(context, failure, span)
            finally:
                try:
                    # Closing at once, not when the collector comes by, is what carries a cancel on to the leaf.
                    await responses.aclose()
                finally:
                    self._active.leave(task)
                    span.end()
                    _duration.record(time.perf_counter() - started, self._span_name, code.name)

        return handle

    async def _answer_stray(self, error: asyncio.CancelledError, context: grpc.aio.ServicerContext, span: trace.Span) -> NoReturn:
        """A cancellation that nobody asked of this call came from something it awaited. grpc would send no status at all for it, and
        the caller would wait until its deadline."""
        await _abort(context, self._failure(error, span), span)

    def _failure(self, error: BaseException, span: trace.Span) -> BulkheadError:
        if isinstance(error, BulkheadError):
            if error.counts_against_slo:
                span.set_status(Status(StatusCode.ERROR, error.reason))
                log.warning("rpc_failed", method=self._span_name, reason=error.reason)
            span.set_attribute("error.type", error.reason)
            return error
        if isinstance(error, TimeoutError):
            # Where it ran out says whose time it was: the caller's, or a shorter one of ours.
            log.warning("rpc_failed", method=self._span_name, reason="DEADLINE_EXCEEDED", exc_info=error)
            span.set_status(Status(StatusCode.ERROR, "DEADLINE_EXCEEDED"))
            span.set_attribute("error.type", "DEADLINE_EXCEEDED")
            return DeadlineExceeded("the call took longer than its deadline")
        error_id = uuid.uuid4().hex[:12]
        log.error("internal_error", method=self._span_name, error_id=error_id, exc_info=error)
        span.set_status(Status(StatusCode.ERROR, "INTERNAL"))
        span.set_attribute("error.type", type(error).__name__)
        return Internal(f"internal error {error_id}", metadata={"error_id": error_id, "service": self._service})


async def _taken(requests: AsyncIterator[Any]) -> None:
    """Takes what is still being sent, as far as it is not too much: a caller in the midst of writing hears that it failed, and not why."""
    left = MOST_TAKEN_BYTES
    async for request in requests:
        left -= request.ByteSize()
        if left < 0:
            return


async def _abort(context: grpc.aio.ServicerContext, error: BulkheadError, span: trace.Span) -> NoReturn:
    identity = span.get_span_context()
    status = to_status(error, f"{identity.trace_id:032x}" if identity.is_valid else "")
    await context.abort(error.code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError("abort always raises")
