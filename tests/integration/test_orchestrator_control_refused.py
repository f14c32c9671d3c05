"""What users of a run at work are refused by name, of which then nothing happens, and what they are not asked."""

import json

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict
from services.orchestrator.testing.fakes import UNKNOWN
from services.orchestrator.testing.harness import served, settings_for, types, write_config

WORKFLOW = """
agents:
  flow:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        strategy: workflow
        workflow:
          steps:
            - {name: ask, kind: model, prompt: "say one two three"}
            - {name: over, kind: end, output: "{steps.ask.output}"}
"""
SUPERVISOR = """
  other:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m}
  mailer:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [send_mail]}
  lead:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: supervisor, agents: [{name: other}]}
"""


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config", WORKFLOW + SUPERVISOR)
    async with served(settings_for(identities, behind, state_url, config), identities) as client:
        yield client
        behind.models.gate.open()


async def refused(doing):
    with pytest.raises(Conflict) as caught:
        await doing
    return caught.value


async def held(client, behind, text, agent):
    """A run that waits in the middle of its answer, or whose child does."""
    obedient = behind.models.reply

    def reply(request):
        if request.messages[-1].text.startswith("say one"):
            behind.models.gate.close()
        return obedient(request)

    behind.models.reply = reply
    run = await client.start(text, agent=agent)
    await testing.eventually_async(lambda: behind.models.gate.waiting == 1, "the model is held midway")
    return run


async def test_a_workflow_is_neither_stopped_nor_steered(client, behind):
    run = await held(client, behind, "{}", "flow")
    said = [pb.InputMessage(role="user", text="say no")]
    with client.calling():
        for doing in (
            client.runs.StopGeneration(pb.StopGenerationRequest(run_id=run.run_id)),
            client.runs.SteerRun(pb.SteerRunRequest(run_id=run.run_id, text="say no")),
            client.runs.CreateRun(pb.CreateRunRequest(thread_id=run.thread_id, agent="flow", input=said, on_busy=pb.ON_BUSY_STEER)),
        ):
            assert (await refused(doing)).reason == "RUN_IS_WORKFLOW"
    behind.models.gate.open()
    assert (await client.wait(run.run_id)).output_text == "one two three"
    assert not [kind for kind in types(await client.log(run.run_id)) if kind.startswith(("steer", "stop"))]


async def test_a_call_that_another_agent_works_for_is_ended_with_that_agents_run(client, behind):
    text = "\n".join(["tools", f"tool delegate_to_other {json.dumps({'task': 'say one two three'})}"])
    run = await held(client, behind, text, "lead")
    with client.calling():
        end = pb.CancelToolCallRequest(run_id=run.run_id, call_id="c0", continuation=pb.TOOL_CALL_CONTINUATION_SKIP)
        error = await refused(client.runs.CancelToolCall(end))
    assert (error.reason, error.metadata["run_id"]) == ("TOOL_CALL_IS_RUN", f"{run.run_id}.1.0")
    await client.cancel(f"{run.run_id}.1.0")
    await client.wait(f"{run.run_id}.1.0")
    behind.models.gate.open()
    assert "agent.cancelled" in (await client.wait(run.run_id)).output_text


async def test_a_stop_that_is_sent_again_is_the_same_stop_whatever_the_run_does_now(client, behind):
    run = await held(client, behind, "say one two three", "other")
    stop = pb.StopGenerationRequest(run_id=run.run_id, idempotency_key="k")
    with client.calling():
        first = await client.runs.StopGeneration(stop)
        await client.wait(run.run_id)
        again = await client.runs.StopGeneration(stop)
    assert (first.number, again.number) == (1, 1)


async def test_who_has_a_call_skipped_is_not_asked_what_became_of_it(client, behind):
    behind.tools.gate.close()
    run = await client.start('tool send_mail {"to": "bob"}', agent="mailer")
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 1, "the tool is at work")
    behind.tools.forced[f"{run.run_id}/1/0"] = UNKNOWN
    with client.calling():
        skip = pb.TOOL_CALL_CONTINUATION_SKIP
        await client.runs.CancelToolCall(pb.CancelToolCallRequest(run_id=run.run_id, call_id="c0", continuation=skip))

    async def told():
        return {"tool_call_failed", "interrupt_raised"} & set(types(await client.log(run.run_id)))

    assert await testing.eventually_async(told, "the outcome is told") == {"tool_call_failed"}
    behind.tools.gate.open()
    assert "tool_outcome_unknown" in (await client.wait(run.run_id)).output_text
