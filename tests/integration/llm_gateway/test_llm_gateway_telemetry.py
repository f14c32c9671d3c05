"""Spans and log lines of a model call, as an operator searches for them."""

import pytest
import structlog
from bulkhead.llm.v1 import llm_pb2
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import testing


@pytest.fixture
def spans(monkeypatch):
    """Everything that is traced in this process from here on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in ("services.llm_gateway.telemetry", "services.llm_gateway.adapters.http_upstream", "services.llm_gateway.model_port.app",
                   "services.common.rpc.handlers", "services.common.rpc.channel"):  # fmt: skip
        monkeypatch.setattr(f"{module}._tracer", provider.get_tracer(module))
    return exporter


def by_name(exporter, name):
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def test_one_call_is_one_span_with_its_attempts_as_children(serve, sim, models, ask, spans):
    async with serve(models(sim.url)) as stack:
        await sim.order("status=503", times=1)
        with testing.calling(stack.identities):
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(run_id="run_1", thread_id="thread_1")))
    (call,) = by_name(spans, "chat main")
    attempts = by_name(spans, "POST")
    (server,) = [s for s in by_name(spans, "bulkhead.llm.v1.LlmService/Complete") if s.kind is trace.SpanKind.SERVER]
    assert call.kind is trace.SpanKind.CLIENT
    assert call.parent.span_id == server.context.span_id
    assert [a.parent.span_id for a in attempts] == [call.context.span_id] * 2
    assert [a.attributes["http.response.status_code"] for a in attempts] == [503, 200]
    assert [a.attributes["http.request.resend_count"] for a in attempts] == [0, 1]
    assert attempts[0].attributes["error.type"] == "transient"
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "simulator",
        "gen_ai.request.model": "main", "gen_ai.response.model": "sim-1",
        "gen_ai.conversation.id": "thread_1", "bulkhead.run_id": "run_1", "bulkhead.attempts": 2, "bulkhead.tenant": "acme",
    }  # fmt: skip
    assert {key: call.attributes[key] for key in expected} == expected
    assert call.attributes["gen_ai.usage.input_tokens"] > 0
    assert call.attributes["gen_ai.usage.output_tokens"] > 0
    assert call.attributes["bulkhead.cost_microusd"] > 0
    assert call.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    # The simulator belongs to the trace as well: it got the attempt's own context.
    lines = await sim.log()
    assert [line["headers"]["traceparent"].split("-")[2] for line in lines] == [f"{a.context.span_id:016x}" for a in attempts]


async def test_the_model_port_continues_the_callers_trace(serve, sim, models, spans):
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with serve(models(sim.url)) as stack:
        body = {"model": "main", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        headers = {"authorization": f"Bearer {stack.key}", "traceparent": parent, "baggage": "campaign=spring"}
        async with stack.http.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers) as answer:
            assert b"[DONE]" in await answer.read()
        (line,) = await sim.log()
    # To a provider of one's own alone, which this one is.
    assert line["headers"]["baggage"] == "campaign=spring"
    (server,) = by_name(spans, "POST /v1/chat/completions")
    (call,) = by_name(spans, "chat main")
    assert f"{server.context.trace_id:032x}" == "a" * 32
    assert f"{server.parent.span_id:016x}" == "b" * 16
    assert call.parent.span_id == server.context.span_id
    assert server.attributes["http.response.status_code"] == 200
    assert call.attributes["gen_ai.response.time_to_first_chunk"] > 0


async def test_log_lines_of_a_call_that_fell_back(serve, sim, models, ask):
    async with serve(models(sim.url)) as stack:
        await sim.order("status=401", model="sim-1")
        with structlog.testing.capture_logs() as lines, testing.calling(stack.identities):
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask()))
    (switch,) = [line for line in lines if line["event"] == "switching_to_next_model"]
    assert (switch["from_index"], switch["to_index"], switch["to_model"], switch["log_level"]) == (0, 1, "backup", "warning")
    (call,) = [line for line in lines if line["event"] == "llm_call"]
    assert {"model", "tokens", "cost_usd", "latency_ms", "outcome", "cached", "attempt"} <= call.keys()
    assert (call["model"], call["asked_model"], call["outcome"], call["attempt"]) == ("backup", "main", "ok", 2)


async def test_a_call_that_failed_everywhere_is_logged_as_an_error_with_what_was_tried(serve, sim, models, ask):
    async with serve(models(sim.url)) as stack:
        await sim.order("status=401")
        with structlog.testing.capture_logs() as lines, testing.calling(stack.identities), pytest.raises(Exception, match="credentials"):
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask()))
    (failed,) = [line for line in lines if line["event"] == "all_models_failed"]
    assert (failed["log_level"], failed["tried"]) == ("error", ["main:credential", "backup:credential"])
    assert next(line for line in lines if line["event"] == "llm_call")["outcome"] == "credential"
