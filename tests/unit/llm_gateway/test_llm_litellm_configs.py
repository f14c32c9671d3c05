"""Configurations in the shape that LiteLLM's users have: they load, mean what they meant, and name what has no effect."""

from pathlib import Path

import pytest
import yaml

from services.common.config import ConfigFile, ConfigProblem
from services.common.errors import NotFound
from services.llm_gateway.failures import FailureClass
from services.llm_gateway.money import priced
from services.llm_gateway.registry_file import registry_parser

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "litellm"
NAMES = ("AZURE_API_KEY_EU", "AZURE_API_KEY_US", "OPENAI_API_KEY", "LITELLM_MASTER_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
ENVIRONMENT = {name: f"value-of-{name}" for name in (*NAMES, "GROQ_API_KEY", "COHERE_API_KEY")}


def loaded(name: str, *beside):
    return registry_parser(ENVIRONMENT)(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), *beside)


def test_load_balanced():
    found = loaded("load_balanced", ("prices.yaml", {"azure/gpt-4o": {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05}}))
    eu, us, openai = found.groups["gpt-4o"].deployments
    assert eu.api_base == "https://example-eu.openai.azure.com/openai/deployments/gpt-4o-eu"
    assert (eu.api_version, eu.headers["api-key"], eu.api_key) == ("2025-04-01-preview", "value-of-AZURE_API_KEY_EU", "")
    assert (eu.limits.requests_per_minute, eu.limits.tokens_per_minute, us.weight) == (600, 100_000, 2.0)
    assert (openai.limits.parallel, openai.order) == (50, 2)
    assert (eu.prices.input, us.prices.known, openai.prices.known) == (2_500_000, True, False)
    assert (found.routing_strategy, found.num_retries, found.request_timeout_s, found.drop_params) == ("usage-based-routing", 2, 60, True)
    assert found.master_key == "value-of-LITELLM_MASTER_KEY"
    assert set(found.unsupported) == {
        "router_settings.redis_host", "router_settings.redis_password", "router_settings.redis_port", "litellm_settings.set_verbose",
        "litellm_settings.success_callback", "general_settings.database_url",
    }  # fmt: skip
    for secret in ENVIRONMENT.values():
        assert secret not in repr(found)


def test_fallbacks():
    found = loaded("fallbacks")
    claude = found.groups["claude"].deployments[0]
    assert (claude.adapter, claude.api_base, claude.defaults) == ("anthropic", "https://api.anthropic.com", {"max_tokens": 4096})
    assert (claude.capabilities.prefill, claude.capabilities.vision, claude.capabilities.json_schema) == (True, True, None)
    assert found.groups["small"].deployments[0].capabilities.dropped_params == {"response_format"}
    assert found.resolve("gpt-4", "chat")[0].name == "claude"
    assert found.fallbacks == {"claude": ("gemini", "small"), "small": ("gemini",)}
    assert [g.name for g in found.typed(found.groups["small"], FailureClass.CONTEXT_WINDOW)] == ["gemini"]
    assert [g.name for g in found.typed(found.groups["claude"], FailureClass.CONTENT_POLICY)] == ["gemini"]
    assert (found.max_fallbacks, found.allowed_fails, found.cooldown_s) == (2, 3, 30)
    assert found.retries_by_class[FailureClass.STALLED] == 1
    assert found.retries_by_class[FailureClass.RATE_LIMITED] == 4
    assert found.unsupported == ("router_settings.allowed_fails_policy",)


def test_a_long_prompt_costs_what_its_tier_says():
    prices = loaded("fallbacks").groups["claude"].deployments[0].prices
    assert (
        priced(prices, 1000, 10, cached=100, cache_write=100).cost_picousd
        == 800 * 3_000_000 + 100 * 300_000 + 100 * 3_750_000 + 10 * 15_000_000
    )
    assert priced(prices, 200_001, 10).cost_picousd == 200_001 * 6_000_000 + 10 * 22_500_000
    assert prices.bound_nanousd(300_000, 10) * 1000 >= priced(prices, 300_000, 10).cost_picousd


def test_budgets_and_cache():
    found = loaded("budgets_and_cache")
    assert (found.tenant_budget_microusd, found.tenant_budget_period) == (100_500_000, "30d")
    assert (found.cache.enabled, found.cache.ttl_s, found.cache.similarity) == (True, 600, 0.97)
    assert found.cache.semantic_model == "text-embedding-3-small"
    mini = found.groups["gpt-4.1-mini"].deployments[0].prices
    assert (mini.input, mini.batch_input, mini.batch_output) == (400_000, 200_000, 800_000)
    reranker = found.groups["reranker"]
    assert (reranker.mode, reranker.deployments[0].prices.per_request) == ("rerank", 2_000_000_000)
    assert set(found.unsupported) == {
        "litellm_settings.cache_params.host", "litellm_settings.cache_params.port", "general_settings.alerting",
        "general_settings.proxy_batch_write_at",
    }  # fmt: skip


def test_wildcards():
    table = {"gpt-5-mini": {"input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06}}
    found = loaded("wildcards", ("prices.yaml", table))
    assert list(found.groups) == ["llama"]
    group, _ = found.resolve("openai/gpt-5-mini", "chat")
    deployment = group.deployments[0]
    assert (group.name, deployment.model, deployment.prices.input) == ("openai/gpt-5-mini", "gpt-5-mini", 250_000)
    assert found.resolve("anthropic/claude-x", "chat")[0].deployments[0].adapter == "anthropic"
    assert found.ring(group) == ()
    with pytest.raises(NotFound):
        found.resolve("mistral/large", "chat")
    llama = found.groups["llama"].deployments[0]
    assert (llama.model, llama.defaults, llama.headers["x-team"]) == (
        "meta-llama/Llama-3.3-70B-Instruct",
        {"repetition_penalty": 1.05},
        "platform",
    )
    assert set(found.unsupported) == {
        "environment_variables", "model_list[3].litellm_params.model=bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0",
        "model_list[3].litellm_params.aws_region_name",
    }  # fmt: skip


def test_prices_beside_the_file_are_reloaded_and_never_zeroed(tmp_path: Path):
    models, prices = tmp_path / "models.yaml", tmp_path / "prices.json"
    models.write_text("model_list: [{model_name: m, litellm_params: {model: openai/x, api_key: os.environ/OPENAI_API_KEY}}]")
    file = ConfigFile(models, registry_parser(ENVIRONMENT), beside=[tmp_path / "prices.yaml", prices])

    def price() -> int:
        return file.current.groups["m"].deployments[0].prices.input

    assert file.current.unpriced == ("m",)
    prices.write_text(
        '{"sample_spec": {"input_cost_per_token": "text"}, "openai/x": {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}}'
    )
    assert file.reload()
    assert price() == 1_000_000
    for broken in (
        "{}",
        '{"openai/x": {"input_cost_per_token": 0, "output_cost_per_token": 0}}',
        "{",
        '{"openai/x": {"input_cost_per_token": -1}}',
        "[1]",
    ):
        prices.write_text(broken)
        assert not file.reload(), broken
        assert price() == 1_000_000
        assert file.problem
    prices.unlink()
    assert not file.reload()
    assert price() == 1_000_000
    prices.write_text('{"openai/x": {"free": true}}')
    assert file.reload()
    assert price() == 0
    prices.write_text('{"openai/x": {"input_cost_per_token": 3e-06, "output_cost_per_token": 2e-06}}')
    assert file.reload()
    assert price() == 3_000_000


@pytest.mark.parametrize("value", ["-1", "1001", "nan", "inf", "text", "[]"])
def test_a_price_that_is_none_is_refused(value):
    params = f"{{model: hosted_vllm/x, api_base: 'http://h', input_cost_per_token_above_128k_tokens: {value}}}"
    with pytest.raises((ConfigProblem, ValueError)):
        registry_parser(ENVIRONMENT)(yaml.safe_load(f"model_list: [{{model_name: m, litellm_params: {params}}}]"))


def test_what_is_cached_follows_the_call_types():
    text = "model_list: [{model_name: m, litellm_params: {model: hosted_vllm/x, api_base: 'http://h'}}]"
    settings = {"cache": True, "cache_params": {"supported_call_types": ["aembedding", "embedding", "atranscription"]}}
    found = registry_parser(ENVIRONMENT)({**yaml.safe_load(text), "litellm_settings": settings})
    assert found.cache.operations == {"embed"}
    assert "litellm_settings.cache_params.supported_call_types=atranscription" in found.unsupported
