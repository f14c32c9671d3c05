"""Tools that an agent names and that do not exist."""

import orjson
import structlog

from services.orchestrator.testing.turn_world import Journal, World, agent
from services.orchestrator.workflows.definition import Workflow


def test_a_tool_that_does_not_exist_is_told_in_the_run_and_in_the_log_once_whoever_works_on_it():
    def reply(call):
        return "done" if any(message.role == "tool" for message in call.messages) else [("look", {})]

    world = World(reply, agent(tools=("look", "mial")), unknown=("mial",), journal=Journal({2: True, 3: True}))
    with structlog.testing.capture_logs() as logged:
        assert world.run()["output_text"] == "done"
    [warning] = world.journal.of("warning")
    assert (warning["code"], warning["attributes"]["tool"], warning["capability_lost"]) == ("tool_missing", "mial", "tool")
    assert "'mial'" in warning["user_message"]
    assert [(line["agent"], line["tool"]) for line in logged if line["event"] == "tool_missing"][-1] == ("a", "mial")
    assert all([tool.name for tool in call.tools] == ["look"] for call in world.asked)


def test_a_tool_that_the_caller_may_not_use_is_not_missing():
    world = World(lambda call: "done", agent(tools=("look", "mail")))

    async def allowed(names):
        return []

    world.definitions = allowed
    assert world.run()["output_text"] == "done"
    assert world.journal.of("warning") == []


def test_a_workflow_that_needs_a_missing_tool_fails_at_that_step_and_says_so():
    steps = [{"name": "post", "kind": "tool", "tool": "mial"}, {"name": "over", "kind": "end", "output": "x"}]
    workflow = Workflow.model_validate({"steps": steps})
    world = World(lambda call: "", agent(tools=("mial",), strategy="workflow", workflow=workflow), unknown=("mial",))
    assert "tool_missing" in orjson.dumps(world.run()["error"]).decode()
    assert [warning["code"] for warning in world.journal.of("warning")] == ["tool_missing"]
