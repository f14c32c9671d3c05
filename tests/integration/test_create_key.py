"""The first key of an installation: it may do all that any route or service asks a scope for, but what administrators do."""

import re

from scripts.create_key import SCOPES
from services.common.testing import ROOT

SERVICES = ("gateway", "orchestrator", "memory", "tool_executor", "llm_gateway")


def test_scopes_of_a_key_of_the_script_are_all_that_there_are_but_admin():
    sources = [path.read_text() for service in SERVICES for path in (ROOT / "services" / service).rglob("*.py")]
    asked_for = {scope for source in sources for scope in re.findall(r'"([a-z]+:(?:read|write|execute|invoke))"', source)}
    assert {"runs:write", "approvals:write", "tools:execute", "models:invoke"} <= asked_for
    assert sorted(SCOPES) == sorted(asked_for)
