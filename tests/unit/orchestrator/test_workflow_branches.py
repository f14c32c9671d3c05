"""Branches of a workflow that ask models and call tools at the same time, under owners that are lost at any write."""

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.agents import Recall
from services.orchestrator.ports import Recalled, RecalledPart, ToolOutcome
from services.orchestrator.testing.turn_world import Journal, World, agent, steps_before
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
LOOK = Workflow.model_validate(
    yaml.safe_load("""
steps:
  - {name: look, kind: model, prompt: "Look around", tools: [look], max_steps: 3}
  - {name: done, kind: end, output: "{steps.look.output}"}
""")
)
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


@pytest.mark.parametrize("lost_at", [{1: True}, {1: True, 2: True}, {1: True, 3: True}])
def test_what_memory_gave_is_asked_for_once_whoever_is_lost(lost_at):
    class Remembering(World):
        recalls = 0

        async def recall(self, *asked):
            self.recalls += 1
            parts = [RecalledPart("turn", f"turn {n} of {self.recalls}", assistant_text="yes") for n in range(4 - self.recalls)]
            return Recalled(parts, [])

    def reply(call):
        done = steps_before(call)
        return [("look", {"n": done})] if done < 2 else " ".join(m.text for m in call.messages if m.role in ("user", "tool"))

    world = Remembering(reply, agent(strategy="workflow", workflow=LOOK, recall=Recall()), journal=Journal(lost_at))
    given = "turn 0 of 1 turn 1 of 1 turn 2 of 1 Look around {} {}"
    assert (world.run()["output_text"], world.recalls) == (given, 1)
    assert len(world.journal.of("memory_recalled")) == 1
