"""Events of real runs, as the gateway sends them, against the JSON Schema that it serves, of which nothing may be missing."""

import aiohttp
import orjson
import pytest
from bulkhead.common.v1 import common_pb2

from services.common import testing
from services.common.errors import UpstreamFailed
from services.gateway.surfaces.schemas.events import DATA
from services.orchestrator.testing.harness import AGENTS, served, settings_for, write_config
from tests.contract.event_schema import problems
from tests.integration.real_gateway import answered, gateway_before
from tests.integration.test_orchestrator_plans import PLANNER, planned

MAIL = 'tool send_mail {"to":"bob"}'
# The rest comes of losses, of guardrails, of documents, of agents that hand over, of commands that come too late, and of tools that show
# something (test_orchestrator_content.py).
SEEN = set(DATA) - {
    "image", "table", "code_block", "chart", "audio", "file",
    "attempt_superseded", "log_gap", "thread_deleted", "guard_triggered", "handoff_requested", "citation", "steer_dropped",
    "interrupt_updated", "tool_cancel_ignored",
}  # fmt: skip


@pytest.fixture
async def world(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config", AGENTS + PLANNER)
    settings = settings_for(identities, behind, state_url, config)
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        yield client, await people.session()


async def held(client, behind, text, **fields):
    """A run that is at its tool."""
    behind.tools.gate.close()
    before = behind.tools.gate.waiting
    run = await client.start(text, **fields)
    await testing.eventually_async(lambda: behind.tools.gate.waiting > before, "the tool is at work")
    return run.run_id


async def cancel_call(http, behind, run_id, continuation):
    """Has the call at work cancelled, and waits for that."""
    before = len(behind.tools.cancels)
    await answered(http.post(f"/v1/runs/{run_id}/tool-calls/c0/cancel", json={"continuation": continuation}), 202)
    await testing.eventually_async(lambda: len(behind.tools.cancels) > before, "the call is cancelled")


async def released(client, behind, *runs):
    behind.tools.gate.open()
    for run_id in runs:
        await client.wait(run_id)


async def steered(client, http, behind):
    """A call of a run is cancelled, to be made again, and the run is steered; another run is stopped."""
    run_id = await held(client, behind, 'tool calculator {"expression":"1+2"}', thread_id="steered")
    await answered(http.post(f"/v1/runs/{run_id}/steer", json={"text": "say instead"}), 202)

    await cancel_call(http, behind, run_id, "retry")
    await released(client, behind, run_id)
    behind.models.gate.close()
    run = await client.start("say one two three four", thread_id="stopped")
    await testing.eventually_async(lambda: behind.models.gate.waiting, "its model speaks")
    await answered(http.post(f"/v1/runs/{run.run_id}/stop"), 202)
    await released(client, behind, run.run_id)
    behind.models.gate.open()


async def decided(client, http):
    """Approvals that are granted with other arguments, and refused."""
    for number, body in enumerate(({"verb": "edit", "arguments": {"to": "eve"}}, {"verb": "reject", "reason": "no"})):
        run = await client.start(MAIL, agent="careful", thread_id=f"asks-{number}")
        (question,) = await testing.eventually_async(lambda run=run: client.asked(run.run_id), "it asks")
        await answered(http.post(f"/v1/approvals/{question.approval_id}/decision", json=body), 200)
        await client.wait(run.run_id)


async def replanned(client, http, behind):
    """A plan of the model's, one of the caller's, and one that comes too late."""
    obedient = behind.models.reply
    run, _ = await planned(client, behind)
    steps = [{"title": "look", "status": "done"}]
    for _ in range(2):
        await answered(http.put(f"/v1/runs/{run.run_id}/plan", json={"version": 1, "steps": steps}), 202)
    await released(client, behind, run.run_id)
    behind.models.reply = obedient
    return run.thread_id


async def changed(http):
    """A thread that is forked and taken back."""
    await answered(http.post("/v1/threads/simple/fork", json={"thread_id": "branch"}), 201)
    await answered(http.post("/v1/threads/simple/rollback", json={"to": {"beginning": True}}), 200)


async def test_whatever_runs_tell_is_what_the_schema_says(world, behind):
    client, http = world
    behind.tools.progress = True
    behind.tools.warnings = [common_pb2.Warning(code="slow", user_message="It was slow.")]
    simple = await client.start(
        'tools\ntool calculator {"expression":"1+2"}\n' + MAIL, agent="helper", thread_id="simple", reset_memory=True
    )
    await client.wait(simple.run_id)
    await answered(http.post("/v1/feedback", json={"run_id": simple.run_id, "rating": 2, "corrected_answer": "4"}), 201)
    behind.tools.failure = UpstreamFailed("away")
    await client.wait((await client.start(MAIL, thread_id="failing")).run_id)
    behind.tools.failure = None
    cancelled = await held(client, behind, MAIL, thread_id="cancelled")
    await answered(http.post(f"/v1/runs/{cancelled}/cancel"), 202)
    await released(client, behind, cancelled)
    await steered(client, http, behind)
    await decided(client, http)
    threads = [await replanned(client, http, behind)]
    asked = orjson.dumps({"task": "say fresh fish"}).decode()
    lead = await client.start(f"tool delegate_to_quick {asked}", agent="lead", thread_id="led")
    await client.wait(lead.run_id)
    ended = await held(client, behind, MAIL, thread_id="ended")
    await cancel_call(http, behind, ended, "fail")
    await released(client, behind, ended)
    await changed(http)
    threads += ["simple", "branch", "failing", "cancelled", "steered", "stopped", "asks-0", "asks-1", "led", "ended"]
    events = []
    for thread_id in threads:
        events += (await answered(http.get(f"/replay/{thread_id}"), 200))["events"]
    assert problems(events) == {}
    assert SEEN - {event["type"] for event in events} == set()


async def test_a_stream_sends_what_a_replay_has(world):
    client, http = world
    run = await client.start("say one two", thread_id="t")
    await client.wait(run.run_id)
    async with http.get(f"/v1/runs/{run.run_id}/events", timeout=aiohttp.ClientTimeout(total=testing.PATIENCE_S)) as response:
        lines = (await response.text()).split("\n")
    streamed = [orjson.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert streamed[-1]["type"] == "run_finished"
    assert problems(streamed) == {}
    assert streamed == (await answered(http.get("/replay/t"), 200))["events"]


async def test_calls_that_a_client_is_to_make_are_told_as_the_schema_says(world):
    _, http = world
    tool = {"name": "ask_user", "description": "Asks.", "parameters": {"type": "object", "properties": {"question": {"type": "string"}}}}
    asking = {"input": 'tool ask_user {"question":"which one?"}', "agent": "quick", "client_tools": [tool], "tool_choice": "auto"}

    async def run(body):
        return await answered(http.post("/v1/threads/asks/runs", json=body, headers={"prefer": "wait=30"}), 200)

    (call,) = (await run(asking))["client_tool_calls"]
    results = [{"role": "tool", "tool_call_id": call["tool_call_id"], "content": "the red one"}]
    assert (await run({**asking, "input": results}))["finish_reason"] == "stop"
    events = (await answered(http.get("/replay/asks"), 200))["events"]
    assert problems(events) == {}
    (raised,) = [event["data"] for event in events if event["type"] == "interrupt_raised"]
    assert (raised["kind"], [one["name"] for one in raised["calls"]]) == ("client_tools", ["ask_user"])
    assert [event["data"].get("client_tool_calls") for event in events if event["type"] == "run_finished"] == [raised["calls"], None]
