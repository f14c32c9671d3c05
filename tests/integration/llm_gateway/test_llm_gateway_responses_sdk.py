"""The openai SDK, unmodified, against /v1/responses and the legacy /v1/completions."""

import asyncio
import json

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO = "Tell me about ships and bulkheads, please."
ADD = {
    "type": "function",
    "name": "calculator",
    "description": "Evaluates an arithmetic expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Ship(BaseModel):
    name: str
    decks: int


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack):
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as made:
        yield made


async def test_whole_and_streamed(client):
    whole = await client.responses.create(model="main", input=HELLO, instructions="Be brief.", metadata={"k": "v"}, store=True)
    assert (whole.status, whole.object, whole.instructions, whole.metadata) == ("completed", "response", "Be brief.", {"k": "v"})
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    assert whole.usage.input_tokens > 0
    types, text = [], ""
    async for event in await client.responses.create(model="main", input=HELLO, instructions="Be brief.", stream=True):
        assert event.sequence_number == len(types)
        types.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == whole.output_text
    assert (types[:2], types[-1]) == (["response.created", "response.in_progress"], "response.completed")
    assert event.response.usage == whole.usage


async def test_the_sdks_own_assembly_of_a_stream(client):
    async with client.responses.stream(model="main", input="What is 17 * 23?", tools=[ADD]) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    (call,) = [item for item in final.output if item.type == "function_call"]
    assert call.name == "calculator"
    assert call.parsed_arguments["expression"]


async def test_a_tool_loop(client):
    items = [{"role": "user", "content": "What is 17 * 23?"}]
    answer = await client.responses.create(model="main", input=items, tools=[ADD])
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments)["expression"]
    # The history that callers keep: what came out goes back in.
    items += [item.model_dump(exclude_none=True) for item in answer.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": '{"result": "391"}'})
    answer = await client.responses.create(model="main", input=items, tools=[ADD])
    assert "391" in answer.output_text


async def test_structured_output(client):
    parsed = await client.responses.parse(model="main", input="Make up a ship.", text_format=Ship)
    assert isinstance(parsed.output_parsed, Ship)
    async with client.responses.stream(model="main", input="Make up a ship.", text_format=Ship) as stream:
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Ship)


async def test_an_answer_that_reaches_its_limit_is_incomplete(client):
    answer = await client.responses.create(model="main", input="write 300 words", max_output_tokens=20)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = [
        event async for event in await client.responses.create(model="main", input="write 300 words", max_output_tokens=20, stream=True)
    ]
    assert events[-1].type == "response.incomplete"
    assert events[-2].item.status == "incomplete"


async def test_a_stream_that_cannot_be_mended_says_that_it_failed(client, stack):
    await stack.sim.order("cut_after=3")
    events = [event async for event in await client.responses.create(model="main", input=HELLO, stream=True)]
    assert events[-1].type == "response.failed"
    assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
    assert "response.completed" not in {event.type for event in events}
    await stack.sim.reset()
    await stack.sim.order("cut_after=3", times=1)
    events = [event async for event in await client.responses.create(model="main", input=HELLO, stream=True)]
    assert events[-1].type == "response.completed"


async def test_errors_that_clients_branch_on(client, stack):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="main", input="x", previous_response_id="resp_1")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "previous_response_id")
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.responses.create(model="main", input="x", max_output_tokens=-1)
    assert (wrong.value.type, wrong.value.param) == ("invalid_request_error", "max_output_tokens")
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.responses.create(model="nobody", input="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").responses.create(model="main", input="x")
    for missing in (client.responses.retrieve("resp_1"), client.responses.delete("resp_1"), client.responses.cancel("resp_1")):
        with pytest.raises(openai.NotFoundError) as gone:
            await missing
        assert gone.value.code == "response_not_found"
    assert await stack.sim.log() == []


async def test_raw_bad_input_reaches_no_provider(stack):
    for path in ("/v1/responses", "/v1/completions", "/v1/rerank"):
        for body, status in (
            (b"{", 400),
            (b"[]", 400),
            (b'{"model":"main","input":"\xff"}', 400),
            ({}, 400),
            ({"model": 3}, 400),
            ({"model": "main"}, 400),
            ({"model": "main", "input": {}, "prompt": {}, "query": {}}, 400),
        ):
            found, answer, _ = await stack.post(path, body)
            assert (found, sorted(answer["error"])) == (status, ["code", "message", "param", "type"]), (path, body)
            assert answer["error"]["type"] == "invalid_request_error"
    found, answer, _ = await stack.post("/v1/responses", b"x", content_type="text/plain")
    assert (found, answer["error"]["code"]) == (415, "unsupported_media_type")
    assert await stack.sim.log() == []


async def test_legacy_completions(client):
    whole = await client.completions.create(model="main", prompt=HELLO, max_tokens=50)
    assert (whole.object, whole.choices[0].index, whole.choices[0].finish_reason) == ("text_completion", 0, "stop")
    text = ""
    async for chunk in await client.completions.create(
        model="main", prompt=HELLO, max_tokens=50, stream=True, stream_options={"include_usage": True}
    ):
        text += "".join(choice.text for choice in chunk.choices)
    assert text == whole.choices[0].text
    assert chunk.usage == whole.usage
    echoed = await client.completions.create(model="main", prompt=HELLO, echo=True)
    assert echoed.choices[0].text == HELLO + whole.choices[0].text
    streamed = [chunk async for chunk in await client.completions.create(model="main", prompt=HELLO, echo=True, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in streamed) == echoed.choices[0].text
    assert all(chunk.usage is None for chunk in streamed)


async def test_several_prompts_are_several_calls_and_one_bill(client, stack):
    prompts = ["say exactly: one", "say exactly: two", "say exactly: three"]
    whole = await client.completions.create(model="main", prompt=prompts, n=2)
    assert [(choice.index, choice.text) for choice in whole.choices] == [
        (0, "one"), (1, "one"), (2, "two"), (3, "two"), (4, "three"), (5, "three"),
    ]  # fmt: skip
    lines = await stack.sim.logged(3)
    assert whole.usage.prompt_tokens == sum(line["prompt_tokens"] for line in lines)
    assert whole.usage.completion_tokens == sum(line["completion_tokens"] for line in lines)
    texts: dict[int, str] = {}
    async for chunk in await client.completions.create(
        model="main", prompt=prompts, n=2, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert chunk.usage == whole.usage


async def test_a_stream_of_several_prompts_tells_the_cost_of_all(stack):
    body = {"model": "main", "prompt": ["say exactly: one", "say exactly: two"], "stream": True}
    async with stack.http.post(f"{stack.url}/v1/completions", json=body, headers={"authorization": f"Bearer {stack.key}"}) as answer:
        comments = [line for line in (await answer.text()).splitlines() if line.startswith(": cost_microusd=")]
    billed = sum(line["billed_nanousd"] for line in await stack.sim.logged(2))
    assert comments == [f": cost_microusd={-(-billed // 1000)}"]


async def test_the_plain_client(stack):
    def asked() -> tuple[str, str, str]:
        client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)
        response = client.responses.create(model="main", input="say exactly: one")
        completion = client.completions.create(model="main", prompt="say exactly: one")
        streamed = client.responses.create(model="main", input="say exactly: one", stream=True)
        return (
            response.output_text,
            completion.choices[0].text,
            "".join(e.delta for e in streamed if e.type == "response.output_text.delta"),
        )

    assert await asyncio.to_thread(asked) == ("one", "one", "one")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1]]}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 9}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"n": 0}, "n"),
        ({"stream": 1}, "stream"),
    ],
)
async def test_legacy_completions_refuse_by_name(client, stack, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(**{"model": "main", "prompt": "x", **fields})
    assert refused.value.param == param
    assert await stack.sim.log() == []


async def test_one_prompt_that_fails_fails_the_request_with_its_own_error(client, stack):
    await stack.sim.order("context_length", times=1)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="main", prompt=["one", "two", "three"])
    assert refused.value.code == "context_length_exceeded"


async def test_a_client_that_leaves_ends_the_work(client, stack):
    stream = await client.responses.create(model="main", input="slow-story", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    (line,) = await stack.sim.logged(1)
    assert line["aborted"]
