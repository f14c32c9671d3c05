"""Workflows from the outside: one orchestrator over gRPC, a real store, and deterministic services behind it."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict, NotFound
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import data_of, served, settings_for, shown_text, types, write_config
from services.orchestrator.testing.whole_threads import fork, thread

AGENTS = """
agents:
  order:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        strategy: workflow
        tools: [calculator, send_mail]
        workflow:
          steps:
            - {name: sum, kind: tool, tool: calculator, arguments: {expression: "{input.text}"}, on_error: sorry}
            - {name: pause, kind: wait, seconds: 1.2}
            - name: both
              kind: parallel
              branches:
                mail: [{name: mail, kind: tool, tool: send_mail, arguments: {to: "bob"}}]
                words: [{name: words, kind: model, prompt: "say it is {steps.sum.output.result}"}]
            - {name: large, kind: choice, cases: [{when: "steps.sum.output.result > 100", next: sorry}]}
            - {name: done, kind: end, output: "{steps.words.output}, {steps.mail.output.sent}"}
            - {name: sorry, kind: end, fail: {reason: NOT_THAT, message: "no"}}
"""


@pytest.fixture
async def behind(identities):
    async with fakes(identities) as made:
        yield made


@pytest.fixture
async def order(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", AGENTS))
    async with served(settings, identities) as client:
        yield client


async def test_a_workflow_waits_without_a_worker_and_tells_where_it_is(order, behind):
    run = await order.start("40+2", agent="order")

    async def parked():
        return (await order.get(run.run_id)).status == pb.RUN_STATUS_WAITING

    await testing.eventually_async(parked, "the run is parked")
    ended = await order.wait(run.run_id)
    events = await order.follow(run.run_id, [])
    assert (ended.status, ended.output_text) == (pb.RUN_STATUS_SUCCEEDED, "it is 42, true")
    assert shown_text(events) == "it is 42, true"
    assert [data_of(event)["name"] for event in events if event.type == "step_completed"] == ["sum", "mail", "words", "done"]
    assert [event.attempt for event in events if event.type == "tool_call_completed"] == [1, 1]
    assert list(behind.tools.calls) == [f"{run.run_id}/1/0", f"{run.run_id}/2/0"]
    last = [data_of(event) for event in events if event.type == "plan_updated"][-1]
    assert {step["title"]: step["status"] for step in last["steps"]}["sorry"] == "skipped"
    assert types(events)[-1] == "run_finished"
    assert "warning" not in types(events)


async def test_a_fork_never_begins_a_workflow_anew(order, behind):
    run = await order.start("40+2", agent="order", thread_id="t1")
    await order.wait(run.run_id)
    made = list(behind.tools.calls)
    with pytest.raises(Conflict) as refused:
        await fork(order, "t1", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True, new_thread_id="f")
    assert refused.value.reason == "RUN_IS_WORKFLOW"
    with pytest.raises(NotFound):
        await thread(order, "f")
    forked = await fork(order, "t1", pb.Checkpoint(run_id=run.run_id, step=1), new_thread_id="f")
    assert forked.thread.parent_thread_id == "t1"
    assert list(behind.tools.calls) == made
