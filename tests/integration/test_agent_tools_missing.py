"""Agents that name tools which do not exist: refused when a run is asked for, and nothing half-done."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import FailedPrecondition, NotFound
from services.orchestrator import tool_check
from services.orchestrator.adapters import tools
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from services.orchestrator.turn import model_step
from tests.integration.real_gateway import answered, gateway_before

TYPO = """
agents:
  quick:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator, send_mial, "calculator2@1.0.0"]}
"""
RIGHT = TYPO.replace("send_mial", "send_mail").replace(', "calculator2@1.0.0"', "")


async def test_a_run_whose_agent_names_a_tool_that_does_not_exist_is_refused_and_leaves_nothing(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", TYPO))
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        with pytest.raises(FailedPrecondition) as refused:
            await client.start("say hi", thread_id="t", run_id="r", idempotency_key="k")
        error = refused.value
        assert (error.reason, error.retryable, error.code.name) == ("AGENT_TOOL_MISSING", False, "FAILED_PRECONDITION")
        assert error.metadata["agent"] == "quick"
        assert error.metadata["tool"] == "send_mial, calculator2@1.0.0"
        with client.calling():
            for nothing in (
                client.threads.GetThread(pb.GetThreadRequest(thread_id="t")),
                client.runs.GetRun(pb.GetRunRequest(run_id="r")),
            ):
                with pytest.raises(NotFound):
                    await nothing
        http = await people.session()
        told = await answered(http.post("/v1/threads/t/runs", json={"input": "hi", "agent": "quick"}), 409)
        assert (told["reason"], told["agent"], told["tool"]) == ("AGENT_TOOL_MISSING", "quick", "send_mial, calculator2@1.0.0")
        told = await answered(
            http.post("/v1/chat/completions", json={"model": "quick", "messages": [{"role": "user", "content": "hi"}]}), 409
        )
        assert told["error"]["code"] == "agent_tool_missing"
        # Once it is mended the same request is a run.
        write_config(tmp_path / "config", RIGHT)

        async def mended():
            try:
                return await client.start("say hi", thread_id="t", run_id="r", idempotency_key="k")
            except FailedPrecondition:
                return None

        run = await testing.eventually_async(mended, "the run is accepted")
        run = run if run is not None else await client.get("r")
        assert (await client.wait(run.run_id)).output_text == "hi"


async def test_a_run_that_was_accepted_before_the_tool_went_is_answered_to_its_key(identities, behind, state_url, tmp_path, monkeypatch):
    monkeypatch.setattr(tool_check, "FRESH_S", 0.0)
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", RIGHT))
    async with served(settings, identities) as client:
        run = await client.wait((await client.start("say hi", thread_id="t", idempotency_key="k")).run_id)
        write_config(tmp_path / "config", TYPO)

        async def refused():
            try:
                await client.start("say ho")
            except FailedPrecondition:
                return True

        await testing.eventually_async(refused, "the changed agent is refused")
        assert await client.start("say hi", thread_id="t", idempotency_key="k") == run


async def test_an_executor_that_is_away_keeps_nobody_from_a_run(identities, state_url, tmp_path, monkeypatch):
    monkeypatch.setattr(model_step, "TOOLS_PATIENCE_S", 0.1)
    async with fakes(identities, without=frozenset({"tool_executor"})) as made:
        settings = settings_for(identities, made, state_url, write_config(tmp_path / "config", TYPO))
        async with served(settings, identities) as client:
            run = await client.wait((await client.start("say hi")).run_id)
            assert run.output_text == "hi"
            warned = [data_of(event)["code"] for event in await client.log(run.run_id) if event.type == "warning"]
            assert warned == ["tools_unavailable"]


@pytest.mark.parametrize(("kept_s", "asked"), [(3_600.0, 1), (0.0, 1 + 3)])
async def test_accepting_asks_the_executor_once_for_all_runs_of_an_agent(
    identities, behind, state_url, tmp_path, monkeypatch, kept_s, asked
):
    # Where answers are kept, the first turn takes the one that accepting was given.
    monkeypatch.setattr(tools, "FRESH_S", kept_s)
    monkeypatch.setattr(tool_check, "FRESH_S", 3_600.0)
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", RIGHT))
    async with served(settings, identities) as client:
        for _ in range(3):
            await client.wait((await client.start("say hi")).run_id)
    assert behind.tools.listed == asked


async def test_what_is_known_of_an_agent_is_renewed_behind_the_back_of_who_comes_next(identities, behind, state_url, tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "FRESH_S", 0.0)
    monkeypatch.setattr(tool_check, "FRESH_S", 0.0)
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", RIGHT))
    async with served(settings, identities) as client:
        for _ in range(3):
            await client.wait((await client.start("say hi")).run_id)
        # Each turn asks, and the first accept did; all more is renewal.
        await testing.eventually_async(lambda: behind.tools.listed > 4, "a later accept had it looked at again")
