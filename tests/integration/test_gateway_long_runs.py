"""Requests that take longer than an internal token lives: what the gateway does for them then is still done in their name."""

import asyncio

import pytest

from services.common import testing
from services.gateway import running
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.integration import short_tokens
from tests.integration.real_gateway import answered, gateway_before

# A token takes its time to end.
pytestmark = pytest.mark.system
# The model waits behind the second one.
WORDS = "one two three four"


@pytest.fixture
async def real(identities, behind, state_url, tmp_path, monkeypatch):
    """A user's session before a real orchestrator whose model waits, with tokens that end within seconds."""
    short_tokens.shorten(monkeypatch, identities)
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    behind.models.gate.close()
    async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
        yield await people.session()


async def at_work(behind):
    await testing.eventually_async(lambda: behind.models.gate.waiting, "the run is at work")


async def test_a_client_that_leaves_late_still_cancels_its_run(real, behind, identities):
    body = {"input": f"say {WORDS}", "stream": True, "on_disconnect": "cancel"}
    answer = await real.post("/v1/threads/t/runs", json=body)
    assert answer.status == 200
    await at_work(behind)
    await short_tokens.ended(identities)
    answer.close()

    async def cancelled():
        runs = (await answered(real.get("/v1/threads/t/runs"), 200))["data"]
        return runs[0]["status"] == "cancelled"

    await testing.eventually_async(cancelled, "the run is cancelled")


async def test_a_long_wait_ends_with_the_run(real, behind, identities, monkeypatch):
    seen, has_ended = [], running.has_ended
    monkeypatch.setattr(running, "WAIT_SLICE_S", 0.3)
    monkeypatch.setattr(running, "has_ended", lambda run: seen.append(run) or has_ended(run))
    headers = {"prefer": "wait=60"}
    waiting = asyncio.ensure_future(answered(real.post("/v1/threads/t/runs", json={"input": f"say {WORDS}"}, headers=headers), 200))
    await at_work(behind)
    await short_tokens.ended(identities)
    before = len(seen)
    await testing.eventually_async(lambda: waiting.done() or len(seen) > before + 1, "the run is looked at again")
    behind.models.gate.open()
    assert (await waiting)["output_text"] == WORDS
