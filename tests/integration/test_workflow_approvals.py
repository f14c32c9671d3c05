"""The step `approval` of a workflow, from the outside: who is asked, and where the answer leads."""

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput
from services.orchestrator.testing.harness import data_of
from tests.integration import approvals
from tests.integration.approvals import APPROVE, REJECT, desk, edit

WORKFLOW = """
  asking:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        tools: [look]
        strategy: workflow
        approval: {tools: {request_approval: {expires_s: 3600, approvers: {users: [bo], requester: true}}}}
        workflow:
          steps:
            - {name: ok, kind: approval, question: "Spend {input.data.sum} €?", on_error: refused}
            - {name: buy, kind: tool, tool: look, arguments: {n: "{input.data.sum}"}}
            - {name: done, kind: end, output: "bought, as {steps.ok.output.by[0]} said: {steps.ok.output.reason}"}
            - {name: refused, kind: end, output: "{steps.ok.error.code}: {steps.ok.error.message}"}
"""


@pytest.fixture
async def site(identities, state_url, tmp_path, monkeypatch):
    monkeypatch.setattr(approvals, "AGENTS", approvals.AGENTS + WORKFLOW)
    async with desk(identities, state_url, tmp_path) as made:
        yield made


async def test_the_question_of_a_step_cannot_be_edited(site):
    run = await site.client.start('{"sum": 30}', agent="asking")
    (asked,) = await site.asked(run.run_id)
    with pytest.raises(InvalidInput) as caught:
        await site.decide(asked.approval_id, **edit({"question": "Spend 90 €?"}))
    assert caught.value.violations[0].description == "must be one of approve, delegate, reject here"
    await site.decide(asked.approval_id, **APPROVE)
    assert (await site.client.wait(run.run_id)).status == pb.RUN_STATUS_SUCCEEDED


@pytest.mark.parametrize(("decision", "bought"), [(APPROVE, True), (REJECT, False)])
async def test_a_workflow_waits_for_a_person_and_goes_where_the_answer_leads(site, decision, bought):
    run = await site.client.start('{"sum": 30}', agent="asking")
    (asked,) = await site.asked(run.run_id)
    assert (asked.tool, orjson.loads(asked.arguments_json)) == ("request_approval", {"question": "Spend 30 €?", "step": "ok"})
    assert site.sent("/look") == []
    await site.decide(asked.approval_id, reason="fine by me", **decision)
    ended = await site.client.wait(run.run_id)
    assert ended.status == pb.RUN_STATUS_SUCCEEDED
    assert ended.output_text.startswith("bought, as ana said: fine by me" if bought else "policy.approval_rejected: ")
    assert len(site.sent("/look")) == bought
    names = [data_of(event)["name"] for event in await site.client.log(run.run_id) if event.type == "step_completed"]
    assert names == (["ok", "buy", "done"] if bought else ["ok", "refused"])
