"""`make chaos` in small: clients of every kind while orchestrators are killed and stand still, and no promise is broken."""

import pytest

from scripts.chaos import chaos
from scripts.chaos_load import MIX
from scripts.chaos_store import Single

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FAULTS, CLIENTS = 8, 10


async def test_clients_of_every_kind_while_orchestrators_are_lost(monkeypatch, capsys):
    monkeypatch.setattr("scripts.chaos.TOLD_EVERY_S", 1.0)
    found = await chaos(FAULTS, CLIENTS, {"kill": 3, "stop": 1}, MIX, Single)
    assert f"of {FAULTS} strikes" in capsys.readouterr().err
    assert found["violations"] == {}, found["examples"]
    assert found["logged_errors"] == {}
    assert set(found["threads"]) == set(MIX)
    # Whatever is judged was there to be judged.
    for kind in ("child runs", "webhook deliveries", "runs of a schedule"):
        assert found["answered"][kind]
    assert any(kind.startswith("decisions") for kind in found["answered"])
    assert found["taken_over"]["runs"]
