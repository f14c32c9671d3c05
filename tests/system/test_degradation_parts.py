"""The degradation ladder with real parts that are really taken away: memory and tool executor killed, models that fail."""

import os
import signal
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import pytest
import yaml
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.llm_gateway.app import build as build_llm_gateway
from services.llm_gateway.settings import Settings as LlmSettings
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config
from services.simulator.app import build as build_simulator
from services.simulator.settings import Settings as SimulatorSettings

pytestmark = pytest.mark.system

# What a model answers at most, and its prices a token: the longest answer costs far more than any run of these tests.
LONGEST = 4_000
PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-5}
OK, FAILED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED
AGENTS = """
agents:
  recalls: {current: "1", versions: {"1": {prompt: helper.md, model: main, recall: {}}}}
  counts: {current: "1", versions: {"1": {prompt: helper.md, model: main, tools: [calculator]}}}
  plain: {current: "1", versions: {"1": {prompt: helper.md, model: main}}}
  keeps: {current: "1", versions: {"1": {prompt: helper.md, model: main, degradation: {stale_answers_s: 3600}}}}
  escalates:
    current: "1"
    versions: {"1": {prompt: helper.md, model: main, degradation: {hand_off: {target: support, text: "Over to {label}."}}}}
"""


@asynccontextmanager
async def behind(identities, state_url, tmp_path, missing):
    """An orchestrator among fakes without one of them, whose address a real one may take."""
    async with fakes(identities, without=frozenset({missing})) as made:
        settings = settings_for(identities, made, state_url, write_config(tmp_path / "config", AGENTS))
        async with served(settings, identities) as client:
            yield client, made.addresses[missing]


@contextmanager
def killable(service, address, identities, folder, **env):
    """A real service at `address`, and what kills it."""
    own = identities.settings(service)
    values = {
        "ENV": "test", "GRPC_PORT": address.rpartition(":")[2], "METRICS_PORT": "0", "DRAIN_GRACE_S": "1", **env,
        **{name.upper(): str(value) for name, value in own.items() if value is not None},
    }  # fmt: skip
    log = folder / f"{service}-{os.urandom(4).hex()}.log"
    variables = {f"BULKHEAD_{name}": value for name, value in values.items()}
    process = testing.Process(testing.python("-m", f"services.{service}"), env=variables, log=log)
    try:
        yield process
    finally:
        process.stop()


async def ended(client, text, agent, **fields):
    run = await client.wait((await client.start(text, agent=agent, **fields)).run_id)
    log = await client.log(run.run_id)
    assert sum(kind in ("run_finished", "run_failed", "run_cancelled") for kind in types(log)) == 1
    return run, [(data_of(e)["code"], data_of(e)["attributes"]["rung"]) for e in log if e.type == "warning"]


async def test_a_turn_goes_on_when_memory_is_killed_and_its_turn_arrives_when_memory_is_back(identities, state_url, milvus_uri, tmp_path):
    async with behind(identities, state_url, tmp_path, "memory") as (client, address):
        env = {"STATE_URL": state_url, "MILVUS_URI": milvus_uri, "LLM_GATEWAY_ADDRESS": "127.0.0.1:9", "QUERY_EMBEDDING_TIMEOUT_S": "0.1"}
        with killable("memory", address, identities, tmp_path, **env) as memory:
            await testing.wait_ready(address)
            run, warnings = await ended(client, "say one", "recalls", thread_id="t")
            assert (run.status, "without_memory" in {rung for _, rung in warnings}) == (OK, False)
            memory.signal(signal.SIGKILL)
            memory.wait()
            run, warnings = await ended(client, "echo context", "recalls", thread_id="t")
            assert (run.status, run.output_text) == (OK, "user:echo context")
            assert ("memory_unavailable", "without_memory") in warnings
        with killable("memory", address, identities, tmp_path, **env):
            await testing.wait_ready(address)
            async with testing.dialer("orchestrator", {"memory": address}) as dialer:
                sessions = memory_pb2_grpc.SessionServiceStub(dialer.channel("memory"))

                async def remembered():
                    # A turn that asks would push older ones out of the window.
                    with testing.calling(identities):
                        found = await sessions.Recall(memory_pb2.RecallRequest(session_id="t", query="what was said"))
                    return [part.text for part in found.parts] == ["say one", "echo context"]

                await testing.eventually_async(remembered, "both turns are there")
            run, _ = await ended(client, "echo context", "recalls", thread_id="t")
            assert "user:say one" in run.output_text
            assert "assistant:user:echo context" in run.output_text
            run, warnings = await ended(client, "echo context", "recalls", thread_id="t", reset_memory=True)
            assert (run.output_text, "memory_reset" in {rung for _, rung in warnings}) == ("user:echo context", False)
            run, _ = await ended(client, "echo context", "recalls", thread_id="t")
            assert "say one" not in run.output_text


async def test_a_turn_goes_on_when_the_tool_executor_is_killed(identities, state_url, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/tools.yaml").write_text("tools: [{name: calculator}]")
    asked = 'tool calculator {"expression": "6*7"}'
    async with behind(identities, state_url, tmp_path, "tool_executor") as (client, address):
        with killable("tool_executor", address, identities, tmp_path, STATE_URL=state_url, CONFIG_DIR=str(tmp_path / "config")) as tools:
            await testing.wait_ready(address)
            run, warnings = await ended(client, asked, "counts")
            assert (run.status, "42" in run.output_text, warnings) == (OK, True, [])
            tools.signal(signal.SIGKILL)
            tools.wait()
            # What was on offer is still known, so the model asks, and is told.
            run, warnings = await ended(client, asked, "counts")
            assert (run.status, warnings) == (OK, [("tool_unavailable", "tell_model")])
            assert "tool_unavailable" in run.output_text
    async with behind(identities, state_url, tmp_path / "second", "tool_executor") as (client, _):
        run, warnings = await ended(client, "say hi", "counts")
        assert (run.output_text, warnings) == ("hi", [("tools_unavailable", "without_tools")])


@asynccontextmanager
async def models(identities, state_url, folder, address):
    """The real model gateway over two models of a real simulator; answers what orders a fault there."""
    port = testing.free_port()
    base = f"http://127.0.0.1:{port}/v1"
    entries = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{model}", "api_base": base},
            "model_info": {"mode": "chat", "trusted": True, "max_output_tokens": LONGEST, **PRICES},
        }
        for name, model in (("main", "sim-1"), ("backup", "sim-2"))
    ]
    content = {"model_list": entries, "router_settings": {"allowed_fails": 1000, "num_retries": 1}}
    folder.mkdir()
    (folder / "models.yaml").write_text(yaml.safe_dump(content))
    settings = LlmSettings(
        env="test", grpc_port=int(address.rpartition(":")[2]), metrics_port=0, config_dir=folder, state_url=state_url, drain_grace_s=1,
        model_retry_base_s=0.01, store_timeout_ms=5000, price_unknown="zero", **identities.settings("llm_gateway"),
    )  # fmt: skip
    simulator = SimulatorSettings(env="test", http_port=port, metrics_port=0, drain_grace_s=1)
    async with testing.running(simulator, build_simulator), testing.running(settings, build_llm_gateway), aiohttp.ClientSession() as http:

        async def order(**match):
            async with http.post(f"http://127.0.0.1:{port}/sim/faults", json={"fault": "status=500", "match": match}) as answer:
                assert answer.status in (200, 201), await answer.text()

        yield order


async def test_models_that_fail_are_passed_over_then_an_old_answer_helps_and_then_nobody_but_a_person(identities, state_url, tmp_path):
    async with behind(identities, state_url, tmp_path, "llm_gateway") as (client, address):
        async with models(identities, state_url, tmp_path / "models", address) as order:
            await testing.wait_ready(address)
            fresh, warnings = await ended(client, "What is 6 * 7?", "keeps")
            assert (fresh.status, warnings) == (OK, [])
            await order(model="sim-1")
            run, warnings = await ended(client, "Tell me a story", "plain")
            assert run.status == OK
            assert ("model_fallback", "other_model") in warnings
            await order(model="sim-2")
            run, warnings = await ended(client, "What is 6 * 7?", "keeps")
            assert (run.status, run.output_text) == (OK, fresh.output_text)
            assert ("stale_answer", "stale_answer") in warnings
            run, warnings = await ended(client, "What is 6 * 7?", "plain")
            assert (run.status, run.error.message) == (FAILED, "The model is not available at the moment. Please try again later.")
            run, warnings = await ended(client, "What is 6 * 7?", "escalates")
            assert (run.status, run.finish_reason, run.output_text) == (OK, "handed_off", "Over to a person.")
            assert warnings[-1] == ("handed_off", "human")


async def test_a_run_costs_no_more_than_its_money_and_answers_shortly_where_little_is_left(identities, state_url, tmp_path):
    asked = "\n".join(f'tool calculator {{"expression": "{number}*7"}}' for number in range(5))
    async with behind(identities, state_url, tmp_path, "llm_gateway") as (client, address):
        async with models(identities, state_url, tmp_path / "models", address):
            await testing.wait_ready(address)
            free, warnings = await ended(client, asked, "counts")
            takes = free.usage.cost_microusd
            assert (free.status, warnings) == (OK, [])
            assert takes < LONGEST * PRICES["output_cost_per_token"] * 1e6
            # Enough for what it needs, and not for the longest answer that could come.
            run, warnings = await ended(client, asked, "counts", limits=pb.RunLimits(max_cost_microusd=4 * takes))
            assert (run.status, run.usage.cost_microusd) == (OK, takes)
            assert warnings == [("answer_shortened", "shorter_answer")]
            for most in range(takes // 10, takes, takes // 10):
                run, _ = await ended(client, asked, "counts", limits=pb.RunLimits(max_cost_microusd=most))
                assert run.usage.cost_microusd <= most
                assert run.status == OK or run.error.reason == "COST_LIMIT"
