"""Tools that an agent names and that do not exist: told once per run and in the log, since the run would only go without them."""

from collections.abc import Sequence

import structlog

from services.common.errors import BulkheadError
from services.orchestrator.ports import ToolDefinition
from services.orchestrator.turn import degradation
from services.orchestrator.turn.state import Turn

PART = "missing_tools"
log = structlog.get_logger("bulkhead.turn")


async def tell_missing(turn: Turn, names: Sequence[str], found: Sequence[ToolDefinition]) -> None:
    """Warns of those of `names` (name or name@version) that are not in `found` because there is no such tool; one that the caller may
    not use is there for others. Asks the executor only where something is absent and was not told before."""
    there = {tool.name for tool in found}
    told: list[str] = turn.state.parts.get(PART) or []
    absent = [name for name in names if name.partition("@")[0] not in there and name not in told]
    if not absent:
        return
    try:
        missing = await turn.services.tools.missing(absent)
    except BulkheadError as error:
        # The run works without the warning; its next owner, or the next run, asks again.
        log.warning("missing_tools_unknown", run_id=turn.ref.run_id, reason=error.reason)
        return
    for name in missing:
        log.warning("tool_missing", agent=turn.agent.name, version=turn.agent.version, tool=name, run_id=turn.ref.run_id)
        message = f"The agent names a tool {name!r} that does not exist, so this answer is made without it."
        degradation.warn(turn, "tool_missing", reason="not_found", user_message=message, tool=name)
    if missing:
        turn.state.parts[PART] = [*told, *missing]
