"""Workflows that go round: through conditions alone, and through tool calls. Both come to an end, and hold nobody up."""

from types import SimpleNamespace

import orjson
import pytest
import yaml

from services.orchestrator.ports import ToolOutcome
from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import World, agent
from services.orchestrator.turn import workflow_state
from services.orchestrator.workflows.checks import workflow_problems
from services.orchestrator.workflows.definition import Workflow


def world(text, limits=Limits(), visits=1):
    """A run of this workflow, of which `look` says that all is ready from this visit on."""
    workflow = Workflow.model_validate(yaml.safe_load(text))
    assert workflow_problems(workflow, ("look", "mail")) == []

    def tool(name, arguments):
        return ToolOutcome("done", orjson.dumps({"ready": arguments.get("visit", 0) >= visits}))

    return World(lambda call: "nothing", agent(strategy="workflow", workflow=workflow), limits, tool=tool)


ROUND = """
  - {name: a, kind: choice, cases: [{when: "steps.a.visits < 9000", next: b}], next: over, max_visits: 10000, on_error: over}
  - {name: b, kind: choice, cases: [{when: "steps.b.visits < 0", next: over}], next: a, on_error: over}
"""
IN_A_BRANCH = """
steps:
  - name: both
    kind: parallel
    on_error: over
    branches:
      calling: [{name: pay, kind: tool, tool: mail}]
      round:
        - {name: pause, kind: wait, seconds: 0.001}
        - {name: a, kind: choice, cases: [{when: "steps.a.visits < 9000", next: b}], next: end, max_visits: 10000, on_error: end}
        - {name: b, kind: choice, cases: [{when: "steps.b.visits < 0", next: end}], next: a}
        - {name: end, kind: wait, seconds: 1}
  - {name: over, kind: end, output: over}
"""


@pytest.mark.parametrize("text", [f"steps:{ROUND}  - {{name: over, kind: end, output: over}}\n", IN_A_BRANCH])
def test_conditions_that_only_lead_to_each_other_end_the_run_and_hold_nobody_up(text):
    made = world(text)
    error = made.run()["error"]
    assert (error["reason"], "workflow.no_progress" in error["message"]) == ("WORKFLOW_FAILED", True)
    state = orjson.loads(made.journal.state) if made.journal.state else {}
    visits = state.get("parts", {}).get("workflow", {}).get("visits", {})
    assert sum(visits.values()) <= workflow_state.MOST_MOVES + 10


GO_ROUND = """
steps:
  - {name: look, kind: tool, tool: look, arguments: {visit: "{steps.look.visits}"}, max_visits: 500}
  - {name: ready, kind: choice, cases: [{when: "steps.look.output.ready", next: done}], next: look}
  - {name: done, kind: end, output: done}
"""


def test_a_loop_of_tool_calls_ends_at_the_limit_of_the_runs_steps():
    made = world(GO_ROUND, Limits(max_steps=7), visits=100)
    assert made.run()["error"]["reason"] == "STEP_LIMIT"
    assert len(made.sent) == 7
    assert world(GO_ROUND, Limits(max_steps=7), visits=6).run()["output_text"] == "done"


CASES = '[{when: "input.data.kind == 1", next: end}, {when: "len(input.data.items) == 0", next: end}]'
LONG_WAY = "\n".join([
    "steps:",
    "  - {name: s1, kind: wait, seconds: 0.001}",
    *(f"  - {{name: s{number}, kind: choice, cases: {CASES}, next: s{number + 1}}}" for number in range(2, 99)),
    "  - {name: s99, kind: wait, seconds: 0.001}",
    '  - {name: end, kind: end, output: "{input.data.kind}"}',
])  # fmt: skip


def test_a_large_input_is_read_once_for_all_conditions_on_the_way(monkeypatch):
    made = world(LONG_WAY)
    made.text = orjson.dumps({"items": ["x" * 400_000], "kind": "large"}).decode()
    read = []

    def loads(text):
        read.append(len(text))
        return orjson.loads(text)

    monkeypatch.setattr(workflow_state, "orjson", SimpleNamespace(loads=loads, dumps=orjson.dumps, JSONDecodeError=orjson.JSONDecodeError))
    assert made.run()["output_text"] == "large"
    # On the way, and for what the end says.
    assert read == [len(made.text)] * 2
