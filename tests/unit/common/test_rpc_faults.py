"""What goes wrong inside a server or on its way out: every caller hears of it at once, and the process still ends in time."""

import asyncio
import signal
import socket
import time
from functools import partial

import grpc
import pytest
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import baggage, trace

from services.common import testing
from services.common.errors import BulkheadError, FieldViolation, Internal, InvalidInput, Overloaded, QuotaExceeded, from_status, to_status
from services.common.health import Health, HealthServicer
from services.common.rpc.server import Service
from services.common.rpc.wire import MAX_BAGGAGE, MAX_TRACESTATE, extract_trace
from services.common.settings import ServiceSettings

LONG = [FieldViolation("é" * 256, "ü" * 512) for _ in range(32)]
FAT: dict[str, BulkheadError] = {
    "violations": InvalidInput("é" * 4000, violations=LONG),
    "metadata": QuotaExceeded("ü" * 4000, retry_after_s=3.0, metadata={f"key_{n}": "ä" * 900 for n in range(30)}),
}


class Faulty(llm_pb2_grpc.LlmServiceServicer):
    """Fails in the way that the model's name says."""

    def __init__(self):
        self.ends = []
        self.called = asyncio.Event()

    async def Complete(self, request, context):
        if error := FAT.get(request.input.model):
            raise error
        if request.input.model == "stray":
            await _cancelled_elsewhere()
        self.called.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            self.ends.append("call")

    async def StreamComplete(self, request, context):
        yield llm_pb2.StreamCompleteResponse()
        await _cancelled_elsewhere()


async def _cancelled_elsewhere():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.fixture
async def faulty(identities):
    servicer = Faulty()
    port = testing.free_port()

    async def close():
        servicer.ends.append("stores")

    def build(_):
        add = partial(llm_pb2_grpc.add_LlmServiceServicer_to_server, servicer)
        return Service("llm_gateway", [add], verifier=identities.verifier, close=[close])

    settings = ServiceSettings(grpc_port=port, drain_grace_s=0.2)
    async with testing.running(settings, build) as stop, testing.dialer("orchestrator", {"llm_gateway": f"127.0.0.1:{port}"}) as dialer:
        yield llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway")), servicer, stop, port


def ask(model):
    return llm_pb2.CompleteRequest(input=llm_pb2.CompletionInput(model=model))


@pytest.mark.parametrize("name", list(FAT))
async def test_an_error_with_much_to_say_arrives_as_itself(faulty, identities, name):
    stub, *_ = faulty
    with testing.calling(identities), pytest.raises(type(FAT[name])) as caught:
        await stub.Complete(ask(name))
    assert caught.value.retry_after_s == FAT[name].retry_after_s
    assert bool(caught.value.violations) == bool(FAT[name].violations)


def test_a_status_keeps_what_is_short_and_its_kind_whatever_is_long():
    violations = [FieldViolation(f"field_{n}", "is wrong") for n in range(10)]
    back = from_status(to_status(InvalidInput("wrong", violations=violations, metadata={"a": "b"}), "0" * 32))
    assert (back.violations, back.metadata["a"], back.metadata["trace_id"]) == (tuple(violations), "b", "0" * 32)
    for error in FAT.values():
        assert to_status(error, "0" * 32).ByteSize() < 5000
        assert type(from_status(to_status(error))) is type(error)


async def test_a_cancellation_that_nobody_asked_for_is_an_error_at_once(faulty, identities):
    stub, *_ = faulty
    with testing.calling(identities, timeout_s=60):
        with pytest.raises(Internal):
            await stub.Complete(ask("stray"))
        with pytest.raises(Internal):
            async for _ in stub.StreamComplete(llm_pb2.StreamCompleteRequest()):
                pass


async def test_calls_clean_up_before_the_stores_are_closed(faulty, identities):
    stub, servicer, stop, _ = faulty
    with testing.calling(identities):
        call = asyncio.create_task(stub.Complete(ask("hang")))
        await asyncio.wait_for(servicer.called.wait(), 10)
        stop.set()
        with pytest.raises(Overloaded):
            await call
    await testing.eventually_async(lambda: len(servicer.ends) == 2, "the service has closed")
    assert servicer.ends == ["call", "stores"]


async def test_a_watch_of_the_health_ends_with_the_process(faulty):
    _, _, stop, port = faulty
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        await watch.read()
        stop.set()
        seen = []
        while (answer := await watch.read()) is not grpc.aio.EOF:
            seen.append(answer.status)
        assert await watch.code() == grpc.StatusCode.OK
    assert seen[-1:] == [health_pb2.HealthCheckResponse.NOT_SERVING]


async def test_a_watch_misses_no_change_that_comes_while_it_sends():
    health = Health({})
    watch = HealthServicer(health).Watch(health_pb2.HealthCheckRequest(service=""), None)
    assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
    health.drain()
    async with asyncio.timeout(10):
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_trace_headers_too_long_to_be_sent_on_are_dropped_and_the_trace_is_kept():
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    def extracted(state, bag):
        context = extract_trace({"traceparent": parent, "tracestate": state, "baggage": bag})
        span = trace.get_current_span(context).get_span_context()
        assert f"{span.trace_id:032x}" in parent
        return len(span.trace_state), len(baggage.get_all(context))

    assert extracted("a=1", "b=2") == (1, 1)
    assert extracted("a=" + "x" * MAX_TRACESTATE, "b=" + "x" * MAX_BAGGAGE) == (0, 0)


SPANS = """
import sys
from opentelemetry import trace
from services.common.rpc.server import Service, serve
from services.common.settings import ServiceSettings

async def start():
    for _ in range(5000):
        trace.get_tracer("test").start_span("span").end()

settings = ServiceSettings(otlp_endpoint=sys.argv[1], drain_flush_s=0.5, log_level="INFO", log_format="json")
serve(settings, lambda _: Service("test", start=[start]))
"""


def test_a_collector_that_is_silent_does_not_hold_up_the_exit(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = testing.Process(testing.python("-c", SPANS, endpoint), log=tmp_path / "log")
        try:
            testing.eventually(lambda: '"started"' in process.output() or not process.running(), "started")
            asked = time.monotonic()
            process.signal(signal.SIGTERM)
            assert process.wait() == 0, process.output()
            # Unbounded it takes over twenty seconds: two for each of ten batches.
            assert time.monotonic() - asked < 10
            assert "telemetry_lost" in process.output()
        finally:
            process.stop()
