"""Plans that callers change while a run works them off."""

import pytest
from bulkhead.llm.v1 import llm_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound
from services.orchestrator.testing.harness import AGENTS, data_of, served, settings_for, write_config

OK = pb.RUN_STATUS_SUCCEEDED
PLANNER = """  plans-first:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [calculator], strategy: plan_execute}
"""
PLAN = b'{"steps": [{"title": "look", "status": "pending"}, {"title": "tell", "status": "pending"}]}'
OWN = [pb.PlanStep(title="look twice", status="pending"), pb.PlanStep(title="tell nobody", status="skipped")]


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config", AGENTS + PLANNER)
    async with served(settings_for(identities, behind, state_url, config), identities) as client:
        yield client


async def planned(client, behind):
    """A run that has a plan and is at its tool, and what its model is told of the plan in each step."""
    told = []

    def reply(request):
        told.append("\n".join(m.text for m in request.messages if m.role == "system"))
        results = sum(m.role == "tool" for m in request.messages)
        if results == 2:
            return llm_pb2.Message(role="assistant", text="done")
        name, arguments = (("update_plan", PLAN), ("calculator", b'{"expression": "1+1"}'))[results]
        return llm_pb2.Message(
            role="assistant", tool_calls=[llm_pb2.ToolCall(tool_call_id=f"c{results}", name=name, arguments_json=arguments)]
        )

    behind.models.reply = reply
    behind.tools.gate.close()
    run = await client.start("go", agent="plans-first")
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 1, "the tool is at work")
    return run, told


async def update(client, run, *, version=1, steps=OWN, key=""):
    with client.calling():
        return await client.runs.UpdatePlan(pb.UpdatePlanRequest(run_id=run.run_id, steps=steps, version=version, idempotency_key=key))


async def test_the_model_goes_on_with_the_callers_plan(client, behind):
    run, told = await planned(client, behind)
    first = await update(client, run, key="k")
    assert (await update(client, run, key="k")).number == first.number
    behind.tools.gate.open()
    assert (await client.wait(run.run_id)).status == OK
    assert "[pending] look twice\n[skipped] tell nobody" in told[-1]
    plans = [data_of(e) for e in await client.log(run.run_id) if e.type == "plan_updated"]
    assert [(plan["version"], plan.get("by"), len(plan["steps"])) for plan in plans] == [(1, None, 2), (2, "user", 2)]
    with pytest.raises(Conflict, match="ended"):
        await update(client, run)
    assert (await update(client, run, key="k")).number == first.number


async def test_of_two_changes_of_one_version_the_first_holds_and_the_second_is_told(client, behind):
    run, told = await planned(client, behind)
    await update(client, run)
    late = await update(client, run, steps=[pb.PlanStep(title="never", status="done")])
    behind.tools.gate.open()
    await client.wait(run.run_id)
    assert "look twice" in told[-1]
    dropped = [data_of(e) for e in await client.log(run.run_id) if e.type == "plan_update_dropped"]
    assert dropped == [{"number": late.number, "version": 2}]


@pytest.mark.parametrize(
    ("steps", "field"),
    [
        ([], "steps"),
        ([pb.PlanStep(title="", status="done")], "steps.0.title"),
        ([pb.PlanStep(title="x" * 501, status="done")], "steps.0.title"),
        ([pb.PlanStep(title="x", status="later")], "steps.0.status"),
        ([pb.PlanStep(title="x", status="done")] * 51, "steps"),
    ],
)
async def test_a_plan_that_is_none_is_refused_and_changes_nothing(client, behind, steps, field):
    run, _ = await planned(client, behind)
    with pytest.raises(InvalidInput) as refused:
        await update(client, run, steps=steps)
    assert [violation.field for violation in refused.value.violations] == [field]
    behind.tools.gate.open()
    await client.wait(run.run_id)
    assert [data_of(e)["version"] for e in await client.log(run.run_id) if e.type == "plan_updated"] == [1]


async def test_what_no_plan_can_be_changed_in(client, behind):
    run, _ = await planned(client, behind)
    with pytest.raises(Conflict) as refused:
        await update(client, run, version=7)
    assert (refused.value.reason, refused.value.metadata["version"]) == ("PLAN_CHANGED", "1")
    with pytest.raises(NotFound):
        await update(client, pb.Run(run_id="run_of_nobody"))
    await update(client, run, key="k")
    with pytest.raises(IdempotencyMismatch):
        await update(client, run, steps=[pb.PlanStep(title="other", status="done")], key="k")
    behind.tools.gate.open()
    await client.wait(run.run_id)
    behind.models.gate.close()
    plain = await client.start("say one two three four", agent="quick")
    with pytest.raises(Conflict) as refused:
        await update(client, plain)
    assert refused.value.reason == "RUN_HAS_NO_PLAN"
    behind.models.gate.open()
