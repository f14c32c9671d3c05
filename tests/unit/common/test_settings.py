"""Settings: presets, overrides, every problem at once, and the documented defaults."""

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from services.common import testing
from services.common.settings import ServiceSettings, StartRefused, parse, unknown_variables


class Sample(ServiceSettings):
    service_name: ClassVar[str] = "sample"
    state_url: str = Field("", description="URL of the state store.")

    def problems(self):
        return [*self.missing("state_url"), *self.unreadable("identity_keys_file")]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.startswith("BULKHEAD_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("local", {"log_level": "DEBUG", "log_format": "console", "policy_set": "dev", "drain_grace_s": 6.0, "drain_flush_s": 1.0}),
        ("dev", {"log_level": "DEBUG", "log_format": "console", "policy_set": "dev", "drain_grace_s": 6.0, "drain_flush_s": 1.0}),
        ("test", {"log_level": "INFO", "policy_set": "test", "drain_grace_s": 25.0}),
        ("staging", {"log_level": "INFO", "log_format": "json", "drain_grace_s": 25.0, "drain_flush_s": 3.0}),
        ("prod", {"log_level": "INFO", "log_format": "json", "policy_set": "prod", "drain_grace_s": 25.0}),
    ],
)
def test_presets(monkeypatch, env, expected):
    monkeypatch.setenv("BULKHEAD_ENV", env)
    settings = parse(ServiceSettings)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_a_variable_beats_its_preset(monkeypatch):
    monkeypatch.setenv("BULKHEAD_LOG_LEVEL", "ERROR")
    monkeypatch.setenv("BULKHEAD_DRAIN_GRACE_S", "9")
    settings = parse(ServiceSettings)
    assert (settings.log_level, settings.drain_grace_s, settings.drain_flush_s) == ("ERROR", 9.0, 1.0)


def test_every_problem_is_listed_at_once_and_no_value_is_repeated(monkeypatch):
    monkeypatch.setenv("BULKHEAD_GRPC_PORT", "s3cret")
    monkeypatch.setenv("BULKHEAD_TRACE_SAMPLE_RATIO", "7")
    with pytest.raises(StartRefused) as caught:
        parse(Sample)
    text = "\n".join(caught.value.problems)
    assert "BULKHEAD_GRPC_PORT" in text
    assert "BULKHEAD_TRACE_SAMPLE_RATIO" in text
    assert "s3cret" not in text


def test_problems_of_the_service_name_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("BULKHEAD_IDENTITY_KEYS_FILE", str(tmp_path / "absent.json"))
    with pytest.raises(StartRefused) as caught:
        parse(Sample)
    assert caught.value.problems[0] == "BULKHEAD_STATE_URL is required"
    assert "does not exist" in caught.value.problems[1]


def test_env_files_are_read_outside_kubernetes_only(monkeypatch, tmp_path):
    (tmp_path / ".env.local").write_text("BULKHEAD_INSTANCE=from-file\n")
    assert parse(ServiceSettings).instance == "from-file"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert parse(ServiceSettings).instance != "from-file"


def test_settings_are_frozen():
    settings = parse(ServiceSettings)
    with pytest.raises(ValueError, match="frozen"):
        settings.env = "prod"
    assert settings.log_dir == Path(".bulkhead/logs")


def test_a_misspelt_variable_is_told_with_the_name_that_is_meant(monkeypatch, tmp_path):
    for name, value in {
        "BULKHEAD_HTPP_PORT": "8081",
        "BULKHEAD_FILE_DIR": "/x",
        "BULKHEAD_LOGLEVEL": "DEBUG",
        "BULKHEAD_OPENAI_KEY_EU": "sk",
        # Other processes', the command line's, and what Kubernetes sets for a release of the name bulkhead.
        "BULKHEAD_WINDOW_TURNS": "5",
        "BULKHEAD_API_KEY": "k",
        "bulkhead_log_format": "json",
        "BULKHEAD_HTTP_PORTS": "tcp://10.0.0.1:8080",
        "BULKHEAD_GRPC_SERVICE_PORT": "50052",
        "BULKHEAD_HTTP_PORT_8081_TCP_ADDR": "10.0.0.1",
        "BULKHEAD_HTTP_SERVICE_HOST": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".env.local").write_text("BULKHEAD_MASTERKEY=sk-1\nOTHER=1\n")
    assert unknown_variables() == {
        "BULKHEAD_FILE_DIR": "BULKHEAD_FILES_DIR",
        "BULKHEAD_HTPP_PORT": "BULKHEAD_HTTP_PORT",
        "BULKHEAD_LOGLEVEL": "BULKHEAD_LOG_LEVEL",
        "BULKHEAD_MASTERKEY": "BULKHEAD_MASTER_KEY",
        "BULKHEAD_OPENAI_KEY_EU": "",
    }


def test_a_process_says_at_its_start_which_variable_it_does_not_know(tmp_path):
    port = testing.free_port()
    env = {"BULKHEAD_HTTP_PORT": str(port), "BULKHEAD_METRICS_PORT": "0", "BULKHEAD_LOG_FORMAT": "json", "BULKHEAD_DRAIN_GRACES": "1"}
    process = testing.Process(testing.python("-m", "services.simulator"), env=env, log=tmp_path / "log")
    try:
        testing.wait_for_port(port, process)
        (line,) = [line for line in process.output().splitlines() if "variable_unknown" in line]
        assert '"variable": "BULKHEAD_DRAIN_GRACES"' in line.replace('":"', '": "')
        assert "BULKHEAD_DRAIN_GRACE_S" in line
    finally:
        process.stop()
