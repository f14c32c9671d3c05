"""The official SDK, unmodified, against the simulator."""

import asyncio

import openai
import pytest
from pydantic import BaseModel


@pytest.fixture
async def client(sim):
    async with openai.AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="any", max_retries=2) as made:
        yield made


async def test_sync_and_async_answers(sim, client):
    messages = [{"role": "user", "content": "My cat is called Miso."}]

    def ask_sync():
        with openai.OpenAI(base_url=f"{sim.url}/v1", api_key="any") as sync_client:
            return sync_client.chat.completions.create(model="sim-1", messages=messages)

    synchronous = await asyncio.to_thread(ask_sync)
    asynchronous = await client.chat.completions.create(model="sim-1", messages=messages)
    assert synchronous.choices[0].message.content == asynchronous.choices[0].message.content == 'Noted: "My cat is called Miso."'
    assert synchronous.usage.total_tokens == synchronous.usage.prompt_tokens + synchronous.usage.completion_tokens


async def test_a_stream_with_usage(client):
    stream = await client.chat.completions.create(
        model="sim-1", messages=[{"role": "user", "content": "Write 20 words."}], stream=True, stream_options={"include_usage": True}
    )
    text, usage, finish = "", None, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert len(text.split()) == 20
    assert usage.completion_tokens == 20
    assert finish == "stop"


async def test_a_tool_loop_through_the_streaming_helper(client, tools):
    messages = [{"role": "user", "content": "What is 17*23?"}]
    async with client.chat.completions.stream(model="sim-1", messages=messages, tools=[tools.calculator]) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    assert message.tool_calls[0].function.name == "calculator"
    messages += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "391"}]
    for transient in messages[1].get("tool_calls", []):
        transient["function"].pop("parsed_arguments", None)
    answer = await client.chat.completions.create(model="sim-1", messages=messages, tools=[tools.calculator])
    assert answer.choices[0].message.content == "17*23 = 391"


async def test_structured_output_is_parsed(client):
    class Trip(BaseModel):
        city: str
        days: int

    answer = await client.chat.completions.parse(
        model="sim-1", messages=[{"role": "user", "content": "Plan 3 days in Lisbon."}], response_format=Trip
    )
    assert answer.choices[0].message.parsed == Trip(city="Lisbon", days=3)


async def test_embeddings_and_models(client):
    answer = await client.embeddings.create(model="sim-embed", input=["one", "two"], dimensions=16)
    assert [len(item.embedding) for item in answer.data] == [16, 16]
    assert "sim-1" in [model.id async for model in client.models.list()]


async def test_errors_have_the_sdk_s_own_types(client):
    async def ask(model: str):
        await client.with_options(max_retries=0).chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])

    for model, kind in (
        ("sim-1+429", openai.RateLimitError),
        ("sim-1+500", openai.InternalServerError),
        ("sim-1+401", openai.AuthenticationError),
        ("sim-1+404", openai.NotFoundError),
        ("sim-1+context_length", openai.BadRequestError),
        ("sim-1+reset", openai.APIConnectionError),
    ):
        with pytest.raises(kind):
            await ask(model)


async def test_it_retries_and_succeeds_after_an_ordered_fault(sim, client):
    await sim.call("POST", "/sim/faults", {"fault": "rate_limit=ms:1", "times": 2})
    answer = await client.chat.completions.create(model="sim-1", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].finish_reason == "stop"
    assert [line["status"] for line in await sim.log()] == [429, 429, 200]
