"""Which models `up` puts in force."""

import os

import pytest
import yaml

from services.cli.failure import CommandFailure
from services.cli.up.models import chat_model, choose_models, completed, follow, openai_models
from services.cli.up.workspace import Workspace
from services.common.testing import ROOT
from services.llm_gateway.registry_file import registry_parser

CONFIG = ROOT / "k8s/environments/local/config"


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "data")
    made.open()
    return made


def registry(path, **environ):
    return registry_parser(environ)(yaml.safe_load(path.read_text()))


def test_without_a_key_the_simulator_answers_and_is_named(workspace):
    models = choose_models(workspace, {}, None)
    assert models.config_dir == CONFIG
    assert models.simulator
    assert "SIMULATOR" in models.source


def test_with_a_key_the_provider_answers_and_the_key_stays_out_of_the_file(workspace):
    models = choose_models(workspace, {"OPENAI_API_KEY": "sk-secret-secret-1"}, None)
    assert not models.simulator
    assert "SIMULATOR" not in models.source
    written = models.config_dir / "models.yaml"
    assert "sk-secret" not in written.read_text() + models.source
    made = registry(written, OPENAI_API_KEY="sk-secret-secret-1")
    assert {"assistant-model", "embedding-default"} <= set(made.groups)
    assert (models.config_dir / "policies.yaml").read_text() == (CONFIG / "policies.yaml").read_text()


def test_a_base_url_and_a_model_of_ones_own_are_taken(workspace):
    environ = {"OPENAI_API_KEY": "k" * 12, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_MODEL": "house-model"}
    models = choose_models(workspace, environ, None)
    assert "house-model" in models.source
    assert "http://127.0.0.1:9/v1" in models.source
    params = openai_models(environ)["model_list"][0]["litellm_params"]
    assert params == {"api_key": "os.environ/OPENAI_API_KEY", "api_base": "os.environ/OPENAI_BASE_URL", "model": "openai/house-model"}
    assert registry(models.config_dir / "models.yaml", **environ).groups["assistant-model"]


def test_a_litellm_file_gets_the_names_that_agents_ask_for(workspace, tmp_path):
    file = tmp_path / "litellm.yaml"
    entry = {"model_name": "fast", "litellm_params": {"model": "openai/x", "api_key": "os.environ/KEY"}}
    file.write_text(yaml.safe_dump({"model_list": [entry]}))
    models = choose_models(workspace, {"OPENAI_API_KEY": "unused"}, file)
    made = registry(models.config_dir / "models.yaml", KEY="k")
    assert set(made.groups) == {"fast", "embedding-default"}
    assert made.aliases["assistant-model"] == "fast"
    assert str(file) in models.source
    assert not models.simulator

    file.write_text(yaml.safe_dump({"model_list": [{**entry, "model_name": "faster"}]}))
    follow(models)
    assert registry(models.config_dir / "models.yaml", KEY="k").aliases["assistant-model"] == "faster"


def test_a_complete_file_is_used_as_it_is(workspace):
    models = choose_models(workspace, {}, CONFIG / "models.yaml")
    assert os.path.realpath(models.config_dir / "models.yaml") == str(CONFIG / "models.yaml")
    assert models.simulator
    assert "SIMULATOR" in models.source


def test_a_file_that_is_not_in_shape_is_left_for_the_llm_gateway_to_refuse(workspace, tmp_path):
    assert completed(["not", "a", "mapping"]) is None
    file = tmp_path / "broken.yaml"
    file.write_text("model_list: [")
    models = choose_models(workspace, {}, file)
    assert (models.config_dir / "models.yaml").read_text() == "model_list: ["


def test_a_file_that_is_not_there_is_one_clear_line(workspace, tmp_path):
    with pytest.raises(CommandFailure, match="no such file"):
        choose_models(workspace, {}, tmp_path / "nowhere.yaml")


def test_a_later_choice_replaces_the_earlier_one(workspace):
    choose_models(workspace, {"OPENAI_API_KEY": "k"}, None)
    models = choose_models(workspace, {}, CONFIG / "models.yaml")
    assert (models.config_dir / "models.yaml").read_text() == (CONFIG / "models.yaml").read_text()


def test_price_tables_beside_the_file_come_with_it(workspace, tmp_path):
    file = tmp_path / "litellm.yaml"
    file.write_text(yaml.safe_dump({"model_list": [{"model_name": "fast", "litellm_params": {"model": "openai/x", "api_key": "k"}}]}))
    (tmp_path / "prices.yaml").write_text("openai/x: {input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}\n")
    models = choose_models(workspace, {}, file)
    assert (models.config_dir / "prices.yaml").read_text() == (tmp_path / "prices.yaml").read_text()
    # And go with it: the next start may be with other models.
    choose_models(workspace, {}, CONFIG / "models.yaml")
    assert not (models.config_dir / "prices.yaml").exists()


def test_a_price_table_that_is_written_later_is_found(workspace, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"model_list": [{"model_name": "a", "litellm_params": {"model": "openai/a"}}]}))
    chosen = choose_models(workspace, {}, file)
    table = chosen.config_dir / "prices.yaml"
    assert not table.exists()
    (tmp_path / "prices.yaml").write_text("a: {}")
    assert table.read_text() == "a: {}"


def test_a_wildcard_is_no_name_to_ask_for(workspace, tmp_path):
    file = tmp_path / "litellm.yaml"
    any_model = {"model_name": "openai/*", "litellm_params": {"model": "openai/*", "api_key": "k"}}
    file.write_text(yaml.safe_dump({"model_list": [any_model]}))
    assert chat_model(choose_models(workspace, {}, file)) == ""
    named = {"model_name": "fast", "litellm_params": {"model": "openai/x", "api_key": "k"}}
    file.write_text(yaml.safe_dump({"model_list": [any_model, named]}))
    models = choose_models(workspace, {}, file)
    assert chat_model(models) == "fast"
    assert registry(models.config_dir / "models.yaml").aliases["assistant-model"] == "fast"


def test_the_chat_model_of_the_banner_is_the_local_one(workspace, tmp_path):
    assert chat_model(choose_models(workspace, {}, None)) == "assistant-model"
    file = tmp_path / "broken.yaml"
    file.write_text("model_list: [")
    assert chat_model(choose_models(workspace, {}, file)) == ""
