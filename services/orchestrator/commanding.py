"""Sending a run at work a command: found for the caller, made durable, told to its owner, and a parked run woken."""

from collections.abc import Sequence

from services.common.errors import Conflict, NotFound, QuotaExceeded
from services.common.identity import Principal
from services.orchestrator.hub import Hub
from services.orchestrator.records import Draft, Posted, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.worker import Worker


class Commanding:
    """What every use case that asks something of a run has in common."""

    def __init__(self, store: RunStore, hub: Hub, worker: Worker) -> None:
        self._store, self._hub, self._worker = store, hub, worker

    async def locate(self, principal: Principal, run_id: str) -> RunRef:
        """The caller's run. Raises NotFound, Overloaded."""
        ref = self._worker.find(principal, run_id) or await self._store.locate(principal.tenant, principal.user, run_id)
        if ref is None:
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        return ref

    async def post(self, ref: RunRef, kind: str, data: bytes, *, key: str = "", trace_id: str = "", events: Sequence[Draft] = ()) -> Posted:
        """Puts a command into the run's inbox, once for each `key`, and has it looked at.

        Raises NotFound (no such run), Conflict RUN_ENDED, QuotaExceeded (more commands than a run takes), Overloaded.
        """
        posted = await self._store.post(ref, kind, data, key=key, trace_id=trace_id, events=events)
        if posted.verdict == "none":
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        if posted.verdict == "ended":
            raise Conflict("the run has ended", reason="RUN_ENDED", metadata={"run_status": posted.status})
        if posted.verdict == "full":
            raise QuotaExceeded("the run has been sent as many commands as it takes", retry_after_s=60.0, metadata={"policy": "commands"})
        await self.told(ref, posted)
        return posted

    async def told(self, ref: RunRef, posted: Posted) -> None:
        """What follows a command that was posted, by whichever step of the store; the sweeper does what this does not.

        Raises Overloaded.
        """
        if posted.written.first_seq:
            self._hub.noticed(ref, posted.written.last_seq)
        self._worker.hear(ref)
        if posted.woken:
            await self._worker.resume(ref)
