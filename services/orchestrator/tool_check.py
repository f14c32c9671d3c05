"""Whether the tools that an agent names exist at all, before a run of it is accepted.

A run bears with a tool that is down, and goes without it; one that stands in no registry is a mistake in the configuration, which
nobody should learn of from an answer. What was found is kept for each version of an agent, so that accepting waits for the tool
executor once and not for each run; where the executor cannot say, runs are accepted as if all was there, and their turns tell what
they miss.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from services.common.errors import BulkheadError, FailedPrecondition
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.orchestrator.agents import HAND_OFF, AgentDefinition
from services.orchestrator.ports import Tools
from services.orchestrator.run_store import RunStore

# An agent whose tools are there is looked at again after this time, behind the back of whoever accepts a run of it.
FRESH_S = 30.0
# One that misses a tool, or of which nothing could be said, is looked at again sooner: somebody is likely to be mending it.
WRONG_FRESH_S = 1.0
UNKNOWN_FRESH_S = 5.0
# Accepting waits no longer than this for the executor.
LOOK_S = 1.0
log = structlog.get_logger("bulkhead.agents")


@dataclass(slots=True)
class _Found:
    """`missing` are tools that do not exist, as of a look that holds until `fresh_until`; `looking` is one that is under way."""

    missing: Sequence[str] = ()
    fresh_until: float = 0.0
    looked: bool = False
    looking: asyncio.Task | None = field(default=None)


class ToolCheck:
    """Refuses runs of agents that name tools which do not exist."""

    def __init__(self, tools: Tools, store: RunStore, minter: Minter) -> None:
        self._tools, self._store, self._minter = tools, store, minter
        self._found: dict[tuple, _Found] = {}

    async def check(self, principal: Principal, agent: AgentDefinition, key: str) -> None:
        """Nothing where the agent's tools exist, or where that is not known. `key` is the caller's idempotency key: a run that it names
        already is no new one. Raises FailedPrecondition (AGENT_TOOL_MISSING)."""
        names = tuple(name for name in agent.tools if name != HAND_OFF)
        if not names:
            return
        current = call_context.current()
        canary = bool(current and current.canary)
        found = self._found.setdefault((agent.name, agent.version, names, canary), _Found())
        if time.monotonic() >= found.fresh_until:
            if found.looking is None:
                found.looking = asyncio.create_task(self._look(found, principal, names, canary), name="tool-check")
            if found.missing or not found.looked:
                await asyncio.shield(found.looking)
        if not found.missing or (key and await self._store.made_with(principal.tenant, principal.user, key)):
            return
        missing = ", ".join(found.missing)
        raise FailedPrecondition(
            f"the agent {agent.name!r} names a tool that does not exist: {missing}", reason="AGENT_TOOL_MISSING",
            metadata={"agent": agent.name, "agent_version": agent.version, "tool": missing},
        )  # fmt: skip

    async def _look(self, found: _Found, principal: Principal, names: Sequence[str], canary: bool) -> None:
        context = call_context.CallContext(canary=canary, principal=principal, token=self._minter.mint(principal)).with_timeout(LOOK_S)
        try:
            with call_context.bind(context):
                # As the run's own turn asks, which finds this answer kept.
                there = {tool.name for tool in await self._tools.definitions(names)}
                absent = [name for name in names if name.partition("@")[0] not in there]
                found.missing = await self._tools.missing(absent) if absent else ()
            found.fresh_until = time.monotonic() + (WRONG_FRESH_S if found.missing else FRESH_S)
        except BulkheadError as error:
            log.warning("agent_tools_unknown", reason=error.reason, tools=list(names))
            found.missing, found.fresh_until = (), time.monotonic() + UNKNOWN_FRESH_S
        finally:
            found.looked, found.looking = True, None
