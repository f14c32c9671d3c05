"""Every type of event that the orchestrator writes stands in the table of docs/api.md, and the table names no other."""

import re

from services.common import testing

CODE = testing.ROOT / "services/orchestrator"
# Written under a name that is put together, or by the Lua functions.
BUILT = {
    "run_finished", "run_failed", "run_cancelled", "interrupt_raised", "interrupt_updated", "stop_received", "tool_cancel_received",
    "steer_received", "steer_dropped", "feedback", "thread_deleted",
}  # fmt: skip


def _written() -> set[str]:
    found = set()
    for path in CODE.rglob("*.py"):
        if "testing" not in path.parts:
            found.update(re.findall(r'(?:\bemit|Draft)\(\s*"([a-z_]+)"', path.read_text()))
    for path in CODE.rglob("*.lua"):
        found.update(re.findall(r"(?:'y', |\{)'([a-z]+_[a-z_]+)'(?:, 'r'|, '0')", path.read_text()))
    return found


def test_every_type_of_event_is_documented_and_no_other():
    table = (testing.ROOT / "docs/api.md").read_text().split("| types | data |\n")[1].split("\n\n")[0]
    documented = {name for row in table.splitlines()[1:] for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    written = _written()
    assert len(written) > 15
    assert written - documented == set()
    assert documented - written <= BUILT
