"""Anthropic's official SDK, unmodified, against the simulator."""

import asyncio

import anthropic
import pytest

CALCULATOR = {
    "name": "calculator",
    "description": "Calculates.",
    "input_schema": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}


@pytest.fixture
async def client(sim):
    async with anthropic.AsyncAnthropic(base_url=sim.url, api_key="any", max_retries=0) as made:
        yield made


def user(text):
    return [{"role": "user", "content": text}]


async def test_sync_and_async_answers(sim, client):
    def ask_sync():
        with anthropic.Anthropic(base_url=sim.url, api_key="any") as sync_client:
            return sync_client.messages.create(model="sim-1", max_tokens=100, messages=user("My cat is called Miso."))

    synchronous = await asyncio.to_thread(ask_sync)
    answer = await client.messages.create(model="sim-1", max_tokens=100, system="Be brief.", messages=user("My cat is called Miso."))
    assert synchronous.content[0].text == answer.content[0].text == 'Noted: "My cat is called Miso."'
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert answer._request_id.startswith("req_")
    line = await sim.last_line(2)
    assert line["endpoint"] == "messages"
    assert (line["prompt_tokens"], line["completion_tokens"]) == (answer.usage.input_tokens, answer.usage.output_tokens)


async def test_a_tool_loop_in_a_stream(sim, client):
    messages = user("What is 17*23?")
    async with client.messages.stream(model="sim-1", max_tokens=500, messages=messages, tools=[CALCULATOR]) as stream:
        kinds = [event.type async for event in stream]
        first = await stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.id.startswith("toolu_")
    assert (call.name, call.input) == ("calculator", {"expression": "17*23"})
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "391"}]}]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    answer = await client.messages.create(model="sim-1", max_tokens=500, messages=messages, tools=[CALCULATOR])
    assert answer.content[0].text == "17*23 = 391"


async def test_the_events_of_a_stream_come_in_anthropic_s_order(client):
    stream = await client.messages.create(
        model="sim-1",
        max_tokens=2000,
        stream=True,
        messages=user("What is 2*3?"),
        tools=[CALCULATOR],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    seen = []
    async for event in stream:
        name = event.type if event.type != "content_block_delta" else event.delta.type
        if not seen or seen[-1] != name:
            seen.append(name)
    assert seen == [
        "message_start",
        "content_block_start",
        "thinking_delta",
        "signature_delta",
        "content_block_stop",
        "content_block_start",
        "input_json_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_thinking_is_signed_and_has_to_come_back_as_it_was(sim, client):
    asked = {"model": "sim-1", "max_tokens": 2000, "tools": [CALCULATOR], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    first = await client.messages.create(messages=user("What is 2*3?"), **asked)
    thought, call = first.content
    assert (thought.type, call.type) == ("thinking", "tool_use")
    assert first.usage.output_tokens_details.thinking_tokens == 32
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "6"}]}
    answer = await client.messages.create(
        messages=[*user("What is 2*3?"), {"role": "assistant", "content": first.content}, result], **asked
    )
    assert answer.content[-1].text == "2*3 = 6"
    forged = {**thought.model_dump(), "thinking": "something else"}
    for content, named in (([forged, call], "signature"), ([call], "Expected `thinking`")):
        with pytest.raises(anthropic.BadRequestError, match=named):
            await client.messages.create(messages=[*user("What is 2*3?"), {"role": "assistant", "content": content}, result], **asked)
    line = (await sim.log())[0]
    assert line["reasoning_tokens"] == 32
    assert line["billed_nanousd"] == line["prompt_tokens"] * 150 + line["completion_tokens"] * 600


@pytest.mark.parametrize("stream", [False, True])
async def test_a_marked_prefix_is_written_once_and_read_after(sim, client, stream):
    system = [{"type": "text", "text": f"The rules of the house {stream}. " * 100, "cache_control": {"type": "ephemeral"}}]

    async def ask(text):
        async with client.messages.stream(model="sim-1", max_tokens=50, system=system, messages=user(text)) as made:
            return (await made.get_final_message()).usage

    async def ask_whole(text):
        return (await client.messages.create(model="sim-1", max_tokens=50, system=system, messages=user(text))).usage

    first, second = [await (ask if stream else ask_whole)(text) for text in ("One thing.", "Another thing.")]
    assert first.cache_creation_input_tokens > 500
    assert first.cache_read_input_tokens == 0
    assert second.cache_read_input_tokens == first.cache_creation_input_tokens
    assert second.cache_creation_input_tokens == 0
    lines = await sim.log()
    for line, told in zip(lines, (first, second), strict=True):
        plain = told.input_tokens * 150 + told.cache_read_input_tokens * 30 + told.cache_creation_input_tokens * 188
        assert line["billed_nanousd"] == plain + told.output_tokens * 600
        assert line["prompt_tokens"] == told.input_tokens + told.cache_read_input_tokens + told.cache_creation_input_tokens


async def test_a_prefilled_answer_is_continued_word_for_word(client):
    messages = user("Write 20 words.")
    whole = (await client.messages.create(model="sim-1", max_tokens=50, messages=messages)).content[0].text
    prefix = whole[: len(whole) // 2].rstrip()
    rest = await client.messages.create(model="sim-1", max_tokens=50, messages=[*messages, {"role": "assistant", "content": prefix}])
    assert prefix + rest.content[0].text == whole
    with pytest.raises(anthropic.BadRequestError, match="prefill"):
        await client.messages.create(
            model="sim-1+no_prefill", max_tokens=50, messages=[*messages, {"role": "assistant", "content": prefix}]
        )
    with pytest.raises(anthropic.BadRequestError, match="whitespace"):
        await client.messages.create(model="sim-1", max_tokens=50, messages=[*messages, {"role": "assistant", "content": "a "}])


async def test_structured_output_stop_sequences_and_limits(client):
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]}
    answer = await client.messages.create(
        model="sim-1",
        max_tokens=100,
        messages=user("Plan 3 days in Lisbon."),
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert answer.content[0].text == '{"city":"Lisbon","days":3}'
    stopped = await client.messages.create(
        model="sim-1", max_tokens=100, messages=user('Say exactly: "one two three"'), stop_sequences=["two"]
    )
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == ("stop_sequence", "two", "one ")
    short = await client.messages.create(model="sim-1", max_tokens=5, messages=user("Write 20 words."))
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 5)
    filtered = await client.messages.create(model="sim-1+content_filter=2", max_tokens=50, messages=user("Write 20 words."))
    assert filtered.stop_reason == "refusal"


async def test_tokens_are_counted_as_they_are_billed(client):
    asked = {"messages": user("What is 2*3?"), "tools": [CALCULATOR], "system": "Be brief."}
    counted = await client.messages.count_tokens(model="sim-1", **asked)
    answer = await client.messages.create(model="sim-1", max_tokens=50, **asked)
    assert counted.input_tokens == answer.usage.input_tokens


async def test_errors_have_the_sdk_s_own_types(client):
    for fault, kind, named in (
        ("429", anthropic.RateLimitError, "rate_limit_error"),
        ("500", anthropic.InternalServerError, "api_error"),
        ("529", anthropic.APIStatusError, "overloaded_error"),
        ("unauthorized", anthropic.AuthenticationError, "authentication_error"),
        ("forbidden", anthropic.PermissionDeniedError, "permission_error"),
        ("404", anthropic.NotFoundError, "not_found_error"),
        ("context_length", anthropic.BadRequestError, "prompt is too long"),
        ("content_policy", anthropic.BadRequestError, "content filtering"),
        ("insufficient_quota", anthropic.BadRequestError, "credit balance"),
        ("413", anthropic.APIStatusError, "request_too_large"),
    ):
        with pytest.raises(kind) as caught:
            await client.messages.create(model=f"sim-1+{fault}", max_tokens=50, messages=user("hi"))
        assert named in str(caught.value.body), fault
        assert caught.value.body["type"] == "error"


async def test_an_error_in_a_stream_is_raised(client):
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        async with client.messages.stream(model="sim-1+error_event_after=3", max_tokens=50, messages=user("Write 20 words.")) as stream:
            async for _ in stream:
                pass
