"""A supervisor's step in which some calls are other agents' and some need an approval, with a real tool executor behind it."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.children import ending
from services.orchestrator.testing.harness import data_of, types
from services.orchestrator.turn import supervisor
from tests.integration import approvals
from tests.integration.approvals import APPROVE, REJECT, call, desk

LEAD = """
  lead:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        strategy: supervisor
        tools: [wipe, look]
        agents: [{name: careful}]
        limits: {max_tool_calls: 10, max_steps: 10}
  guarded:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: supervisor, tools: [look], agents: [{name: careful}], approval: {when: always}}
  planner:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: plan_execute, tools: [look], approval: {when: always}}
"""
PLAN = {"steps": [{"title": "look", "status": "pending"}]}
WAITING, OK = pb.RUN_STATUS_WAITING, pb.RUN_STATUS_SUCCEEDED


@pytest.fixture
async def site(identities, state_url, tmp_path, monkeypatch):
    monkeypatch.setattr(approvals, "AGENTS", approvals.AGENTS + LEAD)
    async with desk(identities, state_url, tmp_path) as made:
        yield made
        made.behind.models.gate.open()


def held_child(site):
    """Children wait in the middle of their answer."""
    obedient = site.behind.models.reply

    def reply(request):
        if request.messages[-1].text.startswith("say one"):
            site.behind.models.gate.close()
        return obedient(request)

    site.behind.models.reply = reply


def delegated(task):
    return "delegate_to_careful", {"task": task}


@pytest.mark.parametrize("people_first", [True, False])
@pytest.mark.parametrize("decision", [APPROVE, REJECT])
async def test_children_and_people_answer_in_any_order(site, people_first, decision):
    held_child(site)
    run = await site.client.start(call(("wipe", {"n": 1}), delegated("say one two three"), ("look", {"n": 2})), agent="lead")
    (asked,) = await site.asked(run.run_id)
    assert (site.sent(), len(site.sent("/look"))) == ([], 1)
    if people_first:
        await site.decide(asked.approval_id, **decision)
    site.behind.models.gate.open()
    child = await site.client.wait(f"{run.run_id}.1.1")
    assert (child.status, child.output_text) == (OK, "one two three")
    if not people_first:
        await ended_for_parent(site, run.run_id)
        await site.decide(asked.approval_id, **decision)
    ended = await site.client.wait(run.run_id)
    assert ended.status == OK
    assert '"answer":"one two three"' in ended.output_text
    assert site.sent() == ([{"n": 1}] if decision is APPROVE else [])
    log = types(await site.client.log(run.run_id))
    assert [log.count(kind) for kind in ("interrupt_raised", "interrupt_resolved", "child_run_started", "child_run_finished")] == [1] * 4
    assert log.count("tool_call_completed") + log.count("tool_call_failed") == 3


async def test_a_child_whose_end_nobody_tells_of_is_found_while_people_take_their_time(site, monkeypatch):
    # No run counts as somebody's child, so none tells anybody of its end.
    monkeypatch.setattr(ending, "child_thread_id", lambda run_id: "")
    monkeypatch.setattr(supervisor, "LOOK_MS", 300)
    run = await site.client.start(call(("wipe", {"n": 1}), delegated("say one two three")), agent="lead")
    (asked,) = await site.asked(run.run_id)
    await ended_for_parent(site, run.run_id)
    await site.decide(asked.approval_id, **APPROVE)
    ended = await site.client.wait(run.run_id)
    assert (ended.status, '"answer":"one two three"' in ended.output_text) == (OK, True)
    assert types(await site.client.log(run.run_id)).count("child_run_finished") == 1


async def ended_for_parent(site, run_id):
    async def told():
        return "child_run_finished" in types(await site.client.log(run_id))

    await testing.eventually_async(told, "the run knows of its child's end")


async def test_a_child_that_asks_people_keeps_its_parent_parked_and_both_go_on(site):
    run = await site.client.start(call(delegated(call(("wipe", {"n": 3}))), ("wipe", {"n": 4})), agent="lead")
    child_id = f"{run.run_id}.1.0"
    (own,) = await site.asked(run.run_id)
    (of_child,) = await site.asked(child_id)
    assert own.tool == of_child.tool == "wipe"
    await site.decide(own.approval_id, **APPROVE)
    await site.decide(of_child.approval_id, **APPROVE)
    assert (await site.client.wait(run.run_id)).status == OK
    assert sorted(sent["n"] for sent in site.sent()) == [3, 4]


async def test_a_cancel_ends_children_and_questions(site):
    held_child(site)
    run = await site.client.start(call(("wipe", {"n": 1}), delegated("say one two three")), agent="lead")
    await site.asked(run.run_id)
    await site.client.cancel(run.run_id)
    assert (await site.client.wait(run.run_id)).status == pb.RUN_STATUS_CANCELLED
    assert (await site.client.wait(f"{run.run_id}.1.1")).status == pb.RUN_STATUS_CANCELLED
    resolved = [data_of(event) for event in await site.client.log(run.run_id) if event.type == "interrupt_resolved"]
    assert [data["outcome"] for data in resolved] == ["cancelled"]
    assert site.sent() == []


async def test_what_a_strategy_brings_itself_is_asked_of_nobody(site):
    run = await site.client.start(call(delegated("say one two"), ("look", {"n": 1})), agent="guarded")
    (asked,) = await site.asked(run.run_id)
    assert (asked.tool, asked.reason) == ("look", "by_agent")
    await site.decide(asked.approval_id, **APPROVE)
    assert '"answer":"one two"' in (await site.client.wait(run.run_id)).output_text
    run = await site.client.start(call(("update_plan", PLAN)), agent="planner")
    ended = await site.client.wait(run.run_id)
    assert (ended.status, "refused" in ended.output_text) == (OK, False)
    assert types(await site.client.log(run.run_id)).count("plan_updated") == 1
