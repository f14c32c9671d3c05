"""What goes to Gemini: each request is read back with the models of Google's own SDK."""

from random import Random
from typing import Any

import orjson
import pytest
from google.genai import types
from opentelemetry.context import Context

from services.common.errors import InvalidInput
from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.adapters.gemini_request import NO_SIGNATURE
from services.llm_gateway.failures import FailureClass, UpstreamFault
from services.llm_gateway.ports import Attempt, Limits, WireRequest
from services.llm_gateway.registry import Deployment
from services.llm_gateway.request_rules import check_request

LIMITS = Limits(1, 1, 1, 1, 1)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
        "strict": True,
    },
}
# Top-level fields of generateContent beside those that the SDK's models cover one by one.
KNOWN = {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "safetySettings", "cachedContent"}


def attempt(body: dict[str, Any], model: str = "gemini-3-flash", base: str = "https://example.test/v1beta") -> Attempt:
    deployment = Deployment(
        id="d", group="main", provider="gemini", adapter="gemini", model=model, mode="chat", api_base=base, api_key="secret",
        headers={"x-extra": "1"},
    )  # fmt: skip
    return Attempt(deployment, {**body, "model": model}, LIMITS, 1, Context())


def sent(body: dict[str, Any], model: str = "gemini-3-flash") -> dict[str, Any]:
    """The JSON that goes out, after the SDK has found nothing in it that its own models do not know."""
    check_request(body)
    made = orjson.loads(GeminiDialect().chat(attempt(body, model), stream=False).body)
    assert set(made) <= KNOWN
    for content in made["contents"]:
        types.Content.model_validate(content)
    if "generationConfig" in made:
        types.GenerationConfig.model_validate(made["generationConfig"])
    for tool in made.get("tools", ()):
        types.Tool.model_validate(tool)
    if "toolConfig" in made:
        types.ToolConfig.model_validate(made["toolConfig"])
    return made


def user(text: str = "hi") -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_addresses_and_key():
    for stream, ending in ((False, ":generateContent"), (True, ":streamGenerateContent?alt=sse")):
        wire: WireRequest = GeminiDialect().chat(attempt({"messages": [user()], "stream": stream}), stream=stream)
        assert wire.url == "https://example.test/v1beta/models/gemini-3-flash" + ending
        assert wire.headers["x-goog-api-key"] == "secret"
        assert wire.headers["x-extra"] == "1"
        assert b"stream" not in wire.body
        assert b"secret" not in wire.body
    bare = GeminiDialect().chat(attempt({"messages": [user()]}, base="https://example.test"), stream=False)
    assert bare.url.startswith("https://example.test/v1beta/models/")
    tuned = GeminiDialect().chat(attempt({"messages": [user()]}, model="tunedModels/mine?x"), stream=False)
    assert tuned.url == "https://example.test/v1beta/tunedModels/mine%3Fx:generateContent"


def test_a_whole_conversation():
    made = sent(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "developer", "content": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]},
                {"role": "user", "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://example.test/cat.webp?size=1"}},
                    {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "mp3"}},
                    {"type": "file", "file": {"file_data": "data:application/pdf;base64,CCCC", "filename": "a.pdf"}},
                ]},
                {"role": "assistant", "content": "A cat."},
                user("Really?"),
            ],
        }
    )  # fmt: skip
    assert made["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert [content["role"] for content in made["contents"]] == ["user", "model", "user"]
    assert made["contents"][0]["parts"] == [
        {"text": "What is this?"},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"fileData": {"fileUri": "https://example.test/cat.webp?size=1", "mimeType": "image/webp"}},
        {"inlineData": {"mimeType": "audio/mp3", "data": "BBBB"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "CCCC"}},
    ]


def test_a_system_prompt_alone_is_asked_as_a_question():
    assert sent({"messages": [{"role": "system", "content": "Say hello."}]}) == {
        "contents": [{"role": "user", "parts": [{"text": "Say hello."}]}]
    }


def test_a_field_that_was_not_sent_is_not_invented():
    assert sent({"messages": [user()], "user": "u", "metadata": {"a": "b"}, "stream_options": {}, "parallel_tool_calls": True}) == {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}]
    }


def test_parameters():
    made = sent(
        {
            "messages": [user()], "temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7, "n": 2, "stop": "END", "max_tokens": 10,
            "max_completion_tokens": 20, "presence_penalty": 0.1, "frequency_penalty": 0.2, "logprobs": True, "top_logprobs": 3,
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        }
    )  # fmt: skip
    assert made["generationConfig"] == {
        "temperature": 0.5, "topP": 0.9, "topK": 40, "seed": 7, "candidateCount": 2, "stopSequences": ["END"], "maxOutputTokens": 20,
        "presencePenalty": 0.1, "frequencyPenalty": 0.2, "responseLogprobs": True, "logprobs": 3,
    }  # fmt: skip
    assert made["safetySettings"] == [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]


def test_structured_output():
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
    config = {"responseMimeType": "application/json", "responseJsonSchema": schema}
    assert sent({"messages": [user()], "response_format": wanted})["generationConfig"] == config
    plain = sent({"messages": [user()], "response_format": {"type": "json_object"}})
    assert plain["generationConfig"] == {"responseMimeType": "application/json"}
    assert sent({"messages": [user()], "response_format": wanted, "tools": [WEATHER]})["generationConfig"] == config
    with pytest.raises(UpstreamFault) as refused:
        sent({"messages": [user()], "response_format": wanted, "tools": [WEATHER]}, "gemini-2.5-flash")
    assert refused.value.failure.failure_class is FailureClass.UNFIT


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-3-pro-preview", "low", {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-3.5-flash", "none", {"thinkingLevel": "MINIMAL"}),
        ("gemini-flash-latest", "xhigh", {"thinkingLevel": "HIGH", "includeThoughts": True}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "medium", {"thinkingBudget": 8192, "includeThoughts": True}),
    ],
)
def test_reasoning_effort(model, effort, thinking):
    assert sent({"messages": [user()], "reasoning_effort": effort}, model)["generationConfig"] == {"thinkingConfig": thinking}


def test_thinking_as_the_other_apis_say_it():
    native = {"messages": [user()], "extra_body": {"google": {"thinking_config": {"thinking_budget": 5, "include_thoughts": True}}}}
    assert sent(native)["generationConfig"] == {"thinkingConfig": {"thinkingBudget": 5, "includeThoughts": True}}
    anthropic = {"messages": [user()], "thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert sent(anthropic)["generationConfig"] == {"thinkingConfig": {"thinkingBudget": 2000, "includeThoughts": True}}


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        ("none", {"mode": "NONE"}),
        ("auto", {"mode": "AUTO"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "weather"}}, {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}},
            {"mode": "VALIDATED", "allowedFunctionNames": ["weather"]},
        ),
    ],
)
def test_tools_and_tool_choice(choice, config):
    made = sent({"messages": [user()], "tools": [WEATHER], "tool_choice": choice})
    assert made["tools"] == [
        {
            "functionDeclarations": [
                {
                    "name": "weather",
                    "description": "The weather of a city.",
                    "parametersJsonSchema": WEATHER["function"]["parameters"],
                }
            ]
        }
    ]
    assert made["toolConfig"] == {"functionCallingConfig": config}


def called(call_id: str, **more: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}, **more}


def test_a_tool_loop_carries_ids_and_signatures():
    signed = called("a", extra_content={"google": {"thought_signature": "c2ln"}})
    messages = [
        user(),
        {"role": "assistant", "content": None, "tool_calls": [signed, called("b")]},
        {"role": "tool", "tool_call_id": "a", "content": '{"degrees": 20}'},
        {"role": "tool", "tool_call_id": "b", "content": "sunny"},
        {"role": "assistant", "content": "Warm.", "extra_content": {"google": {"thought_signature": "dGV4dA=="}}},
        user("thanks"),
    ]
    contents = sent({"messages": messages, "tools": [WEATHER]})["contents"]
    assert [content["role"] for content in contents] == ["user", "model", "user", "model", "user"]
    first, second = contents[1]["parts"]
    assert first == {"functionCall": {"id": "a", "name": "weather", "args": {"city": "Rome"}}, "thoughtSignature": "c2ln"}
    assert second == {"functionCall": {"id": "b", "name": "weather", "args": {"city": "Rome"}}}
    assert contents[2]["parts"] == [
        {"functionResponse": {"id": "a", "name": "weather", "response": {"degrees": 20}}},
        {"functionResponse": {"id": "b", "name": "weather", "response": {"output": "sunny"}}},
    ]
    assert contents[3]["parts"] == [{"text": "Warm.", "thoughtSignature": "dGV4dA=="}]


def test_calls_of_another_model_go_without_their_signature_check():
    messages = [
        user(),
        {"role": "assistant", "tool_calls": [called("a"), called("b")]},
        {"role": "tool", "tool_call_id": "a", "content": ""},
    ]
    newest = sent({"messages": messages})["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in newest] == [NO_SIGNATURE, None]
    older = sent({"messages": messages}, "gemini-2.5-pro")["contents"][1]["parts"]
    assert all("thoughtSignature" not in part for part in older)
    litellm = called("a", provider_specific_fields={"thought_signature": "c2ln"})
    kept = sent({"messages": [user(), {"role": "assistant", "tool_calls": [litellm]}]})["contents"][1]["parts"]
    assert kept[0]["thoughtSignature"] == "c2ln"


def test_a_tool_that_answers_with_an_image():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [user(), {"role": "assistant", "tool_calls": [called("a")]}, {"role": "tool", "tool_call_id": "a", "content": [image]}]
    inline = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    assert sent({"messages": messages})["contents"][2]["parts"][0]["functionResponse"]["parts"] == [inline]
    assert sent({"messages": messages}, "gemini-2.5-pro")["contents"][2]["parts"][1] == inline


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url.url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "cat.png"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [user()], "stop": 3}, "stop"),
        ({"messages": [user()], "reasoning_effort": "much"}, "reasoning_effort"),
        ({"messages": [user()], "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": [user()], "response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"messages": [user()], "tools": [WEATHER], "tool_choice": "often"}, "tool_choice"),
    ],
)
def test_what_is_wrong_is_named(body, field):
    with pytest.raises(InvalidInput) as wrong:
        sent(body)
    assert wrong.value.violations[0].field == field


@pytest.mark.parametrize(
    "more",
    [
        {"logit_bias": {"5": 1}},
        {"modalities": ["text", "audio"]},
        {"stop": ["a", "b", "c", "d", "e", "f"]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [WEATHER, {"type": "function", "function": {"name": "tides"}}], "parallel_tool_calls": False},
        {"messages": [user(), {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{cut"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
    ],
)
def test_what_only_others_can_take_goes_to_others(more):
    with pytest.raises(UpstreamFault) as fault:
        sent({"messages": [user()], **more})
    assert fault.value.failure.failure_class is FailureClass.UNFIT


def test_embeddings():
    body = {"input": ["a", "b"], "dimensions": 64, "task_type": "RETRIEVAL_QUERY", "encoding_format": "base64"}
    wire = GeminiDialect().embed(attempt(body, "gemini-embedding-001"))
    assert wire.url == "https://example.test/v1beta/models/gemini-embedding-001:batchEmbedContents"
    shared = {"model": "models/gemini-embedding-001", "outputDimensionality": 64, "taskType": "RETRIEVAL_QUERY"}
    assert orjson.loads(wire.body) == {"requests": [{**shared, "content": {"parts": [{"text": text}]}} for text in "ab"]}
    answer = {"embeddings": [{"values": [0.5, 1]}, {"values": [1, 2]}], "usageMetadata": {"promptTokenCount": 4}}
    types.EmbedContentResponse.model_validate({"embeddings": answer["embeddings"]})
    vectors = GeminiDialect().read_vectors(orjson.dumps(answer))
    assert [list(vector) for vector in vectors.vectors] == [[0.5, 1.0], [1.0, 2.0]]
    assert vectors.input_tokens == 4
    assert GeminiDialect().read_vectors(b'{"embeddings":[{"values":[1]}]}').input_tokens is None
    for spoilt in (b"{}", b"[", b'{"embeddings":[{"values":["x"]}]}', b'{"embeddings":[{}]}'):
        with pytest.raises(UpstreamFault):
            GeminiDialect().read_vectors(spoilt)
    with pytest.raises(InvalidInput):
        GeminiDialect().embed(attempt({"input": [1, 2]}))
    with pytest.raises(UpstreamFault):
        GeminiDialect().embed(attempt({"input": ["x"] * 101}))


def test_requests_that_are_no_json_are_the_callers_fault():
    with pytest.raises(InvalidInput):
        sent({"messages": [user()], "seed": 2**70})


def test_any_chat_that_passes_the_rules_is_translated_or_refused():
    """Whatever a caller sends, nothing but the two agreed errors comes out of the translation."""
    chance = Random(4)
    pieces = [None, True, 0, "x", [], {}, [{}], {"type": "function"}, {"type": "text", "text": "t"}, ["a"], {"function": {"name": "f"}}, -1]
    names = ["stop", "tools", "tool_choice", "response_format", "reasoning_effort", "thinking", "extra_body", "logprobs", "top_logprobs",
             "modalities", "safety_settings", "functions", "n", "metadata"]  # fmt: skip
    translated = 0
    for _ in range(4000):
        message: dict[str, Any] = {"role": chance.choice(["user", "assistant", "tool", "system"]), "content": chance.choice(pieces)}
        for name in ("tool_calls", "refusal", "extra_content", "provider_specific_fields", "tool_call_id", "name"):
            if chance.random() < 0.2:
                message[name] = chance.choice(pieces)
        body = {"messages": [user(), message], **{name: chance.choice(pieces) for name in chance.sample(names, 2)}}
        try:
            check_request(body)
        except InvalidInput:
            continue
        try:
            GeminiDialect().chat(attempt(body), stream=False)
            translated += 1
        except (InvalidInput, UpstreamFault):
            continue
    assert translated > 20


@pytest.mark.parametrize(
    "url", ["https://www.youtube.com/watch?v=x", "https://youtu.be/x", "HTTPS://M.YouTube.com/x", "data:video/mp4;base64,AAAA"]
)
def test_a_video_is_not_reserved_as_a_picture(url):
    with pytest.raises(UpstreamFault) as fault:
        sent({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]})
    assert fault.value.failure.failure_class is FailureClass.UNFIT
    assert sent({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://notyoutube.com/a.png"}}]}]})
