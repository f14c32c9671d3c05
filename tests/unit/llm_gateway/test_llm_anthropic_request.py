"""Chat requests in OpenAI's shape as requests of the Messages API; what goes out is valid by the SDK's own types."""

import orjson
import pytest
from anthropic.types import message_create_params
from opentelemetry.context import Context
from pydantic import TypeAdapter

from services.common.errors import InvalidInput
from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.failures import FailureClass, UpstreamFault
from services.llm_gateway.messages_shape import JSON_TOOL
from services.llm_gateway.money import Prices
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.registry import Capabilities, Deployment

TYPED = TypeAdapter(message_create_params.MessageCreateParams)
ASK = {"role": "user", "content": "Hello"}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 3}}, "required": ["age"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


def wire(body, model="claude-sonnet-4-5", stream=False, **deployment):
    made = Deployment("d", "g", "anthropic", "anthropic", model, "chat", api_base="https://api.anthropic.com", api_key="k", **deployment)
    attempt = Attempt(made, {"messages": [ASK], **body, "model": model}, Limits(1, 1, 1, 1, 1), 1, Context())
    return AnthropicDialect().chat(attempt, stream=stream)


def sent(body, *args, **more):
    found = orjson.loads(wire(body, *args, **more).body)
    TYPED.validate_python({key: value for key, value in found.items() if key not in ("temperature", "top_p", "top_k", "anything")})
    return found


def unfit(body, *args, **more):
    with pytest.raises(UpstreamFault) as caught:
        wire(body, *args, **more)
    assert caught.value.failure.failure_class is FailureClass.UNFIT
    return caught.value.failure.message


def test_address_and_headers():
    made = wire({}, headers={"anthropic-beta": "a"})
    assert made.url == "https://api.anthropic.com/v1/messages"
    assert made.headers == {"anthropic-version": "2023-06-01", "x-api-key": "k", "anthropic-beta": "a"}
    assert wire({"anthropic": {"betas": ["b", "a"]}}, headers={"anthropic-beta": "a"}).headers["anthropic-beta"] == "a,b"
    oauth = wire({}, headers={"authorization": "Bearer t"}).headers
    assert "x-api-key" not in oauth


def test_the_reserve_bounds_what_is_asked_for():
    assert sent({})["max_tokens"] == 2000
    assert sent({}, max_output_tokens=100)["max_tokens"] == 100
    assert sent({"max_completion_tokens": 7, "max_tokens": 9})["max_tokens"] == 7
    assert sent({"max_tokens": 500}, max_output_tokens=100)["max_tokens"] == 100
    # What only the Messages API has cannot raise what was reserved, nor choose another model.
    smuggled = sent({"max_tokens": 7, "anthropic": {"max_tokens": 9_999, "model": "claude-opus-4-5", "stream": True}})
    assert (smuggled["max_tokens"], smuggled["model"]) == (7, "claude-sonnet-4-5")
    assert "stream" not in smuggled
    assert "speed" in unfit({"anthropic": {"speed": "fast"}})
    assert sent({"anthropic": {"speed": "fast"}}, defaults={"speed": "fast"})["speed"] == "fast"


def test_messages():
    messages = [
        {"role": "system", "content": "one"},
        {"role": "developer", "content": [{"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA", "detail": "high"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"}},
            ],
        },
        {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "functions.weather:2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny", "cache_control": {"type": "ephemeral"}},
        {"role": "tool", "tool_call_id": "functions.weather:2", "content": [{"type": "text", "text": "rain"}], "is_error": True},
        {"role": "user", "content": "and?"},
    ]
    made = sent({"messages": messages, "tools": [WEATHER]})
    assert made["system"] == [
        {"type": "text", "text": "one"},
        {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}},
    ]
    user, assistant, results = made["messages"]
    assert [block["type"] for block in user["content"]] == ["text", "image", "image", "document"]
    assert user["content"][1]["source"] == {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}
    assert user["content"][2]["source"] == {"type": "url", "url": "https://x/y.png"}
    assert [block["input"] for block in assistant["content"]] == [{"city": "Oslo"}] * 2
    assert results["role"] == "user"
    assert [block["type"] for block in results["content"]] == ["tool_result", "tool_result", "text"]
    assert results["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert results["content"][1]["is_error"] is True
    assert results["content"][1]["tool_use_id"] == assistant["content"][1]["id"] == "functions_weather_2"


def test_chats_that_the_api_would_refuse_are_adapted():
    greeting = sent({"messages": [{"role": "assistant", "content": "Welcome!"}, ASK]})["messages"]
    assert [turn["role"] for turn in greeting] == ["user", "assistant", "user"]
    only_system = sent({"messages": [{"role": "system", "content": "Say hi."}]})
    assert only_system["messages"] == [{"role": "user", "content": "Say hi."}]
    history = [ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]
    remembered = sent({"messages": history})
    assert [tool["name"] for tool in remembered["tools"]] == ["weather"]
    assert remembered["tool_choice"] == {"type": "none"}
    broken = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Os'}}
    kept = sent({"messages": [ASK, {"role": "assistant", "tool_calls": [broken]}, history[2]]})["messages"][1]["content"][0]
    assert kept["input"] == {"arguments": '{"city": "Os'}
    with pytest.raises(InvalidInput, match="messages"):
        wire({"messages": [{"role": "user", "content": ""}]})


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {"type": "tool", "name": "weather"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "required"}, {"type": "any", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        ({}, None),
    ],
)
def test_tool_choice(asked, choice):
    assert sent({"tools": [WEATHER], **asked}).get("tool_choice") == choice


def test_tools():
    strict = {"type": "function", "function": {"name": "s", "parameters": SCHEMA, "strict": True}, "cache_control": {"type": "ephemeral"}}
    bare = {"type": "function", "function": {"name": "bare"}}
    native = {"type": "web_search_20250305", "name": "web_search"}
    made = sent({"tools": [strict, bare, native]})["tools"]
    assert made[0]["strict"] is True
    assert made[0]["input_schema"]["additionalProperties"] is False
    assert made[0]["cache_control"] == {"type": "ephemeral"}
    assert made[1] == {"name": "bare", "input_schema": {"type": "object", "properties": {}}}
    assert made[2] == native
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [bare]}}
    assert [tool["name"] for tool in sent({"tools": [strict, bare], "tool_choice": allowed})["tools"]] == ["bare"]
    unfit({"tools": [{"type": "custom", "custom": {"name": "x"}}]})


def test_structured_output_by_generation():
    config = sent({"response_format": FORMAT})["output_config"]["format"]
    assert config["type"] == "json_schema"
    assert config["schema"]["additionalProperties"] is False
    assert "minimum" not in config["schema"]["properties"]["age"]
    assert "minimum" in config["schema"]["properties"]["age"]["description"]
    old = sent({"response_format": FORMAT}, "claude-3-5-sonnet-20241022")
    assert old["tool_choice"] == {"type": "tool", "name": JSON_TOOL}
    beside = sent({"response_format": FORMAT, "tools": [WEATHER]}, "claude-3-5-sonnet-20241022")
    assert [tool["name"] for tool in beside["tools"]] == ["weather", JSON_TOOL]
    assert beside["tool_choice"] == {"type": "any"}
    assert "JSON" in str(sent({"response_format": {"type": "json_object"}})["system"])
    declared = Capabilities(json_schema=False)
    assert sent({"response_format": FORMAT}, capabilities=declared)["tools"][0]["name"] == JSON_TOOL


def test_thinking_by_generation():
    budget = sent({"reasoning_effort": "high", "max_tokens": 10_000})["thinking"]
    assert budget == {"type": "enabled", "budget_tokens": 8_000}
    assert "thinking" not in sent({"reasoning_effort": "high", "max_tokens": 1_000})
    adaptive = sent({"reasoning_effort": "minimal"}, "claude-opus-4-7")
    assert (adaptive["thinking"], adaptive["output_config"]) == ({"type": "adaptive"}, {"effort": "low"})
    assert sent({"reasoning_effort": "none"})["thinking"] == {"type": "disabled"}
    given = {"type": "enabled", "budget_tokens": 2_000}
    assert sent({"thinking": given, "max_tokens": 5_000})["thinking"] == given
    assert sent({"anthropic": {"thinking": given}, "max_tokens": 5_000}, "claude-opus-5")["thinking"] == {"type": "adaptive"}
    # Thinking cannot begin within a turn of tool calls, nor with a forced one.
    turn = [ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]
    assert "thinking" not in sent({"messages": turn, "tools": [WEATHER], "reasoning_effort": "high", "max_tokens": 9_000})
    forced = sent({"tools": [WEATHER], "tool_choice": "required", "reasoning_effort": "high", "max_tokens": 9_000})
    assert "thinking" not in forced


def test_sampling_by_generation():
    assert sent({"temperature": 1.7})["temperature"] == 1.0
    both = sent({"temperature": 0.3, "top_p": 0.5})
    assert both["temperature"] == 0.3
    assert "top_p" not in both
    assert sent({"temperature": 0.3, "top_p": 0.5}, "claude-3-opus-20240229")["top_p"] == 0.5
    assert not {"temperature", "top_p", "top_k"} & sent({"temperature": 0.3, "top_k": 5}, "claude-opus-4-8").keys()
    assert "temperature" not in sent({"temperature": 0.3, "reasoning_effort": "high", "max_tokens": 9_000})


def test_prefill_by_generation():
    messages = [ASK, {"role": "assistant", "content": "The answer is  "}]
    assert sent({"messages": messages})["messages"][-1] == {"role": "assistant", "content": "The answer is"}
    assert "user" in unfit({"messages": messages}, "claude-sonnet-4-6")
    assert sent({"messages": messages}, "claude-sonnet-4-6", capabilities=Capabilities(prefill=True))["messages"][-1]["role"] == "assistant"
    unfit({"messages": messages}, capabilities=Capabilities(prefill=False))


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2},
        {"logprobs": True},
        {"logit_bias": {"1": 5}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"functions": [{"name": "f"}]},
        {"modalities": ["text", "audio"]},
        {"stop": "\n"},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
        {"messages": [ASK, {"role": "function", "name": "f", "content": "x"}]},
    ],
)
def test_what_this_api_cannot_say_goes_to_another_target(asked):
    unfit(asked)


def test_dropped_and_neutral_fields():
    neutral = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0,
        "seed": 3,
        "store": True,
        "stream_options": {},
        "user": "u",
        "stop": ["END"],
    }
    made = sent({**neutral, "anything": 1})
    assert set(made) == {"model", "max_tokens", "messages", "stop_sequences", "metadata", "anything"}
    assert made["metadata"] == {"user_id": "u"}
    dropped = Capabilities(dropped_params=frozenset({"n", "logit_bias"}))
    assert set(sent({"n": 2, "logit_bias": {"1": 5}}, capabilities=dropped)) == {"model", "max_tokens", "messages"}


def test_system_messages_in_mid_conversation():
    messages = [ASK, {"role": "assistant", "content": "Hi"}, ASK, {"role": "system", "content": "Now be brief."}]
    assert sent({"messages": messages})["system"] == "Now be brief."
    assert sent({"messages": messages}, "claude-opus-4-8")["messages"][-1] == {"role": "system", "content": "Now be brief."}


def test_a_cache_of_an_hour_is_for_those_who_have_priced_it():
    hint = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    call = {**CALL, "function": {"name": "weather", "arguments": orjson.dumps(hint).decode()}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "look", **hint}]}, {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]  # fmt: skip
    body = {"messages": messages, "tools": [{**WEATHER, **hint}]}
    for prices, kept in (
        (Prices(100, known=True, cache_write=125), {"type": "ephemeral"}),
        (Prices(100, known=True, cache_write=125, cache_write_1h=200), hint["cache_control"]),
        (Prices(known=True), hint["cache_control"]),
    ):
        found = sent(body, prices=prices)
        assert found["messages"][0]["content"][0]["cache_control"] == found["tools"][0]["cache_control"] == kept
        assert found["messages"][1]["content"][0]["input"] == hint
