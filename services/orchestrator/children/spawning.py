"""Making child runs, and asking for their end, on behalf of the run that needs them."""

from collections.abc import Mapping
from typing import Any

from services.common.errors import BulkheadError, NotFound, Overloaded
from services.common.identity import Principal
from services.orchestrator.accepting import Accepting, RunRequest
from services.orchestrator.children.ending import result_of
from services.orchestrator.ports import ChildRun
from services.orchestrator.records import RunRef
from services.orchestrator.run_store import RunStore

# agents.yaml allows no circles; a run that is pinned to an older one might still be part of one.
MOST_DEPTH = 8


class Spawning:
    """ports.Children over what accepts any run."""

    def __init__(self, accepting: Accepting, store: RunStore) -> None:
        self._accepting, self._store = accepting, store

    async def create(self, run: ChildRun, principal: Principal) -> Mapping[str, str] | None:
        """As ports.Children.create."""
        if run.depth > MOST_DEPTH:
            message = f"Agents may ask other agents {MOST_DEPTH} levels deep, and this would be one more."
            return {"reason": "AGENT_DEPTH", "message": message}
        request = RunRequest(
            thread_id=run.thread_id, agent=run.agent, input=run.input, limits=run.limits, run_id=run.run_id,
            idempotency_key=f"child/{run.run_id}",
        )  # fmt: skip
        child_of = {"ref": run.parent.encode(), "depth": run.depth}
        if run.experiment:
            child_of |= {"experiment": run.experiment, "arm": run.arm}
        try:
            await self._accepting.create_run(principal, request, child_of=child_of)
        except Overloaded:
            raise
        except BulkheadError as error:
            return {"reason": error.reason, "message": error.message}
        return None

    async def cancel(self, run_id: str, principal: Principal) -> None:
        """As ports.Children.cancel."""
        try:
            await self._accepting.cancel_run(principal, run_id, "the run that asked for it ended")
        except NotFound:
            # It was refused, so there is nothing to end.
            return

    async def ended(self, run_id: str, thread_id: str, principal: Principal) -> Mapping[str, Any] | None:
        """As ports.Children.ended."""
        record = await self._store.run(RunRef(principal.tenant, thread_id, run_id))
        if record is None:
            return None
        return result_of(record) if record.ended else {}
