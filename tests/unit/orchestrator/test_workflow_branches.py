"""Branches of a workflow that ask models and call tools at the same time, under owners that are lost at any write."""

import orjson
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.ports import ToolOutcome
from services.orchestrator.testing.turn_world import Journal, World, agent
from services.orchestrator.workflows.definition import Workflow

FLOW = """
steps:
  - name: fan
    kind: parallel
    branches:
      one:
        - {name: a, kind: model, prompt: "A", tools: [look, mail]}
        - {name: send, kind: tool, tool: mail, arguments: {text: "{steps.a.output}"}}
      two:
        - {name: b, kind: model, prompt: "B", tools: [look, mail]}
        - {name: json, kind: model, prompt: "J {steps.b.output}", answer: {type: object}}
      three:
        - {name: c, kind: tool, tool: look}
        - {name: d, kind: model, prompt: "D {steps.c.output}", tools: [mail]}
  - {name: over, kind: end, output: "{steps.a.output} {steps.b.output} {steps.json.output} {steps.d.output}"}
"""
AGENT = agent(strategy="workflow", workflow=Workflow.model_validate(yaml.safe_load(FLOW)))


def played(steps, journal):
    """The world, how its run ended, and what its tools were asked for; `steps` is how often a model calls its tools, by its prompt."""
    made = []

    def tool(name, arguments):
        made.append((name, orjson.dumps(arguments)))
        return ToolOutcome("done", b'{"k":1}')

    def reply(call):
        asked = next(message.text for message in call.messages if message.role == "user")
        if asked[0] == "J":
            # Only the correction is JSON.
            return '{"x":1}' if any(message.role == "assistant" for message in call.messages) else "no JSON"
        before = sum(bool(message.tool_calls) for message in call.messages)
        calls = [(tool.name, {"of": asked, "n": before}) for tool in call.tools]
        return calls if before < steps.get(asked, 1) else f"{asked[0]} is done"

    world = World(reply, AGENT, tool=tool, journal=journal)
    return world, world.run(), sorted(made)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.fixed_dictionaries({"A": st.integers(0, 2), "B": st.integers(0, 2)}),
    lost_at=st.dictionaries(st.integers(1, 30), st.booleans(), max_size=7),
)
def test_whoever_is_lost_all_branches_come_to_the_same_end_with_each_effect_once(steps, lost_at):
    _, expected, wanted = played(steps, Journal())
    world, result, made = played(steps, Journal(lost_at))
    assert (result, made) == (expected, wanted)
    assert result["output_text"] == 'A is done B is done {"x":1} D is done'
    assert not world.faults
    assert set(world.executed.values()) <= {1}
    ends = [data["step"] for data in world.journal.of("step_completed")]
    assert len(ends) == len(set(ends))
