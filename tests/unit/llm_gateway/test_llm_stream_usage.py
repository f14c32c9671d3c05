"""Streams tell their usage where the provider is known to be able to, so that they are paid by what was counted."""

import random

import pytest

from services.common.config import ConfigProblem
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall, ChunkReader
from services.llm_gateway.completions import Completions
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.registry_file import RegistryParser, registry_parser
from services.llm_gateway.testing import OpenGate, OpenPurse

ANSWER = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'


def loaded(model, general=None, info=None, **params):
    entry = {"model_name": "m", "litellm_params": {"model": model, "api_key": "k", **params}, "model_info": info or {}}
    registry = registry_parser({})({"model_list": [entry], **({"general_settings": general} if general else {})})
    assert registry.unsupported == ()
    return registry.groups["m"].deployments[0]


@pytest.mark.parametrize(
    ("params", "asked"),
    [
        ({"model": "openai/gpt-4.1"}, True),
        ({"model": "openai/gpt-4.1", "api_base": "https://eu.api.openai.com/v1"}, True),
        ({"model": "openai/gpt-4.1", "api_base": "http://localhost:1/v1"}, None),
        ({"model": "openai/gpt-4.1", "api_base": "http://localhost:1/v1", "stream_options": {"include_usage": True}}, True),
        ({"model": "openai/gpt-4.1", "stream_options": {"include_usage": False}}, None),
        ({"model": "openai/gpt-4.1", "additional_drop_params": ["stream_options"]}, False),
        ({"model": "hosted_vllm/m", "api_base": "http://localhost:1/v1"}, True),
        ({"model": "groq/m"}, True),
        ({"model": "cerebras/m"}, None),
        ({"model": "mistral/m"}, False),
        ({"model": "nvidia_nim/m"}, False),
        ({"model": "azure/gpt", "api_base": "https://a.openai.azure.com"}, True),
        ({"model": "azure/gpt", "api_base": "https://a.openai.azure.com", "api_version": "preview"}, True),
        ({"model": "azure/gpt", "api_base": "https://a.openai.azure.com", "api_version": "2024-10-01-preview"}, True),
        ({"model": "azure/gpt", "api_base": "https://a.openai.azure.com", "api_version": "2024-06-01"}, False),
    ],
)
def test_which_deployments_are_asked_for_the_usage_of_their_streams(params, asked):
    assert loaded(**params).stream_usage is asked


def test_the_configuration_decides_for_all_and_each_deployment_for_itself():
    local = {"model": "openai/m", "api_base": "http://localhost:1/v1"}
    assert loaded(**local, general={"always_include_stream_usage": True}).stream_usage is True
    assert loaded("openai/m", {"always_include_stream_usage": False}).stream_usage is None
    assert loaded("openai/m", {"always_include_stream_usage": False}, stream_options={"include_usage": True}).stream_usage is True
    assert loaded(**local, info={"simulated": True}).stream_usage is True


@pytest.mark.parametrize(
    ("able", "given", "sent"),
    [
        (True, None, {"include_usage": True}),
        (True, {"include_usage": False, "include_obfuscation": False}, {"include_usage": True, "include_obfuscation": False}),
        (None, None, None),
        (None, {"include_usage": False}, {"include_usage": False}),
        (False, {"include_usage": True}, None),
    ],
)
async def test_a_stream_is_paid_by_what_was_counted_whatever_its_caller_wants_to_see(able, given, sent):
    class Provider:
        async def stream(self, attempt):
            self.body = attempt.body
            wanted = (attempt.body.get("stream_options") or {}).get("include_usage")
            yield ChunkReader().feed(ANSWER + (USAGE if wanted else b"") + b"data: [DONE]\n\n")

    provider, purse, chance = Provider(), OpenPurse(), random.Random(1)
    made = Deployment("a0", "a", "p", "openai", "a", "chat", prices=Prices(10**6, 10**6, known=True), stream_usage=able)
    registry = Registry({"a": Group("a", 0, (made,))})
    calls = Completions(lambda: registry, {"openai": provider}, Policy(), chance, OpenGate(chance), purse)
    body = {"messages": [{"role": "user", "content": "x"}], **({} if given is None else {"stream_options": given})}
    async for _ in calls.stream(ChatCall("a", body)):
        pass
    assert provider.body.get("stream_options") == sent
    ((_, usage, _),) = purse.settled
    assert usage.estimated is not bool(able)


@pytest.mark.parametrize("left", [{}, {"search_context_cost_per_query": 0}])
def test_a_price_of_searches_that_vanishes_is_refused(left):
    parser = RegistryParser({})

    def content(**prices):
        info = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6, **prices}
        return {"model_list": [{"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "k"}, "model_info": info}]}

    parser(content(search_context_cost_per_query=0.01))
    with pytest.raises(ConfigProblem, match="would become 0"):
        parser(content(**left))
