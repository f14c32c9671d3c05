"""Server and channel together, over real gRPC: errors, deadlines, context, cancellation, health."""

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial

import grpc
import pytest
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc
from grpc_health.v1 import health_pb2
from opentelemetry import baggage
from opentelemetry import context as otel_context

from services.common import testing
from services.common.errors import DeadlineExceeded, Internal, InvalidInput, NotFound, Overloaded, PermissionDenied, Unauthenticated
from services.common.rpc import context as call_context
from services.common.rpc.server import Service, run_service
from services.common.settings import ServiceSettings


class Echo(llm_pb2_grpc.LlmServiceServicer):
    """Answers with what it saw of the call's context."""

    def __init__(self):
        self.cancelled = asyncio.Event()
        self.seen, self.baggage = [], []

    async def Complete(self, request, context):
        call = call_context.current()
        self.seen.append(call)
        self.baggage.append(dict(baggage.get_all()))
        match request.input.model:
            case "missing":
                raise NotFound("no such model", reason="MODEL_NOT_FOUND", metadata={"model": "missing"})
            case "wrong":
                raise InvalidInput.field("input.model", "is wrong")
            case "crash":
                raise ZeroDivisionError("secret text")
            case "hang":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
        return llm_pb2.CompleteResponse(message=llm_pb2.Message(text=call.principal.tenant))

    async def StreamComplete(self, request, context):
        try:
            for number in range(1000):
                yield llm_pb2.StreamCompleteResponse(text_delta=llm_pb2.TextDelta(text=str(number)))
                if request.input.model == "fail" and number == 2:
                    raise Overloaded("too much", retry_after_s=1.5)
                if number >= 2 and request.input.model != "long":
                    return
                await asyncio.sleep(0.001)
        finally:
            self.cancelled.set()


@pytest.fixture
async def served(identities):
    echo = Echo()
    port = testing.free_port()
    settings = ServiceSettings(grpc_port=port, drain_grace_s=0.5)
    up = {"up": True}

    async def store():
        return up["up"]

    def build(_):
        add = partial(llm_pb2_grpc.add_LlmServiceServicer_to_server, echo)
        return Service("llm_gateway", [add], {"store": store}, verifier=identities.verifier)

    address = f"127.0.0.1:{port}"
    async with testing.running(settings, build) as stop, testing.dialer("orchestrator", {"llm_gateway": address}) as dialer:
        stub = llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway"))
        yield stub, echo, address, up, stop


def ask(model=""):
    return llm_pb2.CompleteRequest(input=llm_pb2.CompletionInput(model=model))


async def test_a_call_carries_principal_canary_request_id_and_the_deadline_less_time_spent(served, identities):
    stub, echo, *_ = served
    with testing.calling(identities, testing.principal_of("globex"), timeout_s=7, canary=True):
        sent = call_context.current()
        assert (await stub.Complete(ask())).message.text == "globex"
    seen = echo.seen[0]
    assert (seen.canary, seen.request_id) == (True, sent.request_id)
    assert 0 < seen.deadline - time.monotonic() < 7


async def test_baggage_goes_along_and_no_call_has_that_of_another(served, identities):
    stub, echo, *_ = served
    with testing.calling(identities):
        token = otel_context.attach(baggage.set_baggage("campaign", "spring sale"))
        await stub.Complete(ask())
        otel_context.detach(token)
        await stub.Complete(ask())
    assert echo.baggage == [{"campaign": "spring sale"}, {}]


@pytest.mark.parametrize(
    ("model", "error", "reason"),
    [("missing", NotFound, "MODEL_NOT_FOUND"), ("wrong", InvalidInput, "INVALID_INPUT"), ("crash", Internal, "INTERNAL")],
)
async def test_domain_errors_cross_the_wire(served, identities, model, error, reason):
    stub, *_ = served
    with testing.calling(identities), pytest.raises(error) as caught:
        await stub.Complete(ask(model))
    assert caught.value.reason == reason
    assert "secret" not in caught.value.message
    if model == "wrong":
        assert caught.value.violations[0].field == "input.model"


async def test_a_stream_fails_with_its_error_after_what_was_sent(served, identities):
    stub, *_ = served
    got = []
    request = llm_pb2.StreamCompleteRequest(input=llm_pb2.CompletionInput(model="fail"))
    with testing.calling(identities), pytest.raises(Overloaded) as caught:
        async for event in stub.StreamComplete(request):
            got.append(event.text_delta.text)
    assert got == ["0", "1", "2"]
    assert caught.value.retry_after_s == 1.5


async def test_calls_left_on_a_channel_that_is_closed_are_refused_and_not_cancelled(served, identities):
    """As where the addresses of a service change: whoever waits has cancelled nothing, and may ask again."""
    _, echo, address, *_ = served
    async with testing.dialer("orchestrator", {"llm_gateway": address}) as dialer:
        channel = dialer.channel("llm_gateway")
        stub = llm_pb2_grpc.LlmServiceStub(channel)
        with testing.calling(identities):
            stream = stub.StreamComplete(llm_pb2.StreamCompleteRequest(input=llm_pb2.CompletionInput(model="long")))
            await anext(stream)
            waiting = asyncio.create_task(stub.Complete(ask("hang")))
            cancelled = asyncio.create_task(stub.Complete(ask("hang")))
            await testing.eventually_async(lambda: len(echo.seen) == 2, "both are there")
            cancelled.cancel()
            await channel.link.current().close()
            for left in (waiting, to_the_end_of(stream)):
                with pytest.raises(Overloaded) as caught:
                    await left
                assert caught.value.reason == "UNREACHABLE"
            with pytest.raises(asyncio.CancelledError):
                await cancelled


async def to_the_end_of(stream):
    async for _ in stream:
        pass


async def test_closing_a_stream_reaches_the_handler(served, identities):
    stub, echo, *_ = served
    request = llm_pb2.StreamCompleteRequest(input=llm_pb2.CompletionInput(model="long"))
    with testing.calling(identities):
        stream = stub.StreamComplete(request)
        await anext(stream)
        await stream.aclose()
    await asyncio.wait_for(echo.cancelled.wait(), 10)


async def test_cancelling_the_caller_cancels_the_handler(served, identities):
    stub, echo, *_ = served
    with testing.calling(identities):
        task = asyncio.create_task(stub.Complete(ask("hang")))
        await testing.eventually_async(lambda: echo.seen, "the call arrives")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait_for(echo.cancelled.wait(), 10)


async def test_a_deadline_that_passes_is_an_error_of_its_own(served, identities):
    stub, echo, *_ = served
    with testing.calling(identities, timeout_s=0.3), pytest.raises(DeadlineExceeded):
        await stub.Complete(ask("hang"))
    await asyncio.wait_for(echo.cancelled.wait(), 10)
    with testing.calling(identities, timeout_s=0.0), pytest.raises(DeadlineExceeded):
        await stub.Complete(ask())


async def test_calls_without_token_or_deadline_and_edges_outside_the_table_are_refused(served, identities):
    stub, _, address, *_ = served
    with pytest.raises(Unauthenticated):
        await stub.Complete(ask(), timeout=5)
    async with grpc.aio.insecure_channel(address) as raw:
        bare = llm_pb2_grpc.LlmServiceStub(raw)
        metadata = [("authorization", f"Bearer {identities.token()}")]
        with pytest.raises(grpc.RpcError) as caught:
            await bare.Complete(ask(), metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    async with testing.dialer("gateway", {"llm_gateway": address, "memory": address}) as dialer:
        with testing.calling(identities), pytest.raises(PermissionDenied):
            await llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway")).Complete(ask())
        with testing.calling(identities), pytest.raises(PermissionDenied):
            await memory_pb2_grpc.SessionServiceStub(dialer.channel("memory")).Recall(memory_pb2.RecallRequest())


async def test_an_unreachable_service_is_named(identities):
    async with testing.dialer("orchestrator", {"llm_gateway": f"127.0.0.1:{testing.free_port()}"}) as dialer:
        with testing.calling(identities), pytest.raises(Overloaded) as caught:
            await llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway")).Complete(ask())
    assert caught.value.reason == "UNREACHABLE"
    assert "llm_gateway" in caught.value.message


async def test_liveness_stays_while_readiness_follows_the_dependency_and_the_drain(served):
    _, _, address, up, _ = served
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

        async def status(name):
            return (await check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status

        async def is_status(expected):
            return await status("") == expected

        await testing.eventually_async(lambda: is_status(serving), "ready")
        up["up"] = False
        await testing.eventually_async(lambda: is_status(not_serving), "not ready")
        assert await status("readiness") == not_serving
        assert await status("liveness") == serving
        up["up"] = True
        await testing.eventually_async(lambda: is_status(serving), "ready again")
        with pytest.raises(grpc.RpcError) as caught:
            await status("nonsense")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_stop_during_a_start_hook_that_hangs_is_obeyed(identities):
    begun = asyncio.Event()

    async def hang():
        begun.set()
        await asyncio.sleep(600)

    async with AsyncExitStack() as stack:
        stop = asyncio.Event()
        settings = ServiceSettings(drain_grace_s=0.5)
        task = asyncio.create_task(run_service(settings, lambda _: Service("memory", start=[hang]), stop, stack))
        await begun.wait()
        stop.set()
        await asyncio.wait_for(task, 20)
