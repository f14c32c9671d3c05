"""Gemini behind the gateway: OpenAI's SDK against a provider that speaks generateContent, the simulator and raw bytes."""

import openai
import orjson
import pytest
from pydantic import BaseModel

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
# Nano-USD a token of sim-1: input, answer, cached, thinking.
PRICES = {
    "input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7, "cache_read_input_token_cost": 3e-8,
    "output_cost_per_reasoning_token": 6e-7,
}  # fmt: skip


class Ship(BaseModel):
    name: str
    decks: int


def gemini(name: str, base: str, model: str = "sim-1", **info) -> dict:
    params = {"model": f"gemini/{model}", "api_base": base, "api_key": "secret-key"}
    return {"model_name": name, "litellm_params": params, "model_info": {"mode": "chat", **PRICES, **info}}


@pytest.fixture
def content(sim):
    vectors = gemini("vectors", f"{sim.url}/v1beta", "sim-embed", mode="embedding", input_cost_per_token=2e-8)
    return {"model_list": [gemini("main", f"{sim.url}/v1beta"), vectors], "general_settings": {"always_include_stream_usage": True}}


def client_of(stack) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)


async def test_text_whole_and_streamed(serve, content, sim):
    async with serve(content) as stack, client_of(stack) as client:
        raw = await client.chat.completions.with_raw_response.create(model="main", messages=HELLO)
        whole = raw.parse()
        (line,) = await sim.logged(1)
        assert (line["prompt_tokens"], line["completion_tokens"]) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
        assert round(float(raw.headers["x-litellm-response-cost"]) * 1e9) == line["billed_nanousd"]
        text = ""
        async for chunk in await client.chat.completions.create(
            model="main", messages=HELLO, stream=True, stream_options={"include_usage": True}
        ):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunk.usage == whole.usage


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_and_cached_tokens_cost_what_the_provider_bills(serve, content, sim, stream):
    await sim.order({"reasoning_tokens": 40, "show_reasoning": True, "cached_prefix": 8})
    async with serve(content) as stack, client_of(stack) as client:
        for _ in range(2):
            answer = await client.responses.create(model="main", input=HELLO[0]["content"], stream=stream)
            if stream:
                answer = [event async for event in answer][-1].response
        assert answer.usage.output_tokens_details.reasoning_tokens == 40
        _, second = await sim.logged(2)
        assert (second["cached_tokens"], second["reasoning_tokens"]) == (8, 40)
        assert answer.usage.input_tokens_details.cached_tokens == 8
        assert answer.usage.output_tokens == second["completion_tokens"]
        if not stream:
            status, _, headers = await stack.post("/v1/chat/completions", {"model": "main", "messages": HELLO})
            (*_, third) = await sim.logged(3)
            assert (status, round(float(headers["x-litellm-response-cost"]) * 1e9)) == (200, third["billed_nanousd"])


async def test_a_tool_loop(serve, content):
    async with serve(content) as stack, client_of(stack) as client:
        messages = [{"role": "user", "content": "What is 17 * 23?"}]
        answer = await client.chat.completions.create(model="main", messages=messages, tools=TOOLS)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert orjson.loads(call.function.arguments)["expression"]
        messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": '{"result": "391"}'}]
        answer = await client.chat.completions.create(model="main", messages=messages, tools=TOOLS)
        assert "391" in answer.choices[0].message.content
        async with client.chat.completions.stream(model="main", messages=messages[:1], tools=TOOLS) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.tool_calls[0].function.name == "calculator"


async def test_structured_output_and_embeddings(serve, content):
    async with serve(content) as stack, client_of(stack) as client:
        messages = [{"role": "user", "content": "Make up a ship."}]
        parsed = await client.chat.completions.parse(model="main", messages=messages, response_format=Ship)
        assert isinstance(parsed.choices[0].message.parsed, Ship)
        answer = await client.embeddings.create(model="vectors", input=["one", "two"], dimensions=64)
        assert [len(entry.embedding) for entry in answer.data] == [64, 64]


# A fault on every attempt, the class that the caller is told of, and how often the provider is asked.
FAULTS = [
    ("rate_limit=retry-info:0.1", "rate_limited", 2),
    ("status=503", "transient", 2),
    ("unauthorized", "credential", 1),
    ("forbidden", "credential", 1),
    ("insufficient_quota", "quota", 1),
    ("context_length", "context_window", 1),
    ("content_policy", "content_policy", 1),
    ("error_body", "transient", 2),
    ("malformed_tool_arguments", "malformed", 1),
    ("cut_after=2", "cut", 2),
]
WHOLE = [("end_after=2", "malformed", 1), ("missing_finish", "malformed", 1), ("malformed_json", "malformed", 1)]
STREAMED = [("end_after=2", "cut", 2), ("missing_finish", "cut", 2), ("error_event_after=2", "transient", 2)]


@pytest.mark.parametrize("stream", [False, True])
async def test_faults_are_told_apart(serve, sim, stream):
    table = [*FAULTS, *(STREAMED if stream else WHOLE)]
    # A deployment for each fault, so that no breaker opens for the next.
    models = [gemini(fault, f"{sim.url}/v1beta", f"sim-1+{fault}") for fault, _, _ in table]
    content = {"model_list": models, "router_settings": {"max_fallbacks": 0}}
    async with serve(content, model_num_retries=1) as stack, client_of(stack) as client:
        for fault, expected, asked in table:
            await sim.reset()
            more = {"tools": TOOLS} if "arguments" in fault else {}
            messages = [{"role": "user", "content": "What is 17 * 23?"}] if more else HELLO
            with pytest.raises(openai.APIError) as failed:
                answer = await client.chat.completions.create(model=fault, messages=messages, stream=stream, **more)
                if stream:
                    async for _ in answer:
                        pass
            assert failed.value.body["failure_class"] == expected, fault
            assert len(await sim.logged(asked)) == asked, fault
            assert b"secret-key" not in orjson.dumps(failed.value.body), fault


async def test_a_stream_that_is_cut_once_is_mended(serve, content, sim):
    async with serve(content) as stack, client_of(stack) as client:
        whole = await client.chat.completions.create(model="main", messages=HELLO)
        await sim.order("cut_after=3", times=1)
        text = ""
        async for chunk in await client.chat.completions.create(model="main", messages=HELLO, stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == whole.choices[0].message.content


async def test_signatures_go_back_to_where_they_came_from(serve, provider, wire):
    part = {"functionCall": {"name": "calculator", "args": {"expression": "1+1"}}, "thoughtSignature": "c2lnbmVk"}

    def script(number, request):
        parts = [part] if number % 2 else [{"text": "2"}]
        answer = {
            "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7},
            "modelVersion": "gemini-3-flash",
            "responseId": "r",
        }
        if ":streamGenerateContent?alt=sse" in request.path:
            return wire.answer(wire.events(answer), content_type="text/event-stream")
        return wire.answer(answer)

    made = await provider(script)
    async with serve({"model_list": [gemini("main", made.url, "gemini-3-flash")]}) as stack, client_of(stack) as client:
        messages = [{"role": "user", "content": "1+1?"}]
        whole = await client.chat.completions.create(model="main", messages=messages, tools=TOOLS)
        messages += [whole.choices[0].message, {"role": "tool", "tool_call_id": whole.choices[0].message.tool_calls[0].id, "content": "2"}]
        answer = await client.chat.completions.create(model="main", messages=messages, tools=TOOLS)
        assert answer.choices[0].message.content == "2"
        async with client.responses.stream(model="main", input="1+1?", tools=[{"type": "function", **TOOLS[0]["function"]}]) as stream:
            final = await stream.get_final_response()
        items = [{"role": "user", "content": "1+1?"}, *(item.model_dump(exclude_none=True) for item in final.output)]
        items.append({"type": "function_call_output", "call_id": final.output[0].call_id, "output": "2"})
        answer = await client.responses.create(model="main", input=items)
        assert answer.output_text == "2"
    assert made.received[0].path == "/v1beta/models/gemini-3-flash:generateContent"
    assert made.received[0].headers["x-goog-api-key"] == "secret-key"
    assert "authorization" not in made.received[0].headers
    for request in (made.received[1], made.received[3]):
        assert request.body["contents"][1]["parts"][0]["thoughtSignature"] == "c2lnbmVk"
        assert request.body["contents"][2]["parts"][0]["functionResponse"]["name"] == "calculator"


REFUSED = [
    ({"logit_bias": {"5": 1}}, "capability_missing", None),
    ({"stop": ["a", "b", "c", "d", "e", "f"]}, "capability_missing", None),
    ({"tools": [{"type": "web_search"}]}, "capability_missing", None),
    ({"response_format": {"type": "xml"}}, None, "response_format.type"),
    ({"reasoning_effort": "much"}, None, "reasoning_effort"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, None, "messages[0].content[0].type"),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]}, None, "messages[0].tool_call_id"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_said_reaches_no_provider_and_costs_nothing(serve, content, sim, stream):
    async with serve(content) as stack:
        for fields, code, param in REFUSED:
            body = {"model": "main", "messages": HELLO, "stream": stream, **fields}
            status, answer, headers = await stack.post("/v1/chat/completions", body)
            assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, code, param), fields
            assert headers["content-type"] == "application/json"
        assert await sim.log() == []
        # Nothing of it counted against the deployment.
        status, _, _ = await stack.post("/v1/chat/completions", {"model": "main", "messages": HELLO})
        assert status == 200
