"""LlmService as its callers use it: tools, usage, limits of access, cancelling, telemetry, reload."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import orjson
import pytest
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.errors import DeadlineExceeded, InvalidInput, NotFound, PermissionDenied
from services.orchestrator.adapters.llm import LlmGateway
from services.orchestrator.ports import Message, ModelCall, TextDelta

pytestmark = pytest.mark.asyncio(loop_scope="module")
CALCULATOR = llm_pb2.ToolDefinition(
    name="calculator",
    description="Evaluates an arithmetic expression.",
    parameters_json=b'{"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}',
)


async def events_of(stack, *, text_only=False, **fields):
    request = llm_pb2.StreamCompleteRequest(input=llm_pb2.CompletionInput(**fields), text_only=text_only)
    with testing.calling(stack.identities):
        return [event async for event in stack.llm.StreamComplete(request)]


async def test_tool_calls_come_the_same_whole_and_in_fragments(stack):
    fields = {"model": "main", "messages": [llm_pb2.Message(role="user", text="What is 17 * 23?")], "tools": [CALCULATOR]}
    with testing.calling(stack.identities):
        whole = await stack.llm.Complete(llm_pb2.CompleteRequest(input=llm_pb2.CompletionInput(**fields)))
    assert whole.outcome.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    assert (call.name, "expression" in orjson.loads(call.arguments_json)) == ("calculator", True)
    events = await events_of(stack, **fields)
    deltas = [e.tool_call_delta for e in events if e.HasField("tool_call_delta")]
    assert [d.name for d in deltas if d.name] == ["calculator"]
    finished = events[-1].finished
    assert finished.outcome.finish_reason == "tool_calls"
    assert "".join(d.arguments_fragment for d in deltas).encode() == finished.message.tool_calls[0].arguments_json == call.arguments_json
    assert next(d.tool_call_id for d in deltas if d.tool_call_id) == finished.message.tool_calls[0].tool_call_id
    (last,) = await events_of(stack, text_only=True, **fields)
    assert last.finished.message.tool_calls[0].arguments_json == call.arguments_json
    answered = [
        *fields["messages"], finished.message,
        llm_pb2.Message(role="tool", tool_call_id=finished.message.tool_calls[0].tool_call_id, text='{"result": "391"}'),
    ]  # fmt: skip
    events = await events_of(stack, model="main", messages=answered, tools=[CALCULATOR])
    assert "391" in events[-1].finished.message.text


async def test_usage_and_cost_equal_what_the_simulator_billed(stack, ask):
    total = 0
    with testing.calling(stack.identities):
        for model in ("main", "backup", "main"):
            answer = await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(f"Tell {model} a long story", model)))
            total += answer.outcome.usage.cost_microusd
    lines = await stack.sim.logged(3)
    assert total == sum(-(-line["billed_nanousd"] // 1000) for line in lines)


async def test_a_model_that_is_not_named_is_the_first_with_a_warning(stack, ask):
    with testing.calling(stack.identities):
        answer = await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="")))
    assert (answer.outcome.model, [w.code for w in answer.outcome.warnings]) == ("main", ["model_defaulted"])
    events = await events_of(stack, messages=ask().messages)
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
async def test_bad_input_is_named_and_no_provider_hears_of_it(stack, ask, fields, field):
    given = {"model": "main", "messages": ask().messages, **fields}
    with testing.calling(stack.identities), pytest.raises(InvalidInput) as caught:
        await stack.llm.Complete(llm_pb2.CompleteRequest(input=llm_pb2.CompletionInput(**given)))
    assert field in caught.value.violations[0].field
    with pytest.raises(InvalidInput):
        await events_of(stack, **given)
    assert await stack.sim.log() == []


async def test_nesting_that_parses_but_cannot_be_sent_is_the_callers_to_know(stack, ask):
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    with testing.calling(stack.identities), pytest.raises(InvalidInput):
        await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(extra_json=b'{"x": %s}' % deep)))


async def test_unknown_models_and_wrong_modes(stack, ask):
    with testing.calling(stack.identities):
        with pytest.raises(NotFound) as caught:
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="nobody")))
        assert caught.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(InvalidInput):
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(model="vectors")))
        with pytest.raises(InvalidInput):
            await stack.embedder.Embed(llm_pb2.EmbedRequest(model="main", texts=["x"]))


async def test_every_call_that_costs_needs_the_scope(stack, ask):
    with testing.calling(stack.identities, testing.principal_of(scopes=["runs:write"])):
        with pytest.raises(PermissionDenied):
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask()))
        with pytest.raises(PermissionDenied):
            async for _ in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask())):
                pass
        with pytest.raises(PermissionDenied):
            await stack.embedder.Embed(llm_pb2.EmbedRequest(texts=["x"]))


async def test_leaving_a_stream_reaches_the_simulator_promptly(stack, ask):
    await stack.sim.order("tokens_per_s=20")
    with testing.calling(stack.identities):
        stream = stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask()))
        await anext(stream)
        assert await stack.sim.in_flight() == 1
        left = time.monotonic()
        await stream.aclose()
    (line,) = await stack.sim.logged(1)
    assert line["aborted"]
    assert line["aborted_monotonic_s"] - left < 3.0  # a loose cap; the benchmark's is 0.5 s


async def test_a_run_finds_out_what_a_call_that_was_cut_off_has_cost(stack):
    call = ModelCall("main", [Message("user", "Tell me a long story")], (), None, 500, "lossy", "t", "lossy/1", budget_microusd=1_000_000)
    async with testing.dialer("orchestrator", {"llm_gateway": stack.address}) as dialer:
        models = LlmGateway(dialer)
        with testing.calling(stack.identities):
            await _lossy(stack, models, call)


async def _lossy(stack, models, call):
    assert await models.spent("lossy") == (0, 0)
    await stack.sim.order("stall_after=2", times=1)
    async with aclosing(models.stream(call)) as stream:
        assert isinstance(await anext(stream), TextDelta)
        spent, held = await models.spent("lossy")
        assert held > spent == 0

    async def settled():
        spent, held = await models.spent("lossy")
        return spent if not held else 0

    lost = await testing.eventually_async(settled, "what was cut off is booked")
    finished = [item async for item in models.stream(replace(call, key="lossy/2"))][-1]
    assert finished.usage["cost_microusd"] > 0

    async def both():
        spent, held = await models.spent("lossy")
        return not held and lost < spent <= lost + finished.usage["cost_microusd"]

    await testing.eventually_async(both, "what was lost and what was answered are one account")
    again = [item async for item in models.stream(replace(call, key="lossy/2"))][-1]
    assert (again.replayed, again.usage["cost_microusd"], again.message.text) == (True, 0, finished.message.text)


async def test_cancelling_a_unary_call_reaches_the_simulator(stack, ask):
    await stack.sim.order("first_token_delay=30000")
    with testing.calling(stack.identities):
        task = asyncio.create_task(stack.llm.Complete(llm_pb2.CompleteRequest(input=ask())))
        await testing.eventually_async(stack.sim.in_flight, "the call is in flight")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (line,) = await stack.sim.logged(1)
    assert line["aborted"]


async def test_a_call_with_a_key_goes_on_without_its_caller_where_it_asks_for_that(stack, ask):
    await stack.sim.order("first_token_delay=300")
    request = llm_pb2.CompleteRequest(input=ask("Tell me about keels.", finish_unattended=True), idempotency_key="left-behind")
    with testing.calling(stack.identities):
        task = asyncio.create_task(stack.llm.Complete(request))
        await testing.eventually_async(stack.sim.in_flight, "the call is in flight")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer = await stack.llm.Complete(request)
    (line,) = await stack.sim.logged(1)
    assert not line["aborted"]
    assert (answer.outcome.cached, answer.outcome.usage.cost_microusd, bool(answer.message.text)) == ("replayed", 0, True)


async def test_the_callers_deadline_ends_the_call_at_the_leaf(stack, ask):
    await stack.sim.order("tokens_per_s=5")
    with testing.calling(stack.identities, timeout_s=1.0), pytest.raises(DeadlineExceeded):
        async for _ in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask())):
            pass
    (line,) = await stack.sim.logged(1)
    assert line["aborted"]


async def test_run_thread_and_canary_reach_the_simulator(stack, ask):
    with testing.calling(stack.identities, canary=True):
        await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask(run_id="run_7", thread_id="thread_7")))
    (line,) = await stack.sim.logged(1)
    assert (line["headers"]["x-canary"], line["headers"]["x-bulkhead-run-id"]) == ("true", "run_7")


async def test_embeddings(stack):
    with testing.calling(stack.identities):
        answer = await stack.embedder.Embed(llm_pb2.EmbedRequest(texts=["one", "two ships"]))
    assert (answer.model, answer.dimension, [len(e.values) for e in answer.embeddings]) == ("vectors", 256, [256, 256])
    assert answer.usage.input_tokens >= 3
    for texts in ([], [""], ["x"] * 2049):
        with testing.calling(stack.identities), pytest.raises(InvalidInput):
            await stack.embedder.Embed(llm_pb2.EmbedRequest(texts=texts))


async def test_models_are_listed_in_pages(stack):
    with testing.calling(stack.identities):
        first = await stack.reader.ListModels(llm_pb2.ListModelsRequest(page_size=2))
        rest = await stack.reader.ListModels(llm_pb2.ListModelsRequest(page_size=2, page_token=first.next_page_token))
        assert [m.name for m in (*first.models, *rest.models)] == ["main", "backup", "vectors"]
        assert (rest.next_page_token, [m.simulated for m in first.models], rest.models[0].embedding_dimension) == ("", [True, True], 256)
        for bad in ({"page_size": -1}, {"page_size": 1001}, {"page_token": "x"}, {"page_token": "bW9kZWxzOi0x"}, {"page_token": "é"}):
            with pytest.raises(InvalidInput):
                await stack.reader.ListModels(llm_pb2.ListModelsRequest(**bad))
