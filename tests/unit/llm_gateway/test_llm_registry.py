"""models.yaml: what loads, what is refused with every problem, what is named as without effect."""

from pathlib import Path

import pytest
import yaml

from services.common.config import ConfigFile, ConfigProblem
from services.common.errors import InvalidInput, NotFound
from services.common.settings import StartRefused
from services.llm_gateway.registry_file import registry_parser

ENVIRONMENT = {"URL": "http://127.0.0.1:1/v1", "KEY": "secret-key"}
BASE = """
model_list:
  - model_name: one
    litellm_params: {model: openai/m-1, api_base: os.environ/URL, api_key: os.environ/KEY, temperature: 0.3, timeout: 30, stream_timeout: 4}
    model_info: {input_cost_per_token: 1.5e-07, output_cost_per_token: 6e-07, max_input_tokens: 8000}
  - model_name: two
    litellm_params: {model: hosted_vllm/m-2, api_base: "http://localhost:2/v1/"}
    model_info: {mode: chat, cache_read_input_token_cost: 3.75e-08, input_cost_per_token: 7.5e-08, output_cost_per_token: 0}
  - model_name: vectors
    litellm_params: {model: wordllama/l2_supercat_256}
"""


def parsed(text=BASE, environment=ENVIRONMENT, **sections):
    data = yaml.safe_load(text)
    for name, value in sections.items():
        data[name] = value
    return registry_parser(environment)(data)


def problems(text=BASE, environment=ENVIRONMENT, **sections) -> str:
    with pytest.raises(ConfigProblem) as caught:
        parsed(text, environment, **sections)
    return "\n".join(caught.value.problems)


def test_groups_secrets_prices_and_timeouts():
    found = parsed()
    assert list(found.groups) == ["one", "two", "vectors"]
    one, two, vectors = (group.deployments[0] for group in found.groups.values())
    assert (one.api_base, one.api_key, one.model, one.provider) == ("http://127.0.0.1:1/v1", "secret-key", "m-1", "openai")
    assert (one.defaults, one.timeouts.total_s, one.timeouts.first_token_s) == ({"temperature": 0.3}, 30, 4)
    assert (one.prices.input, one.prices.output, one.prices.cached_input) == (150_000, 600_000, 150_000)
    assert (two.prices.input, two.prices.cached_input, two.api_base) == (75_000, 37_500, "http://localhost:2/v1")
    assert (vectors.mode, vectors.dimension, vectors.adapter, vectors.prices.known) == ("embedding", 256, "wordllama", True)
    assert "secret-key" not in repr(found)


def test_the_same_name_twice_is_one_group():
    text = BASE.replace("model_name: two", "model_name: one").replace("mode: chat, ", "")
    group = parsed(text).groups["one"]
    assert [d.model for d in group.deployments] == ["m-1", "m-2"]


def test_ids_are_stable_and_differ_by_key():
    ids = {d.id for group in parsed().groups.values() for d in group.deployments}
    assert ids == {d.id for group in parsed().groups.values() for d in group.deployments}
    twin = "{model: openai/m-1, api_base: os.environ/URL, api_key: os.environ/OTHER}"
    text = BASE + f"  - model_name: one\n    litellm_params: {twin}\n"
    group = parsed(text, {**ENVIRONMENT, "OTHER": "x"}).groups["one"]
    assert len({d.id for d in group.deployments}) == 2


def test_every_problem_is_listed_at_once():
    found = problems(
        BASE.replace("os.environ/KEY", "os.environ/NOT_THERE").replace("wordllama/l2_supercat_256", "wordllama/other"),
        router_settings={
            "fallbacks": [{"one": ["nobody"]}, {"ghost": ["one"]}],
            "context_window_fallbacks": [{"one": ["void"]}],
            "model_group_alias": {"alias": "absent"},
            "default_fallbacks": ["missing"],
        },
    )
    for expected in ("NOT_THERE is not set", "wordllama/other", "'nobody'", "'ghost'", "'void'", "'absent'", "'missing'"):
        assert expected in found, expected


def test_duplicate_deployments_and_ids_are_refused():
    again = "  - model_name: one\n    litellm_params: {model: openai/m-1, api_base: os.environ/URL, api_key: os.environ/KEY}\n"
    assert "same deployment" in problems(BASE + again)
    named = BASE.replace("max_input_tokens: 8000", "max_input_tokens: 8000, id: x").replace("mode: chat", "mode: chat, id: x")
    assert "same deployment (id x)" in problems(named)


def test_a_base_url_is_needed_and_must_be_one():
    assert "api_base is required" in problems(BASE.replace(', api_base: "http://localhost:2/v1/"', ""))
    for address in ("ftp://x", "http://", "http://[", "http://x:99999", "http://x:port"):
        assert "not an http" in problems(environment={**ENVIRONMENT, "URL": address}), address
    assert "api_key is required" in problems(BASE.replace("api_base: os.environ/URL, api_key: os.environ/KEY, ", ""))


def test_what_has_no_effect_is_named_by_path():
    found = parsed(
        BASE.replace("temperature: 0.3", "temperature: 0.3, rpm: 5, mock_response: hi"),
        litellm_settings={"cache": True, "callbacks": [], "cache_params": {"type": "s3", "host": "x"}},
        general_settings={"store_model_in_db": True},
        router_settings={"routing_strategy": "provider-budget-routing", "debug_level": "DEBUG", "retry_policy": {"OtherRetries": 1}},
        guardrails=[],
    )
    assert set(found.unsupported) == {
        "guardrails",
        "litellm_settings.callbacks",
        "litellm_settings.cache_params.host",
        "litellm_settings.cache_params.type=s3",
        "general_settings.store_model_in_db",
        "router_settings.debug_level",
        "router_settings.retry_policy.OtherRetries",
        "router_settings.routing_strategy=provider-budget-routing",
        "model_list[0].litellm_params.mock_response",
    }
    assert found.routing_strategy == "least-busy"


def test_a_provider_without_adapter_is_named_and_left_out_with_the_fallbacks_to_it():
    text = BASE + "  - model_name: claude\n    litellm_params: {model: bedrock/claude, api_key: os.environ/NOT_THERE}\n"
    found = parsed(text, router_settings={"fallbacks": [{"one": ["claude", "two"]}]})
    assert "claude" not in found.groups
    assert found.fallbacks == {"one": ("two",)}
    assert "model_list[3].litellm_params.model=bedrock/claude" in found.unsupported


def test_models_without_price_are_named():
    assert parsed(BASE.replace("output_cost_per_token: 6e-07, ", "")).unpriced == ("one",)
    assert parsed().unpriced == ()


def test_names_resolve_by_alias_mode_and_default():
    found = parsed(router_settings={"model_group_alias": {"best": "two", "gpt": {"model": "one", "hidden": True}}})
    assert found.resolve("best", "chat")[0].name == "two"
    assert found.resolve("gpt", "chat")[0].name == "one"
    assert found.resolve("", "chat") == (found.groups["one"], True)
    assert found.resolve("", "embedding")[0].name == "vectors"
    with pytest.raises(NotFound):
        found.resolve("nobody", "chat")
    with pytest.raises(InvalidInput):
        found.resolve("vectors", "chat")


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("model_list: []", "model_list"),
        ("model_list: [{model_name: x}]", "litellm_params"),
        ("model_list: 7", "model_list"),
        (BASE.replace("timeout: 30", "timeout: -1"), "timeout"),
        (BASE.replace("1.5e-07", "-1"), "input_cost_per_token"),
        (BASE + "router_settings: {num_retries: -1}", "num_retries"),
        ("model_list: [", "line 1"),
        ("[]", "models.yaml"),
    ],
)
def test_a_bad_file_is_refused_at_the_start_and_the_good_one_stays_afterwards(tmp_path: Path, broken, expected):
    path = tmp_path / "models.yaml"
    path.write_text(broken)
    with pytest.raises(StartRefused, match=expected):
        ConfigFile(path, registry_parser(ENVIRONMENT))
    path.write_text(BASE)
    file = ConfigFile(path, registry_parser(ENVIRONMENT))
    path.write_text(broken)
    assert not file.reload()
    assert list(file.current.groups) == ["one", "two", "vectors"]
    assert file.problem
    path.write_text(BASE.replace("model_name: two", "model_name: three"))
    assert file.reload()
    assert list(file.current.groups) == ["one", "three", "vectors"]


def test_the_local_file_loads_and_says_that_its_models_are_simulated():
    root = Path(__file__).resolve().parents[3]
    data = yaml.safe_load((root / "k8s/environments/local/config/models.yaml").read_text())
    found = registry_parser({"BULKHEAD_SIMULATOR_URL": "http://127.0.0.1:8090/v1"})(data)
    assert list(found.groups) == ["assistant-model", "assistant-model-backup", "embedding-default", "rerank-default"]
    assert [g.deployments[0].simulated for g in found.groups.values()] == [True, True, False, False]
    assert found.fallbacks == {"assistant-model": ("assistant-model-backup",)}
    assert found.unsupported == ()
    assert found.unpriced == ()
