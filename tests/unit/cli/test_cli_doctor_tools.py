"""`bulkhead doctor` names tools that agents name and that are not there."""

from services.cli.doctor import HAND_OFF, missing_tools
from services.orchestrator import agents as orchestrator


def test_a_tool_that_is_not_there_is_named_with_its_agent_and_a_way_out():
    agents = [{"name": "a", "tools": ["calculator", "mial", HAND_OFF]}, {"name": "b", "tools": ["calculator@1.0.0"]}, {"name": "c"}]
    [row] = missing_tools(agents, [{"name": "calculator"}, {"name": "mail"}])
    assert not row.good
    assert ("a names a tool 'mial'" in row.found, "agents.yaml" in row.way_out) == (True, True)
    assert missing_tools([], []) == []
    assert orchestrator.HAND_OFF == HAND_OFF
