"""The same conversation said by Google's SDK and by the Gemini dialect: what reaches the provider is the same."""

import base64
import re
from typing import Any

import orjson
from google import genai
from google.genai import types
from opentelemetry.context import Context

from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.registry import Deployment

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "It is "}, {"text": "warm."}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 7, "totalTokenCount": 20},
    "modelVersion": "gemini-3-flash",
    "responseId": "r-1",
}
VECTORS = {"embeddings": [{"values": [0.5, 0.25]}, {"values": [1.0, 2.0]}]}
CALL = types.Part(
    function_call=types.FunctionCall(id="c1", name="weather", args={"city": "Rome"}), thought_signature=base64.b64decode("c2ln")
)
RESULT = types.Part(function_response=types.FunctionResponse(id="c1", name="weather", response={"degrees": 20}))
CONTENTS = [
    types.Content(role="user", parts=[types.Part(text="How warm?"), types.Part.from_bytes(data=b"\x00\x01", mime_type="image/png")]),
    types.Content(role="model", parts=[types.Part(text="I look."), CALL]),
    types.Content(role="user", parts=[RESULT]),
]
CONFIG = types.GenerateContentConfig(
    system_instruction="Be brief.", temperature=0.5, top_p=0.9, top_k=40, seed=7, candidate_count=2, stop_sequences=["END"],
    max_output_tokens=50, presence_penalty=0.1, frequency_penalty=0.2, response_logprobs=True, logprobs=2,
    response_mime_type="application/json", response_json_schema=SCHEMA,
    thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW, include_thoughts=True),
    tools=[types.Tool(function_declarations=[
        types.FunctionDeclaration(name="weather", description="The weather.", parameters_json_schema=SCHEMA)])],
    tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(
        mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["weather"])),
    safety_settings=[types.SafetySetting(
        category=types.HarmCategory.HARM_CATEGORY_HARASSMENT, threshold=types.HarmBlockThreshold.BLOCK_NONE)],
)  # fmt: skip
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "How warm?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAE="}}]},
        {"role": "assistant", "content": "I look.", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
             "extra_content": {"google": {"thought_signature": "c2ln"}}}]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"degrees": 20}'},
    ],
    "temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7, "n": 2, "stop": ["END"], "max_tokens": 50, "presence_penalty": 0.1,
    "frequency_penalty": 0.2, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}},
    "tools": [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
}  # fmt: skip


def attempt(url: str, model: str, body: dict[str, Any]) -> Attempt:
    deployment = Deployment(
        id="d", group="main", provider="gemini", adapter="gemini", model=model, mode="chat", api_base=f"{url}/v1beta", api_key="key"
    )
    return Attempt(deployment, body, Limits(1, 1, 1, 1, 1), 1, Context())


def plain(value: Any) -> Any:
    """With the names of fields in one form, as the API takes either, and without roles where there is one content only."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    made = {re.sub(r"_(.)", lambda found: found[1].upper(), name): plain(entry) for name, entry in value.items()}
    for alone in ("systemInstruction", "content"):
        made.get(alone, {}).pop("role", None)
    return made


async def test_requests_and_answers_are_the_sdks(provider, wire):
    def script(number, request):
        if "Embed" in request.path:
            return wire.answer(VECTORS)
        if "alt=sse" in request.path:
            return wire.answer(wire.events(ANSWER), content_type="text/event-stream")
        return wire.answer(ANSWER)

    made = await provider(script)
    client = genai.Client(api_key="key", http_options=types.HttpOptions(base_url=made.url, api_version="v1beta")).aio
    dialect = GeminiDialect()
    theirs = await client.models.generate_content(model="gemini-3-flash", contents=CONTENTS, config=CONFIG)
    streamed = [
        event async for event in await client.models.generate_content_stream(model="gemini-3-flash", contents=CONTENTS, config=CONFIG)
    ]
    vectors = await client.models.embed_content(
        model="gemini-embedding-001", contents=["a", "b"], config=types.EmbedContentConfig(output_dimensionality=2)
    )
    ours = [
        dialect.chat(attempt(made.url, "gemini-3-flash", CHAT), stream=False),
        dialect.chat(attempt(made.url, "gemini-3-flash", CHAT), stream=True),
        dialect.embed(attempt(made.url, "gemini-embedding-001", {"input": ["a", "b"], "dimensions": 2})),
    ]
    for received, wired in zip(made.received, ours, strict=True):
        assert made.url + received.path == wired.url
        assert received.headers["x-goog-api-key"] == wired.headers["x-goog-api-key"] == "key"
        assert plain(received.body) == plain(orjson.loads(wired.body))
    answer = dialect.read_answer(orjson.dumps(ANSWER))
    assert answer.data["choices"][0]["message"]["content"] == theirs.text
    chunks = dialect.reader().feed(wire.events(ANSWER))
    assert "".join(chunk.text for chunk in chunks) == "".join(event.text or "" for event in streamed)
    told = theirs.usage_metadata
    assert answer.usage["total_tokens"] == chunks[-1].usage["total_tokens"] == told.total_token_count
    assert [list(vector) for vector in dialect.read_vectors(orjson.dumps(VECTORS)).vectors] == [
        found.values for found in vectors.embeddings
    ]
