"""What stands in for a tool that failed: its fallback tool, else the last good result of the same call.

Source: design page "tools", Order of operations: retry, then the declared fallback tool, then, for tools that change nothing, the last
good result. Whichever it is, the caller is told with a warning: source, age, reason.
"""

from typing import Any

from services.common.idempotency import fingerprint
from services.tool_executor.arguments import canonical
from services.tool_executor.failures import ToolFailure
from services.tool_executor.outcomes import CallResult, Outcome, Warned
from services.tool_executor.ports import LastResults
from services.tool_executor.tools import Tool, ToolCall

MOST_KEPT_BYTES = 16 * 1024


def helps(tool: Tool, failure: ToolFailure, call: ToolCall) -> bool:
    """Whether anything may stand in: the tool was at fault and not the call, and it has certainly done nothing or nothing that counts."""
    harmless = tool.repeatable or failure.certain or not call.effect_possible
    return harmless and (failure.retryable or failure.code == "internal") and failure.code != "transport.cancelled"


def by_tool(tool: Tool, other: Tool, failure: ToolFailure) -> Warned:
    """That another tool has answered."""
    source = f"{other.name}@{other.version}"
    attributes = {"tool": tool.name, "source": source, "reason": failure.code}
    return Warned("tool_fallback", f"The tool {tool.name} failed, so {other.name} answered in its place.", attributes)


class Kept:
    """The last good results of tools that keep them (`stale_s`), apart for each user."""

    def __init__(self, results: LastResults) -> None:
        self._results = results

    async def keep(self, tool: Tool, call: ToolCall, arguments: Any, output: bytes) -> None:
        """Keeps a result. What cannot be kept is lost, and nobody waits for it."""
        principal = call.principal
        await self._results.keep(principal.tenant, principal.user, _name(tool, arguments), output, tool.stale_s)

    def keeps(self, tool: Tool, call: ToolCall, output: bytes) -> bool:
        """Whether the tool keeps such results: small ones, and none that refers to sources, which would not be there any more."""
        return tool.stale_s > 0 and len(output) <= MOST_KEPT_BYTES and not call.citations

    async def instead(self, tool: Tool, call: ToolCall, arguments: Any, failure: ToolFailure) -> tuple[Warned, CallResult] | None:
        """The last good result of the same call, where it is young enough."""
        if not tool.stale_s:
            return None
        principal = call.principal
        found = await self._results.last(principal.tenant, principal.user, _name(tool, arguments))
        if found is None or found[0] > tool.stale_s:
            return None
        age_s, output = found
        message = f"The tool {tool.name} failed; this is its result of {int(age_s)} seconds ago."
        attributes = {"tool": tool.name, "source": f"{tool.name}@{tool.version}", "age_s": int(age_s), "reason": failure.code}
        return Warned("tool_stale_result", message, attributes), CallResult(Outcome.DONE, output=output)

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes what is kept of a user; answers how many results. Raises Overloaded without a store."""
        return await self._results.erase(tenant, user)


def _name(tool: Tool, arguments: Any) -> str:
    return fingerprint(tool.name, tool.version, canonical(arguments))
