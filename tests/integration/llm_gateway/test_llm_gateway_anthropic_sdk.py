"""The anthropic SDK, unmodified, against the model port: over models of its own API and over models of OpenAI's; and the openai SDK
over models of Anthropic's API.
"""

import asyncio

import anthropic
import openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO = [{"role": "user", "content": "Tell me about ships and bulkheads, please."}]
SUM = [{"role": "user", "content": "What is 17 * 23?"}]
CALCULATOR = {
    "name": "calculator",
    "description": "Evaluates an arithmetic expression.",
    "input_schema": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CLAUDE, OTHER = "claude", "main"
BOTH = pytest.mark.parametrize("model", [CLAUDE, OTHER])


@pytest.fixture
def client(apis):
    return anthropic.AsyncAnthropic(base_url=apis.url, api_key=apis.key)


@BOTH
async def test_messages_whole_and_streamed_are_the_same(client, model):
    whole = await client.messages.create(model=model, max_tokens=200, messages=HELLO)
    assert (whole.type, whole.role, whole.stop_reason) == ("message", "assistant", "end_turn")
    assert whole.usage.input_tokens > 0
    assert whole.usage.output_tokens > 0
    async with client.messages.stream(model=model, max_tokens=200, messages=HELLO) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == "end_turn"


@BOTH
async def test_events_come_in_the_order_of_the_api(client, model):
    kinds = [event.type async for event in await client.messages.create(model=model, max_tokens=200, messages=HELLO, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@BOTH
async def test_a_loop_of_tools(client, model):
    messages = list(SUM)
    answer = await client.messages.create(model=model, max_tokens=500, messages=messages, tools=[CALCULATOR])
    assert answer.stop_reason == "tool_use"
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "calculator"
    assert "17" in call.input["expression"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": '{"result": "391"}'}]}
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    answer = await client.messages.create(model=model, max_tokens=500, messages=messages, tools=[CALCULATOR])
    assert "391" in answer.content[0].text
    async with client.messages.stream(model=model, max_tokens=500, messages=SUM, tools=[CALCULATOR]) as stream:
        final = await stream.get_final_message()
    streamed = next(block for block in final.content if block.type == "tool_use")
    assert (streamed.name, streamed.input) == (call.name, call.input)
    assert final.stop_reason == "tool_use"


class Ship(BaseModel):
    name: str
    length_m: float


@BOTH
async def test_structured_output(client, model):
    parsed = await client.messages.parse(model=model, max_tokens=500, messages=HELLO, output_format=Ship)
    assert isinstance(parsed.parsed_output, Ship)


@BOTH
async def test_images_and_a_cached_system_prompt(client, model, apis):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    content = [{"type": "text", "text": "What is this?"}, image]
    answer = await client.messages.create(model=model, max_tokens=200, system=system, messages=[{"role": "user", "content": content}])
    assert answer.content[0].text
    (line,) = await apis.sim.logged(1)
    assert line["status"] == 200


async def test_thinking_over_its_own_api(client):
    answer = await client.messages.create(
        model=CLAUDE, max_tokens=3000, messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].signature
    again = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "Go on."}]
    async with client.messages.stream(
        model=CLAUDE, max_tokens=3000, messages=again, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].signature


@BOTH
async def test_bad_input_is_refused_before_anybody_is_asked(client, apis, model):
    for wrong in (
        {"messages": []},
        {"max_tokens": -1},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "nothing"}}]}]},
        {"tools": [{"name": "x"}]},
        {"tool_choice": {"type": "sometimes"}},
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
        {"stop_sequences": "x"},
        {"extra_body": {"temperature": 7}},
    ):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(**{"model": model, "max_tokens": 10, "messages": HELLO, **wrong})
        assert caught.value.type == "invalid_request_error"
        assert caught.value.body["type"] == "error"
        assert caught.value.request_id == caught.value.body["request_id"]
    assert await apis.sim.log() == []


async def test_server_tools_are_refused_by_name_where_nobody_has_them(client, apis):
    search = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305") as caught:
        await client.messages.create(model=OTHER, max_tokens=10, messages=HELLO, tools=[search])
    assert caught.value.error_code == "capability_missing"
    assert await apis.sim.log() == []


async def test_errors_are_the_sdks_own_classes(client, apis):
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(model="nobody", max_tokens=10, messages=HELLO)
    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await anthropic.AsyncAnthropic(base_url=apis.url, api_key="wrong").messages.create(model=CLAUDE, max_tokens=10, messages=HELLO)
    assert caught.value.type == "authentication_error"


@BOTH
async def test_a_failing_provider_is_not_asked_again_by_the_sdk(client, apis, model):
    await apis.sim.order("status=503")
    with pytest.raises(anthropic.InternalServerError):
        await client.messages.create(model=model, max_tokens=10, messages=HELLO)
    asked = len(await apis.sim.log())
    assert asked <= 8
    await apis.sim.reset()
    await apis.sim.order("rate_limit=ms:10")
    with pytest.raises(anthropic.OverloadedError) as caught:
        await client.messages.create(model=model, max_tokens=10, messages=HELLO)
    assert caught.value.type == "overloaded_error"
    assert len(await apis.sim.log()) <= 8


@BOTH
async def test_a_broken_stream_ends_with_an_error_and_never_with_message_stop(client, apis, model):
    await apis.sim.order("cut_after=2")
    kinds = []
    with pytest.raises(anthropic.APIStatusError, match="broke off"):
        async for event in await client.messages.create(model=model, max_tokens=200, messages=HELLO, stream=True):
            kinds.append(event.type)
    assert kinds[0] == "message_start"
    assert "message_stop" not in kinds
    assert "message_delta" not in kinds


@BOTH
async def test_tokens_are_counted_without_asking_anybody(client, apis, model):
    short = await client.messages.count_tokens(model=model, messages=HELLO)
    longer = await client.messages.count_tokens(model=model, messages=HELLO, system="Be brief. " * 50, tools=[CALCULATOR])
    assert 0 < short.input_tokens < longer.input_tokens
    assert await apis.sim.log() == []


async def test_the_synchronous_client(apis):
    def asked():
        with (
            anthropic.Anthropic(base_url=apis.url, api_key=apis.key) as sync,
            sync.messages.stream(model=OTHER, max_tokens=100, messages=HELLO) as stream,
        ):
            return stream.get_final_text()

    assert await asyncio.to_thread(asked)


async def test_stop_sequences_are_told(client):
    whole = await client.messages.create(model=CLAUDE, max_tokens=200, messages=HELLO)
    word = whole.content[0].text.split()[3]
    stopped = await client.messages.create(model=CLAUDE, max_tokens=200, messages=HELLO, stop_sequences=[word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    async with client.messages.stream(model=CLAUDE, max_tokens=200, messages=HELLO, stop_sequences=[word]) as stream:
        final = await stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", word)
    cut = await client.messages.create(model=CLAUDE, max_tokens=3, messages=HELLO)
    assert cut.stop_reason == "max_tokens"


async def test_the_openai_sdk_over_a_model_of_anthropics_api(apis):
    client = openai.AsyncOpenAI(base_url=f"{apis.url}/v1", api_key=apis.key)
    tool = {"type": "function", "function": {"name": "calculator", "parameters": CALCULATOR["input_schema"]}}
    answer = await client.chat.completions.create(model=CLAUDE, messages=SUM, tools=[tool])
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    history = [*SUM, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": '{"result": "391"}'}]
    text = ""
    async for chunk in await client.chat.completions.create(
        model=CLAUDE, messages=history, tools=[tool], stream=True, stream_options={"include_usage": True}
    ):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        last = chunk
    assert "391" in text
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    parsed = await client.chat.completions.parse(model=CLAUDE, messages=HELLO, response_format=Ship)
    assert isinstance(parsed.choices[0].message.parsed, Ship)
