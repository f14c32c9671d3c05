"""Where personal data is not stored in plain text: who keeps such does not start without keys, and says how to make them."""

import json
import subprocess

import pytest

from services.cli.up.credentials import ensure_identity_keys
from services.cli.up.environment import ENVELOPE_KEYS, Wiring
from services.cli.up.plan import make_plan
from services.cli.up.workspace import Workspace
from services.common import testing
from services.common.envelope import RootKeys
from services.common.settings import MAKE_ROOT_KEYS
from services.common.testing import ROOT
from services.memory.settings import Settings as Memory
from services.orchestrator.settings import Settings as Orchestrator

KEEPERS = pytest.mark.parametrize("keeper", [Orchestrator, Memory], ids=lambda cls: cls.service_name)


def refused(keeper, **settings):
    return [problem for problem in keeper(_env_file=None, **settings).problems() if ENVELOPE_KEYS in problem]


@KEEPERS
@pytest.mark.parametrize("settings", [{"env": "staging"}, {"env": "prod"}, {"env": "dev", "envelope_keys_required": True}])
def test_one_line_names_the_variable_and_how_to_make_a_file(keeper, settings):
    (problem,) = refused(keeper, **settings)
    assert problem.startswith("BULKHEAD_ENVELOPE_KEYS_FILE is required")
    assert MAKE_ROOT_KEYS in problem


@KEEPERS
@pytest.mark.parametrize("settings", [
    {"env": "local"}, {"env": "dev"}, {"env": "test"}, {"env": "prod", "envelope_keys_file": "keys.json"},
    {"env": "prod", "envelope_keys_required": False},
])  # fmt: skip
def test_elsewhere_and_with_a_file_nothing_is_asked_for(keeper, settings):
    assert refused(keeper, **settings) == []


def test_what_it_says_makes_a_file_that_can_be_used(tmp_path, monkeypatch):
    # Not every machine that runs tests has it.
    openssl = tmp_path / "openssl"
    openssl.write_text('#!/bin/sh\n[ "$*" = "rand -base64 32" ] && head -c 32 /dev/urandom | base64\n')
    openssl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    subprocess.run(MAKE_ROOT_KEYS, shell=True, cwd=tmp_path, check=True)
    assert RootKeys.from_file(tmp_path / "keys.json").newest[:2] == "20"


@pytest.mark.parametrize("page", ["docs/erasure.md", "docs/kubernetes.md", "charts/bulkhead/templates/NOTES.txt"])
def test_docs_and_charts_show_the_same_line(page):
    assert MAKE_ROOT_KEYS in (ROOT / page).read_text()


@pytest.mark.system
@pytest.mark.parametrize("service", ["orchestrator", "memory"])
@pytest.mark.parametrize("keys", [None, ""])
def test_a_process_ends_at_once_and_prints_it(tmp_path, service, keys):
    workspace = Workspace(tmp_path / "data")
    workspace.open()
    ensure_identity_keys(workspace.keys)
    workspace.addresses.write_text(json.dumps({}))
    wiring = Wiring(workspace, make_plan(port_base=testing.free_port_base()), ROOT / "k8s/environments/local/config", {}, None)
    planned = wiring.plan.first(service)
    env = {**wiring.variables(planned, planned.ports), "BULKHEAD_ENV": "prod", "BULKHEAD_STATE_REPLICAS": "1", "PATH": "/usr/bin"}
    env.pop(ENVELOPE_KEYS)
    if keys is not None:
        env[ENVELOPE_KEYS] = keys
    ended = subprocess.run(wiring.command(planned, planned.ports), env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "BULKHEAD_ENVELOPE_KEYS_FILE is required" in ended.stderr
    assert MAKE_ROOT_KEYS in ended.stderr
