"""Groups like `openai/*`: models whose names callers choose. They fall back, cost, fail and are replayed as any other."""

import asyncio
import random

import pytest
import yaml

from services.common.breaker import Breakers
from services.common.config import ConfigProblem
from services.common.errors import NotFound
from services.llm_gateway.attempts import Policy
from services.llm_gateway.caching_records import record_of_answer
from services.llm_gateway.canonical_key import request_key
from services.llm_gateway.chat import ChatCall, parse_answer
from services.llm_gateway.completions import Completions
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.gate import DeploymentGate
from services.llm_gateway.ports import Load
from services.llm_gateway.registry_file import registry_parser
from services.llm_gateway.testing import OpenGate, OpenPurse

MODELS = """
model_list:
  - model_name: llama
    litellm_params: {model: hosted_vllm/llama, api_base: "http://localhost:2/v1"}
    model_info: {free: true}
  - model_name: cloud/*
    litellm_params: {model: hosted_vllm/*, api_base: "http://localhost:3/v1"}
    model_info: {input_cost_per_token: 1.0e-06, output_cost_per_token: 1.0e-06}
"""
ANSWER = b'{"id":"r","model":"m","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'


def parsed(parser=None, table=None, text=MODELS, **router):
    data = {**yaml.safe_load(text), "router_settings": router}
    return (parser or registry_parser({}))(data, *([("prices.yaml", table)] if table else []))


def test_a_model_behind_a_pattern_is_a_fallback_and_has_fallbacks():
    found = parsed(fallbacks=[{"llama": ["cloud/big"]}, {"cloud/*": ["llama"]}], context_window_fallbacks=[{"cloud/small": ["cloud/big"]}])
    assert [group.name for group in found.ring(found.groups["llama"])] == ["cloud/big"]
    small, _ = found.resolve("cloud/small", "chat")
    assert [group.name for group in found.ring(small)] == ["llama"]
    assert [group.name for group in found.typed(small, FailureClass.CONTEXT_WINDOW)] == ["cloud/big"]


def test_an_alias_may_stand_for_a_model_behind_a_pattern_but_never_for_the_pattern():
    found = parsed(model_group_alias={"big": "cloud/big"})
    assert found.resolve("big", "chat")[0].name == "cloud/big"
    for wrong in ({"model_group_alias": {"any": "cloud/*"}}, {"fallbacks": [{"llama": ["cloud/*"]}]}, {"default_fallbacks": ["cloud/*"]}):
        with pytest.raises(ConfigProblem, match=r"cloud/\*"):
            parsed(**wrong)


def test_generic_fallbacks_are_those_of_every_model():
    assert [g.name for g in parsed(fallbacks=[{"*": ["cloud/big"]}]).ring(parsed().groups["llama"])] == ["cloud/big"]


@pytest.mark.parametrize("name", ["cloud/*", "cloud/" + "x" * 300, "cloud/a\nb"])
def test_a_name_that_is_none_reaches_no_provider(name):
    with pytest.raises(NotFound):
        parsed().resolve(name, "chat")


def test_a_reload_never_zeroes_what_models_behind_patterns_cost():
    parser = registry_parser({})
    parsed(parser, {"hosted_vllm/big": {"input_cost_per_token": 1e-05, "output_cost_per_token": 1e-05}})
    with pytest.raises(ConfigProblem, match="cloud/"):
        parsed(parser, text=MODELS.replace("1.0e-06", "0"))
    with pytest.raises(ConfigProblem, match="hosted_vllm/big"):
        parsed(parser, {"hosted_vllm/big": {"input_cost_per_token": 0, "output_cost_per_token": 0}})
    assert parsed(parser, {"hosted_vllm/big": {"free": True}}).resolve("cloud/big", "chat")


async def test_a_name_that_the_provider_does_not_know_is_the_callers_fault():
    found, provider = parsed(), Unknowing()
    chance = random.Random(1)
    calls = Completions(lambda: found, {"openai": provider}, Policy(), chance, OpenGate(chance), OpenPurse())
    with pytest.raises(NotFound) as caught:
        await calls.complete(ChatCall("cloud/nonsense", {"messages": [{"role": "user", "content": "x"}]}))
    assert (caught.value.reason, caught.value.metadata["model"]) == ("MODEL_NOT_FOUND", "cloud/nonsense")


class Unknowing:
    async def complete(self, attempt):
        raise UpstreamFault(Failure(FailureClass.MODEL_GONE, status=404))


class NoLimits:
    def count(self, deployment_id, tokens): ...


async def test_names_that_do_not_exist_open_nobodys_breaker():
    deployment = parsed().resolve("cloud/nonsense", "chat")[0].deployments[0]
    breakers = Breakers(None, key=str, channel="x")
    gate = DeploymentGate(breakers, NoLimits(), random.Random(1))
    load = Load("t", "free", 1, 0, asyncio.get_running_loop().time() + 10)
    for _ in range(10):
        gate.leave(await gate.enter(deployment, load), Failure(FailureClass.MODEL_GONE))
    assert breakers.health(deployment.id).state == "closed"


async def test_an_answer_of_a_model_behind_a_pattern_can_be_given_again():
    found, provider = parsed(), Answering()
    chance = random.Random(1)
    calls = Completions(lambda: found, {"openai": provider}, Policy(), chance, OpenGate(chance), OpenPurse())
    done = await calls.complete(ChatCall("cloud/big", {"messages": [{"role": "user", "content": "x"}]}))
    record = record_of_answer(done.answer, done.outcome, "", 0.0, 1.0)
    assert record.outcome(found, "replayed").deployment.model == "big"
    moved = parsed(text=MODELS.replace("hosted_vllm/*", "hosted_vllm/new-*"))
    assert request_key("t", "chat", found, "cloud/big", b"") != request_key("t", "chat", moved, "cloud/big", b"")


class Answering:
    async def complete(self, attempt):
        return parse_answer(ANSWER)


def test_a_name_behind_a_pattern_leads_nowhere_else():
    found = parsed()
    assert found.resolve("cloud/org/model..2", "chat")[0].name == "cloud/org/model..2"
    for name in ("cloud/../files", "cloud/a/../../b", "cloud/.."):
        with pytest.raises(NotFound):
            found.resolve(name, "chat")


def test_a_model_of_azure_behind_a_pattern_is_in_its_address():
    text = """
model_list:
  - model_name: azure/*
    litellm_params: {model: azure/*, api_base: "https://x.openai.azure.com", api_key: k}
    model_info: {free: true}
"""
    group, _ = parsed(text=text).resolve("azure/gpt 4/o?x", "chat")
    assert group.deployments[0].api_base == "https://x.openai.azure.com/openai/deployments/gpt%204%2Fo%3Fx"
