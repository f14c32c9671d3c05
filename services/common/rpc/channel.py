"""The one place that dials.

    dialer = Dialer("gateway", Addresses(settings.addresses(), settings.address_file))
    llm = LlmServiceStub(dialer.channel("llm_gateway"))
    answer = await llm.Complete(request)                 # deadline, metadata and trace are filled in
    async for event in llm.StreamComplete(request): ...  # closing the iterator cancels the call

The object that stubs get is not a grpc.aio channel with interceptors but a thin one with the same factory methods:
aio's client interceptors make a task and three wrappers a call, several times the cost of everything here. Errors come
back as the domain errors of `services.common.errors`; cancelling the awaiting task cancels the RPC downstream.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common import edges
from services.common.errors import BulkheadError, DeadlineExceeded, Overloaded, PermissionDenied, from_rpc_error
from services.common.rpc import context as call_context
from services.common.rpc.addresses import Addresses
from services.common.rpc.wire import metadata_of

# Taken off the remaining time on each hop, so that the caller hears of the timeout from its callee and not from itself.
DEADLINE_MARGIN_S = 0.02
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# A superseded channel is given this long to finish the calls that still use it.
RETIRE_AFTER_S = 180.0
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),
    # Each probe is a ping and its answer, and on a busy link there is one for almost every message.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_tracer = trace.get_tracer("bulkhead.rpc")


def _timeout_of(policy: edges.MethodPolicy, asked_s: float | None, context: call_context.CallContext | None) -> float | None:
    own = asked_s if asked_s is not None else (None if policy.timeout is None else policy.timeout.total_seconds())
    remaining = context.remaining_s() if context is not None else None
    if remaining is None:
        return own
    left = remaining - DEADLINE_MARGIN_S
    return left if own is None else min(own, left)


class Dialer:
    """Owns one channel a callee and its life; `close()` ends them all."""

    def __init__(self, caller: str, addresses: Addresses) -> None:
        self._caller = caller
        self._addresses = addresses
        self._links: dict[str, _Link] = {}

    def channel(self, callee: str) -> "CallChannel":
        """A channel for the generated stubs of `callee`."""
        link = self._links.get(callee)
        if link is None:
            link = self._links[callee] = _Link(callee, self._addresses)
        return CallChannel(self._caller, callee, link)

    async def reachable(self, callee: str, timeout_s: float = 1.0) -> bool:
        """Whether a connection to `callee` is or can be made; for readiness checks."""
        channel = self._links[callee].current()
        state = channel.get_state(try_to_connect=True)
        end = time.monotonic() + timeout_s
        while state != grpc.ChannelConnectivity.READY:
            left = end - time.monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(channel.wait_for_state_change(state), left)
            except TimeoutError:
                return False
            state = channel.get_state(try_to_connect=True)
        return True

    async def close(self) -> None:
        """Ends every channel and the calls on them."""
        for link in self._links.values():
            await link.close()


class _Link:
    """The grpc channel of one callee; a new one takes over when the addresses change."""

    def __init__(self, callee: str, addresses: Addresses) -> None:
        self._callee = callee
        self._addresses = addresses
        self._target = ""
        self._channel: grpc.aio.Channel | None = None
        self._retired: set[asyncio.Task] = set()

    def current(self) -> grpc.aio.Channel:
        target = self._addresses.target(self._callee)
        if self._channel is None or target != self._target:
            old, self._target = self._channel, target
            self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
            if old is not None:
                task = asyncio.get_running_loop().create_task(_retire(old))
                self._retired.add(task)
                task.add_done_callback(self._retired.discard)
        return self._channel

    async def close(self) -> None:
        retired = list(self._retired)
        for task in retired:
            task.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()


async def _retire(channel: grpc.aio.Channel) -> None:
    try:
        await channel.close(grace=RETIRE_AFTER_S)
    except asyncio.CancelledError:
        await channel.close()
        raise


class CallChannel:
    """What generated stubs take for a channel: all but streams both ways, which our protos do not declare."""

    def __init__(self, caller: str, callee: str, link: _Link) -> None:
        self.caller, self.callee, self.link = caller, callee, link
        self._allowed = edges.allowed(caller, callee)

    def permits(self, method: str) -> bool:
        """Whether the edge table lets this caller use `method`."""
        return method in self._allowed

    def unary_unary(self, method: str, request_serializer=None, response_deserializer=None, **_) -> "UnaryCall":
        """As grpc.aio.Channel.unary_unary."""
        return UnaryCall(self, method, request_serializer, response_deserializer)

    def unary_stream(self, method: str, request_serializer=None, response_deserializer=None, **_) -> "StreamCall":
        """As grpc.aio.Channel.unary_stream."""
        return StreamCall(self, method, request_serializer, response_deserializer)

    def stream_unary(self, method: str, request_serializer=None, response_deserializer=None, **_) -> "SendingCall":
        """As grpc.aio.Channel.stream_unary."""
        return SendingCall(self, method, request_serializer, response_deserializer)


class _Call:
    def __init__(self, channel: CallChannel, method: str, serializer, deserializer) -> None:
        self._channel = channel
        self._method = method
        self._serializer = serializer
        self._deserializer = deserializer
        self._policy = edges.METHODS[method]
        self._allowed = channel.permits(method)
        self._span_name = method[1:]
        self._attributes = {"rpc.system": "grpc", "rpc.method": method[1:], "server.service": channel.callee}
        self._bound: tuple[grpc.aio.Channel, Any] | None = None

    def _callable(self, factory: str):
        raw = self._channel.link.current()
        if self._bound is None or self._bound[0] is not raw:
            self._bound = (raw, getattr(raw, factory)(self._method, self._serializer, self._deserializer))
        return self._bound[1]

    def _prepare(self, timeout: float | None) -> tuple[float | None, list[tuple[str, str]]]:
        if not self._allowed:
            raise PermissionDenied(f"{self._channel.caller} may not call {self._method}", reason="EDGE_NOT_ALLOWED")
        context = call_context.current()
        timeout_s = _timeout_of(self._policy, timeout, context)
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("no time is left for this call", metadata={"service": self._channel.callee})
        return timeout_s, metadata_of(context, context.outgoing_token() if context is not None else "")

    @contextmanager
    def _told(self, span: trace.Span) -> Iterator[None]:
        """What fails in the context leaves it as a domain error, and the span has its name."""
        try:
            try:
                yield
            except grpc.RpcError as error:
                raise from_rpc_error(error, self._channel.callee) from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Nobody has cancelled whoever waits: grpc.aio ends the calls that are left on a channel that is closed in this way.
                message = f"the connection to {self._channel.callee} was replaced"
                raise Overloaded(message, reason="UNREACHABLE", metadata={"service": self._channel.callee}) from None
        except BulkheadError as error:
            span.set_status(Status(StatusCode.ERROR, error.reason))
            span.set_attribute("error.type", error.reason)
            raise


class UnaryCall(_Call):
    """One unary method."""

    async def __call__(self, request: Any, *, timeout: float | None = None) -> Any:
        """Sends `request`; `timeout` in seconds may shorten or lengthen the default, never pass the context's deadline."""
        with _tracer.start_as_current_span(
            self._span_name, kind=SpanKind.CLIENT, attributes=self._attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            with self._told(span):
                sent = 0
                while True:
                    timeout_s, metadata = self._prepare(timeout)
                    try:
                        return await self._callable("unary_unary")(request, timeout=timeout_s, metadata=metadata)
                    except grpc.RpcError as error:
                        sent += 1
                        if sent > self._policy.resend or from_rpc_error(error, self._channel.callee).reason != "UNREACHABLE":
                            raise
                    span.add_event("resend", {"attempt": sent})
                    await asyncio.sleep(0.05 * sent)


class StreamCall(_Call):
    """One server-streaming method. The result is an async generator: `aclose()` or a cancelled task cancels the RPC."""

    def __call__(self, request: Any, *, timeout: float | None = None) -> AsyncIterator[Any]:
        """Sends `request` when the first response is asked for."""
        return self._stream(request, timeout)

    async def _stream(self, request: Any, timeout: float | None) -> AsyncIterator[Any]:
        # Not the current span: a generator's context changes hands between its consumer's steps.
        span = _tracer.start_span(self._span_name, kind=SpanKind.CLIENT, attributes=self._attributes)
        call = None
        try:
            with self._told(span):
                with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                    timeout_s, metadata = self._prepare(timeout)
                call = self._callable("unary_stream")(request, timeout=timeout_s, metadata=metadata)
                while (response := await call.read()) is not grpc.aio.EOF:
                    yield response
        finally:
            if call is not None:
                call.cancel()  # a no-op on a finished call
            span.end()


class SendingCall(_Call):
    """One client-streaming method."""

    async def __call__(self, requests: AsyncIterable[Any], *, timeout: float | None = None) -> Any:
        """Sends `requests`, each once the one before is on its way. What `requests` itself raises ends the call and is raised here."""
        with _tracer.start_as_current_span(
            self._span_name, kind=SpanKind.CLIENT, attributes=self._attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            call = None
            try:
                with self._told(span):
                    timeout_s, metadata = self._prepare(timeout)
                    call = self._callable("stream_unary")(timeout=timeout_s, metadata=metadata)
                    try:
                        async for request in requests:
                            await call.write(request)
                        await call.done_writing()
                    except asyncio.InvalidStateError:
                        # The peer has answered already, and the rest is of no use to it.
                        if not call.done():
                            raise
                    return await call
            finally:
                if call is not None:
                    call.cancel()  # a no-op on a finished call
