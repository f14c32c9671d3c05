"""GenAI conventions: today's names, the previous ones by one switch, and content only where it is wanted."""

import orjson
import pytest
from bulkhead.llm.v1 import llm_pb2
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import testing
from services.common.telemetry import _instruments

SECRET = "my card is 4111 1111 1111 1111, tell me about ships"


@pytest.fixture
def spans(monkeypatch):
    """Everything that is traced in this process from here on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in ("services.llm_gateway.telemetry", "services.common.rpc.handlers", "services.common.rpc.channel"):
        monkeypatch.setattr(f"{module}._tracer", provider.get_tracer(module))
    return lambda: next(span for span in exporter.get_finished_spans() if span.name.startswith("chat "))


def measured() -> dict[str, float]:
    """Sum (or count of values) of every metric of the gateway by its name."""
    data = _instruments.joined(MetricsData([]), Resource({}))
    found = {}
    for scope in (scope for resource in data.resource_metrics for scope in resource.scope_metrics):
        for metric in scope.metrics:
            points = metric.data.data_points
            found[metric.name] = sum(point.count if hasattr(point, "count") else point.value for point in points)
    return found


async def ask_once(stack, ask, **fields):
    before = measured()
    with testing.calling(stack.identities):
        async for _ in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask(SECRET, temperature=0.5, **fields))):
            pass
    return {name: value - before.get(name, 0) for name, value in measured().items() if value != before.get(name, 0)}


async def test_todays_names_are_the_default(serve, sim, models, ask, spans):
    async with serve(models(sim.url)) as stack:
        grown = await ask_once(stack, ask)
    attributes = spans().attributes
    assert attributes["gen_ai.provider.name"] == "simulator"
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.stream"] is True
    assert {"gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.reasoning.output_tokens", "bulkhead.retries"} <= attributes.keys()
    assert "gen_ai.system" not in attributes
    assert grown["gen_ai.client.inference.duration"] == grown["gen_ai.client.inference.time_to_first_chunk"] == 1
    assert grown["gen_ai.client.inference.usage.input_tokens"] == attributes["gen_ai.usage.input_tokens"]
    assert grown["gen_ai.client.inference.usage.output_tokens"] == attributes["gen_ai.usage.output_tokens"]
    assert grown["bulkhead_llm_stage_duration_seconds"] == 4
    assert not any(name.startswith(("gen_ai.client.operation", "gen_ai.client.token")) for name in grown)


async def test_the_previous_names_by_one_switch(serve, sim, models, ask, spans):
    async with serve(models(sim.url), genai_semconv="previous") as stack:
        grown = await ask_once(stack, ask)
    attributes = spans().attributes
    assert attributes["gen_ai.system"] == "simulator"
    assert "gen_ai.provider.name" not in attributes
    assert not any("cache_read" in name or "first_chunk" in name for name in attributes)
    assert (grown["gen_ai.client.operation.duration"], grown["gen_ai.client.token.usage"]) == (1, 2)
    assert not any(name.startswith("gen_ai.client.inference") for name in grown)


async def test_spans_hold_no_content_unless_it_is_wanted(serve, sim, models, ask, spans):
    async with serve(models(sim.url)) as stack:
        await ask_once(stack, ask)
    span = spans()
    assert "ships" not in str(dict(span.attributes)) + str(span.events)


@pytest.mark.parametrize("names", ["latest", "previous"])
async def test_content_that_is_wanted_is_there_without_what_is_nobodys_business(serve, sim, models, ask, spans, names):
    async with serve(models(sim.url), capture_content=True, genai_semconv=names) as stack:
        await ask_once(stack, ask)
    span = spans()
    everything = str(dict(span.attributes)) + str([(event.name, dict(event.attributes)) for event in span.events])
    assert "4111" not in everything
    if names == "latest":
        (asked,) = orjson.loads(span.attributes["gen_ai.input.messages"])
        assert asked["role"] == "user"
        assert "about ships" in asked["parts"][0]["content"]
        (answered,) = orjson.loads(span.attributes["gen_ai.output.messages"])
        assert answered["finish_reason"] == "stop"
        assert answered["parts"][0]["content"]
    else:
        assert [event.name for event in span.events] == ["gen_ai.user.message", "gen_ai.choice"]
