"""Google's official SDK, unmodified, against the simulator."""

import asyncio

import orjson
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel

CALCULATOR = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(
            name="calculator",
            description="Calculates.",
            parameters=types.Schema(
                type=types.Type.OBJECT, properties={"expression": types.Schema(type=types.Type.STRING)}, required=["expression"]
            ),
        )
    ]
)


@pytest.fixture
async def client(sim):
    made = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=sim.url, retry_options=types.HttpRetryOptions(attempts=1)))
    yield made.aio
    await made.aio.aclose()


def config(**fields):
    automatic = types.AutomaticFunctionCallingConfig(disable=True)
    return types.GenerateContentConfig(automatic_function_calling=automatic, **fields)


async def test_sync_and_async_answers(sim, client):
    def ask_sync():
        with genai.Client(api_key="any", http_options=types.HttpOptions(base_url=sim.url)) as sync_client:
            return sync_client.models.generate_content(model="sim-1", contents="My cat is called Miso.")

    synchronous = await asyncio.to_thread(ask_sync)
    answer = await client.models.generate_content(
        model="sim-1", contents="My cat is called Miso.", config=config(system_instruction="Be brief.")
    )
    assert synchronous.text == answer.text == 'Noted: "My cat is called Miso."'
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    told = answer.usage_metadata
    assert told.total_token_count == told.prompt_token_count + told.candidates_token_count
    line = await sim.last_line(2)
    assert line["endpoint"] == "gemini"
    assert (line["prompt_tokens"], line["completion_tokens"]) == (told.prompt_token_count, told.candidates_token_count)


async def test_a_stream_tells_the_usage_so_far(client):
    texts, totals, finish = [], [], None
    async for chunk in await client.models.generate_content_stream(model="sim-1", contents="Write 20 words."):
        texts.append(chunk.text or "")
        totals.append(chunk.usage_metadata.total_token_count)
        finish = chunk.candidates[0].finish_reason or finish
    assert len("".join(texts).split()) == 20
    assert totals == sorted(totals)
    assert totals[-1] - totals[0] == 19
    assert finish == types.FinishReason.STOP


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_loop(client, stream):
    question = types.Content(role="user", parts=[types.Part(text="What is 17*23?")])
    thinking = types.ThinkingConfig(thinking_budget=16)
    asked = config(tools=[CALCULATOR], thinking_config=thinking)
    if stream:
        chunks = [chunk async for chunk in await client.models.generate_content_stream(model="sim-1", contents=[question], config=asked)]
        parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts if part.function_call]
        content = types.Content(role="model", parts=parts)
        told = chunks[-1].usage_metadata
    else:
        answer = await client.models.generate_content(model="sim-1", contents=[question], config=asked)
        content, told = answer.candidates[0].content, answer.usage_metadata
    (part,) = content.parts
    assert part.thought_signature
    assert (part.function_call.name, part.function_call.args) == ("calculator", {"expression": "17*23"})
    assert told.thoughts_token_count == 16
    result = types.Part.from_function_response(name="calculator", response={"result": "391"})
    final = await client.models.generate_content(
        model="sim-1", contents=[question, content, types.Content(role="user", parts=[result])], config=asked
    )
    assert final.text == "17*23 = 391"


async def test_thoughts_are_shown_where_asked_for(sim, client):
    asked = config(thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_level="LOW"))
    answer = await client.models.generate_content(model="sim-1", contents="Write 5 words.", config=asked)
    assert [part.thought for part in answer.candidates[0].content.parts] == [True, None]
    assert answer.usage_metadata.thoughts_token_count == 8
    assert answer.usage_metadata.candidates_token_count == 5
    line = await sim.last_line()
    assert (line["completion_tokens"], line["reasoning_tokens"]) == (13, 8)


async def test_structured_output_candidates_and_limits(client):
    class Trip(BaseModel):
        city: str
        days: int

    asked = config(response_mime_type="application/json", response_schema=Trip)
    answer = await client.models.generate_content(model="sim-1", contents="Plan 3 days in Lisbon.", config=asked)
    assert answer.parsed == Trip(city="Lisbon", days=3)
    several = await client.models.generate_content(model="sim-1", contents="Write 5 words.", config=config(candidate_count=3))
    assert len(several.candidates) == 3
    assert several.usage_metadata.candidates_token_count == 15
    short = await client.models.generate_content(model="sim-1", contents="Write 50 words.", config=config(max_output_tokens=5))
    assert short.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


async def test_embeddings_and_counted_tokens(sim, client):
    answer = await client.models.embed_content(
        model="sim-embed", contents=["one", "two"], config=types.EmbedContentConfig(output_dimensionality=16)
    )
    assert [len(item.values) for item in answer.embeddings] == [16, 16]
    line = await sim.last_line()
    assert (line["endpoint"], line["billed_nanousd"]) == ("embeddings", line["prompt_tokens"] * 20)
    status, one = await sim.call("POST", "/v1beta/models/sim-embed:embedContent", {"content": {"parts": [{"text": "one"}]}})
    assert status == 200
    assert len(one["embedding"]["values"]) == 256
    counted = await client.models.count_tokens(model="sim-1", contents="Write 5 words.")
    told = (await client.models.generate_content(model="sim-1", contents="Write 5 words.")).usage_metadata
    assert counted.total_tokens == told.prompt_token_count


async def test_errors_are_google_s(client):
    async def ask(fault):
        await client.models.generate_content(model=f"sim-1+{fault}", contents="hi")

    for fault, code, status in (
        ("status=429", 429, "RESOURCE_EXHAUSTED"),
        ("status=503", 503, "UNAVAILABLE"),
        ("status=401", 401, "UNAUTHENTICATED"),
        ("forbidden", 403, "PERMISSION_DENIED"),
        ("404", 404, "NOT_FOUND"),
        ("504", 504, "DEADLINE_EXCEEDED"),
        ("context_length", 400, "INVALID_ARGUMENT"),
        ("unauthorized", 400, "INVALID_ARGUMENT"),
    ):
        with pytest.raises(errors.APIError) as caught:
            await ask(fault)
        assert (caught.value.code, caught.value.status) == (code, status), fault
    with pytest.raises(errors.ClientError) as caught:
        await ask("rate_limit=7")
    details = {item["@type"].rpartition(".")[2]: item for item in caught.value.details["error"]["details"]}
    assert details["RetryInfo"]["retryDelay"] == "7s"
    assert "QuotaFailure" in details


async def test_a_prompt_against_the_policy_is_blocked_in_a_200(sim, client):
    answer = await client.models.generate_content(model="sim-1+content_policy", contents="hi")
    assert answer.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
    assert not answer.candidates
    line = await sim.last_line()
    assert line["billed_nanousd"] == answer.usage_metadata.prompt_token_count * 150
    chunks = [chunk async for chunk in await client.models.generate_content_stream(model="sim-1+content_policy", contents="hi")]
    assert chunks[0].prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
    filtered = await client.models.generate_content(model="sim-1+content_filter=2", contents="Write 5 words.")
    assert filtered.candidates[0].finish_reason == types.FinishReason.SAFETY


async def test_a_stream_without_alt_sse_is_an_array(sim):
    body = {"contents": [{"role": "user", "parts": [{"text": "Write 5 words."}]}]}
    async with sim.http.post(f"{sim.url}/v1beta/models/sim-1:streamGenerateContent", json=body) as answer:
        assert answer.headers["content-type"] == "application/json"
        chunks = orjson.loads(await answer.read())
    assert len(chunks) == 6


CALL = {"functionCall": {"name": "t", "args": {}}}
HI = {"role": "user", "parts": [{"text": "hi"}]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"contents": []}, "contents is not specified"),
        ({"contents": None}, "contents is not specified"),
        ({"contents": [{"role": "assistant", "parts": [{"text": "hi"}]}]}, "valid role"),
        ({"contents": [{"role": "user", "parts": []}]}, "must not be empty"),
        ({"contents": [{"role": "user", "parts": [{}]}]}, "required oneof field"),
        ({"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "***"}}]}]}, "Base64"),
        ({"contents": [HI, {"role": "model", "parts": [CALL]}]}, "function response parts is equal"),
        ({"contents": [HI, {"role": "user", "parts": [{"functionResponse": {"name": "t", "response": {}}}]}]}, "function response parts"),
        ({"contents": [HI, {"role": "model", "parts": [{"text": "a", "thoughtSignature": "AAAA"}]}]}, "signature"),
        ({"messages": []}, "Unknown name"),
        ({"generationConfig": {"max_tokens": 5}}, "Unknown name"),
        ({"generationConfig": {"temperature": 3}}, "range"),
        ({"generationConfig": {"maxOutputTokens": -1}}, "at least"),
        ({"generationConfig": {"candidateCount": 9}}, "range"),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 1, "thinkingLevel": "LOW"}}}, "only one"),
        ({"generationConfig": {"responseSchema": {"type": "OBJECT"}}}, "mime type"),
        ({"tools": [{"functionDeclarations": [{"name": "1t"}]}]}, "Invalid function name"),
        ({"tools": [{"functionDeclarations": [{"name": "t", "parameters": {"type": "OBJECT", "$schema": "x"}}]}]}, "Unknown name"),
        ({"tools": [{"functionDeclarations": [{"name": "t", "parameters": {"type": "thing"}}]}]}, "type"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "needs function declarations"),
    ],
)
async def test_what_is_wrong_is_refused_in_google_s_words(sim, fields, named):
    status, answer = await sim.call("POST", "/v1beta/models/sim-1:generateContent", {"contents": [HI], **fields})
    assert status == 400
    assert answer["error"]["status"] == "INVALID_ARGUMENT"
    assert named in answer["error"]["message"]
    assert (await sim.last_line())["billed_nanousd"] == 0


async def test_snake_case_is_read_too(sim):
    tool = {
        "function_declarations": [
            {"name": "calculator", "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}}}
        ]
    }
    body = {"contents": [{"parts": [{"text": "What is 2*3?"}]}], "tools": [tool], "generation_config": {"max_output_tokens": 100}}
    status, answer = await sim.call("POST", "/v1beta/models/sim-1:generateContent", body)
    assert status == 200
    assert answer["candidates"][0]["content"]["parts"][0]["functionCall"]["name"] == "calculator"
