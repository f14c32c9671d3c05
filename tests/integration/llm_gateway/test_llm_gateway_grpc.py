"""LlmService as its callers use it: tools, usage, limits of access, cancelling, telemetry, reload."""

import asyncio
import time

import orjson
import pytest
import structlog
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.errors import DeadlineExceeded, InvalidInput, NotFound, PermissionDenied

CALCULATOR = llm_pb2.ToolDefinition(
    name="calculator",
    description="Evaluates an arithmetic expression.",
    parameters_json=b'{"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}',
)


@pytest.fixture
async def own(serve, sim, models):
    async with serve(models(sim.url)) as made:
        yield made


async def events_of(stack, **fields):
    request = llm_pb2.StreamCompleteRequest(input=llm_pb2.CompletionInput(**fields))
    with testing.calling(stack.identities):
        return [event async for event in stack.llm.StreamComplete(request)]


async def test_tool_calls_come_the_same_whole_and_in_fragments(own, sim):
    fields = {"model": "main", "messages": [llm_pb2.Message(role="user", text="What is 17 * 23?")], "tools": [CALCULATOR]}
    with testing.calling(own.identities):
        whole = await own.llm.Complete(llm_pb2.CompleteRequest(input=llm_pb2.CompletionInput(**fields)))
    assert whole.outcome.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    assert (call.name, "expression" in orjson.loads(call.arguments_json)) == ("calculator", True)
    events = await events_of(own, **fields)
    deltas = [e.tool_call_delta for e in events if e.HasField("tool_call_delta")]
    assert [d.name for d in deltas if d.name] == ["calculator"]
    finished = events[-1].finished
    assert finished.outcome.finish_reason == "tool_calls"
    assert "".join(d.arguments_fragment for d in deltas).encode() == finished.message.tool_calls[0].arguments_json == call.arguments_json
    assert next(d.tool_call_id for d in deltas if d.tool_call_id) == finished.message.tool_calls[0].tool_call_id
    answered = [
        *fields["messages"], finished.message,
        llm_pb2.Message(role="tool", tool_call_id=finished.message.tool_calls[0].tool_call_id, text='{"result": "391"}'),
    ]  # fmt: skip
    events = await events_of(own, model="main", messages=answered, tools=[CALCULATOR])
    assert "391" in events[-1].finished.message.text


async def test_usage_and_cost_equal_what_the_simulator_billed(own, sim, ask):
    total = 0
    with testing.calling(own.identities):
        for model in ("main", "backup", "main"):
            answer = await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(f"Tell {model} a long story", model)))
            total += answer.outcome.usage.cost_microusd
    lines = await sim.logged(3)
    assert total == sum(-(-line["billed_nanousd"] // 1000) for line in lines)


async def test_a_model_that_is_not_named_is_the_first_with_a_warning(own, ask):
    with testing.calling(own.identities):
        answer = await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="")))
    assert (answer.outcome.model, [w.code for w in answer.outcome.warnings]) == ("main", ["model_defaulted"])
    events = await events_of(own, messages=ask().messages)
    assert events[0].warning.code == "model_defaulted"


BAD = [
    ({"messages": []}, "messages"),
    ({"messages": [llm_pb2.Message(role="wizard", text="x")]}, "role"),
    ({"messages": [llm_pb2.Message(role="tool", text="x")]}, "tool_call_id"),
    ({"messages": [llm_pb2.Message(role="user", content_json=b"{")]}, "content_json"),
    ({"messages": [llm_pb2.Message(role="user", content_json=b'"text"')]}, "content_json"),
    ({"temperature": 7.0}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"tools": [llm_pb2.ToolDefinition(name="")]}, "tools"),
    ({"tools": [llm_pb2.ToolDefinition(name="x", parameters_json=b"[]")]}, "parameters_json"),
    ({"tools": [llm_pb2.ToolDefinition(name=f"t{n}") for n in range(2001)]}, "tools"),
    ({"tool_choice_json": b"7"}, "tool_choice"),
    ({"response_format_json": b'"json"'}, "response_format"),
    ({"extra_json": b"[]"}, "extra_json"),
    ({"extra_json": b'{"stream": true}'}, "extra_json"),
    ({"extra_json": b'{"a":' * 2000 + b"1" + b"}" * 2000}, "extra_json"),
    ({"extra_json": b"\xff"}, "extra_json"),
]


@pytest.mark.parametrize(("fields", "field"), BAD)
async def test_bad_input_is_named_and_no_provider_hears_of_it(own, sim, ask, fields, field):
    given = {"model": "main", "messages": ask().messages, **fields}
    with testing.calling(own.identities), pytest.raises(InvalidInput) as caught:
        await own.llm.Complete(llm_pb2.CompleteRequest(input=llm_pb2.CompletionInput(**given)))
    assert field in caught.value.violations[0].field
    with pytest.raises(InvalidInput):
        await events_of(own, **given)
    assert await sim.log() == []


async def test_nesting_that_parses_but_cannot_be_sent_is_the_callers_to_know(own, ask):
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    with testing.calling(own.identities), pytest.raises(InvalidInput):
        await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(extra_json=b'{"x": %s}' % deep)))


async def test_unknown_models_and_wrong_modes(own, ask):
    with testing.calling(own.identities):
        with pytest.raises(NotFound) as caught:
            await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="nobody")))
        assert caught.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(InvalidInput):
            await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="vectors")))
        with pytest.raises(InvalidInput):
            await own.embedder.Embed(llm_pb2.EmbedRequest(model="main", texts=["x"]))


async def test_every_call_that_costs_needs_the_scope(own, ask):
    with testing.calling(own.identities, testing.principal_of(scopes=["runs:write"])):
        with pytest.raises(PermissionDenied):
            await own.llm.Complete(llm_pb2.CompleteRequest(input=ask()))
        with pytest.raises(PermissionDenied):
            async for _ in own.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask())):
                pass
        with pytest.raises(PermissionDenied):
            await own.embedder.Embed(llm_pb2.EmbedRequest(texts=["x"]))


async def test_leaving_a_stream_reaches_the_simulator_promptly(own, sim, ask):
    await sim.order("tokens_per_s=20")
    with testing.calling(own.identities):
        stream = own.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask()))
        await anext(stream)
        assert await sim.in_flight() == 1
        left = time.monotonic()
        await stream.aclose()
    (line,) = await sim.logged(1)
    assert line["aborted"]
    assert line["aborted_monotonic_s"] - left < 3.0  # a loose cap; the benchmark's is 0.5 s


async def test_cancelling_a_unary_call_reaches_the_simulator(own, sim, ask):
    await sim.order("first_token_delay=30000")
    with testing.calling(own.identities):
        task = asyncio.create_task(own.llm.Complete(llm_pb2.CompleteRequest(input=ask())))
        await testing.eventually_async(sim.in_flight, "the call is in flight")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (line,) = await sim.logged(1)
    assert line["aborted"]


async def test_the_callers_deadline_ends_the_call_at_the_leaf(own, sim, ask):
    await sim.order("tokens_per_s=5")
    with testing.calling(own.identities, timeout_s=1.0), pytest.raises(DeadlineExceeded):
        async for _ in own.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask())):
            pass
    (line,) = await sim.logged(1)
    assert line["aborted"]


async def test_run_thread_and_canary_reach_the_simulator(own, sim, ask):
    with testing.calling(own.identities, canary=True):
        await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(run_id="run_7", thread_id="thread_7")))
    (line,) = await sim.logged(1)
    assert (line["headers"]["x-canary"], line["headers"]["x-bulkhead-run-id"]) == ("true", "run_7")


async def test_embeddings(own):
    with testing.calling(own.identities):
        answer = await own.embedder.Embed(llm_pb2.EmbedRequest(texts=["one", "two ships"]))
    assert (answer.model, answer.dimension, [len(e.values) for e in answer.embeddings]) == ("vectors", 256, [256, 256])
    assert answer.usage.input_tokens >= 3
    for texts in ([], [""], ["x"] * 513):
        with testing.calling(own.identities), pytest.raises(InvalidInput):
            await own.embedder.Embed(llm_pb2.EmbedRequest(texts=texts))


async def test_models_are_listed_in_pages(own):
    with testing.calling(own.identities):
        first = await own.reader.ListModels(llm_pb2.ListModelsRequest(page_size=2))
        rest = await own.reader.ListModels(llm_pb2.ListModelsRequest(page_size=2, page_token=first.next_page_token))
        assert [m.name for m in (*first.models, *rest.models)] == ["main", "backup", "vectors"]
        assert (rest.next_page_token, [m.simulated for m in first.models], rest.models[0].embedding_dimension) == ("", [True, True], 256)
        for bad in ({"page_size": -1}, {"page_size": 1001}, {"page_token": "x"}, {"page_token": "bW9kZWxzOi0x"}, {"page_token": "é"}):
            with pytest.raises(InvalidInput):
                await own.reader.ListModels(llm_pb2.ListModelsRequest(**bad))


async def test_a_reload_takes_effect_without_breaking_a_stream_and_a_bad_file_changes_nothing(own, sim, models, ask):
    await sim.order("tokens_per_s=15", times=1)
    with testing.calling(own.identities):
        stream = own.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask()))
        await anext(stream)
        file = models(sim.url)
        file["model_list"][0]["model_name"] = "renamed"
        own.write_models(file)

        async def names():
            return [m.name for m in (await own.reader.ListModels(llm_pb2.ListModelsRequest())).models]

        async def renamed():
            return (await names())[0] == "renamed"

        await testing.eventually_async(renamed, "the new file is read", 10)
        rest = [event async for event in stream]
        assert rest[-1].finished.outcome.finish_reason == "stop"
        file["router_settings"] = {"fallbacks": [{"renamed": ["nobody"]}]}
        with structlog.testing.capture_logs() as lines:
            own.write_models(file)
            await testing.eventually_async(lambda: any(line["event"] == "config_refused" for line in lines), "the bad file is refused", 10)
        assert (await names())[0] == "renamed"
        await own.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="renamed")))
