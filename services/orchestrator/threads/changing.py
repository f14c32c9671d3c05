"""What changing a thread as a whole takes, whichever change it is: runs that end, and a memory that follows."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from services.common.errors import Conflict, NotFound
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.orchestrator.accepting import Accepting
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.threads.ports import Sessions, ThreadStore

# A change that is noted begins within less; one that was lost midway is gone on with after this time.
NOTED_S = 15.0
AGAIN_S = 5.0
CALL_S = 10.0
POLL_S = 0.05
RUNS_AT_ONCE = 200


class Changing:
    """Ends runs, and calls the memory service for the thread's user."""

    def __init__(self, store: RunStore, accepting: Accepting, sessions: Sessions, minter: Minter) -> None:
        self._store, self._accepting, self._sessions, self._minter = store, accepting, sessions, minter

    async def records(self, ref: RunRef, run_ids: Sequence[str]) -> list[RunRecord]:
        """The records of those runs that are there."""
        found: list[RunRecord] = []
        for at in range(0, len(run_ids), RUNS_AT_ONCE):
            found += await self._store.runs([ref._replace(run_id=run_id) for run_id in run_ids[at : at + RUNS_AT_ONCE]])
        return found

    async def end(
        self, ref: RunRef, principal: Principal, run_ids: Sequence[str], why: str, wait_s: float, but: Callable[[RunRecord], bool]
    ) -> list[RunRecord]:
        """Cancels the runs that have not ended, `but` some, and waits for their ends; answers those that did not within `wait_s`."""
        until = time.monotonic() + wait_s
        asked: set[str] = set()
        while True:
            left = [record for record in await self.records(ref, run_ids) if not record.ended and not but(record)]
            for record in left:
                if record.run_id not in asked:
                    asked.add(record.run_id)
                    await self._cancel(principal, record.run_id, why)
            if not left or time.monotonic() > until:
                return left
            run_ids = [record.run_id for record in left]
            await asyncio.sleep(POLL_S)

    async def _cancel(self, principal: Principal, run_id: str, why: str) -> None:
        try:
            await self._accepting.cancel_run(principal, run_id, why)
        except NotFound:
            # Its place in the lists is gone already; what is left of the run is deleted with the thread.
            return

    async def held(self, ref: RunRef, record: RunRecord) -> bool:
        """Whether a run waits for its time or a slot and stands in no line, as none does that has begun."""
        return not record.attempt and (await self._store.inspect(ref._replace(run_id=record.run_id)))[0] == "held"

    async def replace_session(
        self, ref: RunRef, principal: Principal, turns: Sequence[Mapping[str, Any]], forgotten: Sequence[str], as_of: int
    ) -> None:
        """As Sessions.replace_session, for the thread's user."""
        # A session of this name that is another user's, or deleted, gives this user nothing, and never will.
        with call_context.bind(self._context(principal)), suppress(NotFound):
            await self._sessions.replace_session(ref.thread_id, turns, forgotten, as_of)

    async def delete_session(self, ref: RunRef, principal: Principal) -> None:
        """As Sessions.delete_session, for the thread's user."""
        with call_context.bind(self._context(principal)), suppress(NotFound):
            await self._sessions.delete_session(ref.thread_id, "")

    def _context(self, principal: Principal) -> call_context.CallContext:
        current = call_context.current()
        request_id = current.request_id if current is not None else ""
        context = call_context.CallContext(
            request_id, bool(current and current.canary), principal=principal, token=self._minter.mint(principal)
        )
        return context.with_timeout(CALL_S)


async def settled(threads: ThreadStore, ref: RunRef, look_in_s: float | None) -> None:
    """Has a thread looked at in `look_in_s` (None: never) now that a change of it is done, and sooner where another one has begun."""
    await threads.look_again(ref, look_in_s)
    state = await threads.state(ref)
    if state is not None and state.job:
        await threads.note(ref, AGAIN_S)


def changing() -> Conflict:
    """The error for a thread that another change is under way with."""
    return Conflict("the thread is being changed as a whole; try again", reason="THREAD_CHANGING")
