"""The openai SDK, unmodified, against the model port."""

import asyncio

import openai
import pydantic
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO = [{"role": "user", "content": "Tell me about ships and bulkheads, please."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Evaluates an arithmetic expression.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
        },
    }
]


@pytest.fixture
def client(stack):
    return openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key)


async def test_completions_whole_and_streamed(client):
    whole = await client.chat.completions.create(model="main", messages=HELLO)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    text, last = "", None
    async for chunk in await client.chat.completions.create(
        model="main", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        last = chunk
    assert text == whole.choices[0].message.content
    assert last.usage == whole.usage


async def test_a_tool_turn(client):
    messages = [{"role": "user", "content": "What is 17 * 23?"}]
    answer = await client.chat.completions.create(model="main", messages=messages, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "calculator"
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": '{"result": "391"}'}]
    answer = await client.chat.completions.create(model="main", messages=messages, tools=TOOLS)
    assert "391" in answer.choices[0].message.content
    async with client.chat.completions.stream(model="main", messages=messages[:1], tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "calculator"


class Ship(pydantic.BaseModel):
    name: str
    decks: int


async def test_structured_output(client):
    parsed = await client.chat.completions.parse(model="main", messages=HELLO, response_format=Ship)
    assert isinstance(parsed.choices[0].message.parsed, Ship)
    async with client.chat.completions.stream(model="main", messages=HELLO, response_format=Ship) as stream:
        assert isinstance((await stream.get_final_completion()).choices[0].message.parsed, Ship)


async def test_a_picture(client, stack):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]
    answer = await client.chat.completions.create(model="main", messages=messages)
    assert answer.choices[0].message.content


async def test_the_synchronous_client(stack):
    def work():
        with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as client:
            whole = client.chat.completions.create(model="main", messages=HELLO).choices[0].message.content
            stream = client.chat.completions.create(model="main", messages=HELLO, stream=True)
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="nobody", messages=HELLO)
            return whole, "".join(pieces), len(client.embeddings.create(model="vectors", input="one").data)

    whole, streamed, vectors = await asyncio.to_thread(work)
    assert (streamed, vectors) == (whole, 1)


async def test_embeddings_and_models(client):
    answer = await client.embeddings.create(model="vectors", input=["one", "two"])
    assert [len(entry.embedding) for entry in answer.data] == [256, 256]
    shorter = await client.embeddings.create(model="vectors", input="one", dimensions=64)
    assert len(shorter.data[0].embedding) == 64
    assert [model.id async for model in client.models.list()] == ["main", "backup", "vectors"]
    assert (await client.models.retrieve("main")).owned_by == "simulator"


async def test_errors_are_the_sdks_own_classes(client, stack):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="nobody", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="main", messages=[])
    assert caught.value.param == "messages"
    with pytest.raises(openai.AuthenticationError):
        await openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="wrong").models.list()
    await stack.sim.order("context_length")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="main", messages=HELLO)
    assert caught.value.code == "context_length_exceeded"


async def test_a_broken_stream_raises_and_the_sdk_does_not_repeat_what_was_repeated(client, stack):
    await stack.sim.order("cut_after=2")
    with pytest.raises(openai.APIError, match="broke off"):
        async for _ in await client.chat.completions.create(model="main", messages=HELLO, stream=True):
            pass
    await stack.sim.reset()
    await stack.sim.order("status=401")
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="main", messages=HELLO)
    assert len(await stack.sim.log()) == 2  # main and backup, once


async def test_leaving_a_stream_early(client, stack):
    await stack.sim.order("tokens_per_s=10")
    stream = await client.chat.completions.create(model="main", messages=HELLO, stream=True)
    await anext(aiter(stream))
    await stream.close()
    (line,) = await stack.sim.logged(1)
    assert line["aborted"]
