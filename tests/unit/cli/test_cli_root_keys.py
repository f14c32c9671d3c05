"""Root keys of personal data: `up` makes them once, never over data that others encrypted, and `doctor` misses them."""

import json

import pytest

from services.cli.doctor import encryption
from services.cli.failure import CommandFailure
from services.cli.up.credentials import ensure_root_keys, refuse_encrypted
from services.cli.up.environment import ENVELOPE_KEYS, Wiring
from services.cli.up.plan import make_plan
from services.cli.up.workspace import Workspace
from services.common import testing
from services.common.envelope import Envelope, RootKeys


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "data")
    made.open()
    return made


def test_they_are_made_once_kept_private_and_can_be_used(workspace):
    path = workspace.envelope_keys
    ensure_root_keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.is_relative_to(workspace.root)
    before = path.read_bytes()
    assert RootKeys.from_file(path).newest
    ensure_root_keys(path)
    assert path.read_bytes() == before


async def test_none_are_made_over_data_that_is_encrypted_with_others(workspace, valkey, state_url):
    path = workspace.envelope_keys
    await valkey.set("t:{acme/t}:x", "plain")
    await refuse_encrypted(path, state_url)
    ensure_root_keys(path)
    await Envelope(valkey, RootKeys.from_file(path)).seal("acme", "ana", "event", b"{}")
    path.unlink()
    with pytest.raises(CommandFailure, match=r"envelope.json is missing, and data is encrypted with it: put it back"):
        await refuse_encrypted(path, state_url)
    with pytest.raises(CommandFailure, match="cannot be told"):
        await refuse_encrypted(path, f"redis://127.0.0.1:{testing.free_port()}/0")


@pytest.mark.parametrize(("base", "given"), [
    ({}, True), ({ENVELOPE_KEYS: "/mine/keys.json"}, "/mine/keys.json"), ({ENVELOPE_KEYS: ""}, ""),
])  # fmt: skip
def test_the_two_services_that_keep_personal_data_are_given_the_same_file_unless_the_user_names_another(workspace, base, given):
    wiring = Wiring(workspace, make_plan(port_base=20000), workspace.root, base, 20000)
    wanted = str(workspace.envelope_keys) if given is True else given
    for planned in wiring.plan.processes:
        variables = wiring.variables(planned, planned.ports)
        if planned.name in ("orchestrator", "memory"):
            assert variables[ENVELOPE_KEYS] == wanted
        else:
            assert variables.get(ENVELOPE_KEYS) == base.get(ENVELOPE_KEYS)


def test_doctor_names_keys_that_are_missing_spoilt_or_switched_off(workspace, tmp_path):
    assert encryption(workspace, {}) == []
    workspace.processes.write_text(json.dumps({"llm_gateway-0": {}, "valkey_state-0": {}}))
    assert encryption(workspace, {}) == []
    workspace.processes.write_text(json.dumps({"orchestrator-1": {}}))

    def row(**variables):
        (found,) = encryption(workspace, variables)
        return found

    missing = row()
    assert (missing.good, str(workspace.envelope_keys) in missing.found, "put it back" in missing.way_out) == (False, True, True)
    ensure_root_keys(workspace.envelope_keys)
    assert row().good
    assert RootKeys.from_file(workspace.envelope_keys).newest in row().found
    off = row(**{ENVELOPE_KEYS: ""})
    assert (off.good, "plain text" in off.found) == (False, True)
    mine = tmp_path / "mine.json"
    assert str(mine) in row(**{ENVELOPE_KEYS: str(mine)}).found
    mine.write_text("{}")
    assert not row(**{ENVELOPE_KEYS: str(mine)}).good
    mine.write_bytes(workspace.envelope_keys.read_bytes())
    assert row(**{ENVELOPE_KEYS: str(mine)}).good
