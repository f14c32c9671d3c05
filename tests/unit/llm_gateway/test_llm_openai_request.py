"""Canonical requests as OpenAI itself and its stricter look-alikes take them: a fallback to one is no reason for a 400."""

import orjson
import pytest
from opentelemetry.context import Context

from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.failures import FailureClass, UpstreamFault
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.providers import OPENAI_BASE
from services.llm_gateway.registry import Deployment

ASK = {"role": "user", "content": "Hello"}
FUNCTION = {"name": "weather", "arguments": "{}"}
# What answers of Anthropic and Gemini hold, as a client sends it back.
FOREIGN = [
    {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
    {"role": "user", "content": "u", "cache_control": {"type": "ephemeral"}},
    {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "hm",
        "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}],
        "provider_specific_fields": {"content_blocks": []},
        "extra_content": {"google": {"thought_signature": "x"}},
        "images": [],
        "tool_calls": [{"id": "c", "type": "function", "function": FUNCTION, "extra_content": {"google": {"thought_signature": "x"}}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "sunny", "cache_control": {"type": "ephemeral"}},
    {"role": "assistant", "content": None, "thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]},
    ASK,
]
TOOLS = [{"type": "function", "function": {"name": "weather"}, "cache_control": {"type": "ephemeral"}}]


def wire(body, provider="openai", base=OPENAI_BASE, model="gpt-4o", **more):
    made = Deployment("d", "g", provider, "openai", model, "chat", api_base=base, api_key="k", **more)
    attempt = Attempt(made, {"messages": [ASK], **body, "model": model}, Limits(1, 1, 1, 1, 1), 1, Context())
    return OpenAiDialect().chat(attempt, stream=False)


def sent(*args, **more):
    return orjson.loads(wire(*args, **more).body)


@pytest.mark.parametrize(
    ("provider", "base"),
    [("openai", OPENAI_BASE), ("openai", "https://eu.api.openai.com/v1"), ("azure", "https://x.openai.azure.com/openai/deployments/m"),
     ("cerebras", "https://api.cerebras.ai/v1"), ("groq", "https://api.groq.com/openai/v1"), ("mistral", "https://api.mistral.ai/v1")],
)  # fmt: skip
def test_fields_of_other_providers_do_not_reach_those_that_refuse_them(provider, base):
    body = {"messages": FOREIGN, "tools": TOOLS}
    before = orjson.dumps(body)
    assert sent(body, provider, base) == {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "c", "type": "function", "function": FUNCTION}]},
            {"role": "tool", "tool_call_id": "c", "content": "sunny"},
            {"role": "assistant", "content": ""},
            ASK,
        ],
        "tools": [{"type": "function", "function": {"name": "weather"}}],
    }
    assert orjson.dumps(body) == before


@pytest.mark.parametrize(
    ("provider", "base"),
    [("openai", "http://vllm:8000/v1"), ("hosted_vllm", "http://vllm:8000/v1"), ("deepseek", "https://api.deepseek.com/v1"),
     ("litellm_proxy", "http://proxy/v1"), ("openai", "https://api.openai.com.example.org/v1")],
)  # fmt: skip
def test_others_get_what_was_sent(provider, base):
    assert sent({"messages": FOREIGN, "tools": TOOLS}, provider, base) == {"model": "gpt-4o", "messages": FOREIGN, "tools": TOOLS}


def test_the_bound_of_the_answer_has_the_name_that_each_provider_knows():
    newer, older = {"max_completion_tokens": 7}, {"max_tokens": 7}
    for provider in ("mistral", "deepseek", "together_ai", "perplexity"):
        body = sent(newer, provider, "https://x/v1")
        assert (body.get("max_tokens"), body.get("max_completion_tokens")) == (7, None)
    # The smaller bound holds where both stand.
    assert sent({**newer, "max_tokens": 3}, "deepseek", "https://x/v1")["max_tokens"] == 3
    for body in (sent(older, model="gpt-5-mini"), sent(older, model="o3"), sent(older, "azure", "https://x", reasoning=True)):
        assert (body.get("max_tokens"), body.get("max_completion_tokens")) == (None, 7)
    assert sent(older)["max_tokens"] == 7
    assert sent(newer)["max_completion_tokens"] == 7
    assert sent(newer, "hosted_vllm", "http://x/v1") == {"model": "gpt-4o", "messages": [ASK], **newer}


def test_a_dearer_tier_is_only_for_operators_who_priced_it():
    for provider, base in (("openai", OPENAI_BASE), ("azure", "https://x")):
        with pytest.raises(UpstreamFault) as caught:
            wire({"service_tier": "priority"}, provider, base)
        assert caught.value.failure.failure_class is FailureClass.UNFIT
        assert "service_tier" in caught.value.failure.message
        assert sent({"service_tier": "priority"}, provider, base, defaults={"service_tier": "priority"})["service_tier"] == "priority"
        assert sent({"service_tier": "flex"}, provider, base)["service_tier"] == "flex"
    assert sent({"service_tier": "priority"}, "hosted_vllm", "http://x")["service_tier"] == "priority"


def test_azure_is_told_the_version_of_its_api():
    base = "https://x.openai.azure.com/openai/deployments/m"
    assert wire({}, "azure", base, api_version="2025-04-01-preview").url == f"{base}/chat/completions?api-version=2025-04-01-preview"
    # Its addresses by deployment answer 404 without one; the newer API under /openai/v1 needs none.
    assert wire({}, "azure", base).url == f"{base}/chat/completions?api-version=2024-10-21"
    assert wire({}, "azure", "https://x.openai.azure.com/openai/v1").url == "https://x.openai.azure.com/openai/v1/chat/completions"
    assert wire({}, "openai", api_version="2025-04-01-preview").url == f"{OPENAI_BASE}/chat/completions"


def test_the_user_of_an_anthropic_client_fits_where_only_short_names_do():
    # OpenAI takes 64 characters and OpenRouter 128; Claude Code sends more. The same user stays the same.
    def user_of(name):
        return sent({"user": name, "anthropic": {"metadata": {"user_id": name}}})["user"]

    long = "user_" + "a" * 64 + "_account__session_1"
    assert user_of("ana") == "ana"
    assert len(user_of(long)) <= 64
    assert user_of(long) == user_of(long) != user_of(long + "2")


def test_mistral_gets_no_field_that_it_answers_422_to():
    body = {"stream": True, "stream_options": {"include_usage": True}, "user": "ana", "store": False, "seed": 3, "temperature": 0.5}
    assert sent(body, "mistral", "https://api.mistral.ai/v1") == {
        "model": "gpt-4o", "messages": [ASK], "stream": True, "random_seed": 3, "temperature": 0.5
    }  # fmt: skip
    assert sent(body) == {"model": "gpt-4o", "messages": [ASK], **body}
