"""`bulkhead runs plan` and `cancel-tool` at a gateway before a real orchestrator: the run goes on with what was said."""

import pytest

from services.orchestrator.testing.harness import AGENTS, served, settings_for, write_config
from tests.integration.real_gateway import gateway_before
from tests.integration.test_orchestrator_plans import PLANNER, planned
from tests.unit.cli.command_line import command


@pytest.fixture
async def client(identities, behind, state_url, tmp_path, monkeypatch):
    """The orchestrator's client; commands find the gateway."""
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", AGENTS + PLANNER))
    async with served(settings, identities) as made, gateway_before(identities, state_url, settings.grpc_port) as people:
        session = await people.session()
        monkeypatch.setenv("BULKHEAD_URL", str(session._base_url).rstrip("/"))
        monkeypatch.setenv("BULKHEAD_API_KEY", session.headers["authorization"].removeprefix("Bearer "))
        yield made
        behind.tools.gate.open()


async def test_a_run_goes_on_by_the_plan_and_with_the_result_that_somebody_gave_it(client, behind):
    run, seen = await planned(client, behind)
    (stands,) = (await command("runs", "plan", run.run_id, "--json")).json()
    assert (stands["version"], [step["title"] for step in stands["steps"]]) == (1, ["look", "tell"])
    lost = await command("runs", "plan", run.run_id, "--mark", "1=done", "--version", "7", status=6)
    assert "look with `bulkhead runs plan RUN`" in lost.err
    await command("runs", "plan", run.run_id, "--mark", "1=done", "--title", "2=tell all", "--add", "rest")
    result = ("--result", '{"value": "from a person"}')
    await command("runs", "cancel-tool", run.run_id, "c1", "substitute", *result)
    # The gate stays shut: the call is not waited for.
    await client.wait(run.run_id)
    assert "[done] look\n[pending] tell all\n[pending] rest" in seen[-1]
    assert "from a person" in str([m.text for m in behind.models.calls[-1].request.messages])
    (stands,) = (await command("runs", "plan", run.run_id, "--json")).json()
    assert (stands["version"], [step["title"] for step in stands["steps"]]) == (2, ["look", "tell all", "rest"])
    assert (await command("runs", "cancel-tool", run.run_id, "c1", "skip", status=6)).err.startswith("bulkhead: the run has ended")
