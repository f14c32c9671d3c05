"""What each process is given."""

import pytest

from services.cli.up.credentials import ensure_identity_keys, write_dev_env
from services.cli.up.environment import Wiring, base_environment
from services.cli.up.plan import make_plan
from services.cli.up.workspace import Workspace
from services.common.settings import ServiceSettings
from services.common.testing import ROOT
from services.gateway.settings import Settings as Gateway
from services.llm_gateway.settings import Settings as LlmGateway
from services.memory.settings import Settings as Memory
from services.orchestrator.settings import Settings as Orchestrator
from services.simulator.settings import Settings as Simulator
from services.tool_executor.settings import Settings as ToolExecutor

SETTINGS: list[type[ServiceSettings]] = [Gateway, Orchestrator, LlmGateway, ToolExecutor, Memory, Simulator]


@pytest.fixture
def wiring(tmp_path):
    workspace = Workspace(tmp_path / "data")
    workspace.open()
    ensure_identity_keys(workspace.keys)
    return Wiring(workspace, make_plan(port_base=20000), ROOT / "k8s/environments/local/config", {"PATH": "/bin"}, 20000)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda cls: cls.service_name)
def test_every_service_starts_with_what_it_is_given(wiring, settings, monkeypatch):
    planned = wiring.plan.first(settings.service_name)
    variables = wiring.variables(planned, planned.ports)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = settings(_env_file=None)
    wiring.workspace.addresses.write_text("{}")
    assert made.problems() == []
    assert made.instance == f"{settings.service_name}-0"
    assert made.host == "127.0.0.1"
    assert made.log_format == "json"
    for kind, port in planned.ports.items():
        assert getattr(made, f"{kind}_port") == port


def test_what_up_owns_wins_and_the_rest_is_inherited(tmp_path):
    workspace = Workspace(tmp_path / "data")
    base = {"BULKHEAD_HTTP_PORT": "1", "BULKHEAD_LOG_FORMAT": "console", "BULKHEAD_LOG_LEVEL": "WARNING", "OPENAI_API_KEY": "k"}
    wiring = Wiring(workspace, make_plan(), tmp_path, base)
    gateway = wiring.plan.first("gateway")
    variables = wiring.variables(gateway, gateway.ports)
    assert variables["BULKHEAD_HTTP_PORT"] == "8080"
    assert variables["BULKHEAD_LOG_FORMAT"] == "json"
    assert variables["BULKHEAD_LOG_LEVEL"] == "WARNING"
    assert variables["OPENAI_API_KEY"] == "k"


def test_the_env_file_of_the_environment_is_beneath_the_variables(tmp_path):
    (tmp_path / ".env.local").write_text("OPENAI_API_KEY=from-file\nBULKHEAD_OTLP_ENDPOINT='http://collector:4317'\n")
    (tmp_path / ".env.dev").write_text("OPENAI_API_KEY=of-dev\n")
    assert base_environment({}, tmp_path)["OPENAI_API_KEY"] == "from-file"
    assert base_environment({}, tmp_path)["BULKHEAD_OTLP_ENDPOINT"] == "http://collector:4317"
    assert base_environment({"OPENAI_API_KEY": "mine"}, tmp_path)["OPENAI_API_KEY"] == "mine"
    assert base_environment({"BULKHEAD_ENV": "dev"}, tmp_path)["OPENAI_API_KEY"] == "of-dev"


def test_keys_are_made_once_and_readable_by_the_user_only(wiring):
    before = {path.name: path.read_bytes() for path in wiring.workspace.keys.iterdir()}
    ensure_identity_keys(wiring.workspace.keys)
    assert {path.name: path.read_bytes() for path in wiring.workspace.keys.iterdir()} == before
    assert wiring.workspace.root.stat().st_mode & 0o077 == 0


def test_dev_env_is_replaced_whole_and_private(tmp_path):
    file = tmp_path / "dev.env"
    file.write_text("old")
    write_dev_env(file, url="http://a", llm_url="http://b", api_key="bh_c")
    assert file.read_text() == "BULKHEAD_URL=http://a\nBULKHEAD_LLM_URL=http://b\nBULKHEAD_API_KEY=bh_c\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["dev.env"]
