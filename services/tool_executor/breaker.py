"""A breaker for each version of a tool and each tenant, shared by all replicas.

Source: design page "tools": five failures open it for 30 s, one probe at a time; what the tool refuses never trips it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.breaker import BreakerPolicy, Breakers, Probe
from services.tool_executor.failures import ToolFailure
from services.tool_executor.tools import Tool

TOOL_BREAKER = BreakerPolicy(failures_in_row=5, failure_rate=0.0, first_open_s=30.0, longest_open_s=30.0)
COUNTED = frozenset({"upstream.server", "transport.timeout", "transport.unreachable", "transport.broken"})


class ToolBreaker:
    """Lets attempts pass, and learns from how they end."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def is_open(self, tool: Tool, tenant: str) -> bool:
        """Whether an attempt would be refused, but for a probe."""
        return self._breakers.is_open(_name(tool, tenant))

    @asynccontextmanager
    async def attempt(self, tool: Tool, tenant: str, *, cut_short: bool) -> AsyncIterator[None]:
        """Around one attempt. Raises ToolFailure (limit.breaker_open) without making it.

        `cut_short`: the caller leaves it less time than the tool may take, so that running out of it is no fault of the tool.
        """
        name, breakers = _name(tool, tenant), self._breakers
        passage = await breakers.probe(name) if breakers.is_open(name) else Probe(name)
        if passage is None:
            raise ToolFailure(
                "limit.breaker_open",
                f"The tool {tool.name} has failed again and again and is not asked for a while. Try again later, or do without it.",
                retry_after_s=max(breakers.retry_after_s(name), 1.0),
            )
        try:
            yield
        except ToolFailure as failure:
            if failure.code in COUNTED and not (failure.code == "transport.timeout" and cut_short):
                breakers.settle(passage, failed=True, retry_after_s=failure.retry_after_s)
            elif passage.token:
                # It answered, if only to refuse.
                breakers.settle(passage, failed=None if failure.code in COUNTED else False)
            raise
        except BaseException:
            breakers.settle(passage, failed=None)
            raise
        breakers.settle(passage, failed=False)


def _name(tool: Tool, tenant: str) -> str:
    return f"{tool.name}@{tool.version}:{tenant}"


def tool_of(name: str) -> str:
    """`tool@version` of a breaker's name, which also holds the tenant."""
    return name.partition(":")[0]
