"""Looks at threads that are due: goes on with changes whose process was lost, and deletes what has lived for long enough.

One of any number, like the sweeper; a thread's meta is the truth, and what is due is only a hint.
"""

import asyncio
from collections.abc import Callable

from services.common.errors import BulkheadError
from services.common.identity import Principal
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.repeating import repeat, safely
from services.orchestrator.run_store import RunStore
from services.orchestrator.threads.changing import AGAIN_S, Changing, settled
from services.orchestrator.threads.deleting import Deleting
from services.orchestrator.threads.forking import Forking, permanent
from services.orchestrator.threads.ports import ThreadState, ThreadStore
from services.orchestrator.threads.rolling_back import RollingBack

MOST_AT_ONCE = 16
TURN_S = 1.0
# A thread that a run is at work in lives on; it is looked at again after this time, or its time to live where that is longer.
BUSY_S = 60.0


class Tending:
    """`ttl_ms` answers the time to live of threads of a tier, 0 for none."""

    def __init__(
        self, store: RunStore, threads: ThreadStore, changing: Changing, forking: Forking, rolling_back: RollingBack,
        deleting: Deleting, ttl_ms: Callable[[str], int],
    ) -> None:  # fmt: skip
        self._store, self._threads, self._forking, self._rolling_back = store, threads, forking, rolling_back
        self._changing, self._deleting, self._ttl_ms = changing, deleting, ttl_ms

    async def run(self) -> None:
        """Tends until cancelled; a store that is away is tried again."""
        await repeat("threads", self.turn, MOST_AT_ONCE, TURN_S)

    async def turn(self) -> int:
        """Looks at what is due, at most MOST_AT_ONCE; answers how many there were. Raises Overloaded."""
        refs = await self._threads.due(MOST_AT_ONCE, AGAIN_S)
        await asyncio.gather(*(safely("thread", self.look(ref), thread_id=ref.thread_id) for ref in refs))
        return len(refs)

    async def look(self, ref: RunRef) -> None:
        """Does what is due for one thread. Raises BulkheadError."""
        state = await self._threads.state(ref)
        if state is None or (state.doing and not state.job):
            await self._threads.look_again(ref, None)
        elif state.doing == "gone":
            await self._deleting.work(ref, state.job or b"")
        elif state.doing == "building":
            await self._fork(ref, state.job or b"")
        elif state.doing == "busy":
            await self._rolling_back.work(ref, state.job or b"")
        else:
            await self._age(ref, state)

    async def _fork(self, ref: RunRef, job: bytes) -> None:
        try:
            await self._forking.work(ref, job)
        except BulkheadError as error:
            # One that can never be made was deleted.
            if not permanent(error):
                raise

    async def _age(self, ref: RunRef, state: ThreadState) -> None:
        newest = await self._newest(ref)
        tier = str(newest.spec.principal.get("tier", "")) if newest is not None else ""
        ttl_ms = state.ttl_ms or (self._ttl_ms(tier) if newest is not None else 0)
        if not ttl_ms:
            await settled(self._threads, ref, None)
            return
        if newest is not None and not newest.ended:
            await self._threads.live(ref, ttl_ms, newest.created_ms)
            await settled(self._threads, ref, max(BUSY_S, ttl_ms / 1000))
            return
        left_s = await self._threads.live(ref, ttl_ms, newest.ended_ms if newest is not None else 0)
        if left_s == 0 and newest is not None:
            # An older one may have waited for its time meanwhile.
            records = await self._changing.records(ref, await self._threads.run_ids(ref))
            if not all(record.ended for record in records):
                await settled(self._threads, ref, max(BUSY_S, ttl_ms / 1000))
                return
            left_s = await self._threads.live(ref, ttl_ms, max((record.ended_ms for record in records), default=0))
        if left_s > 0:
            await settled(self._threads, ref, left_s)
        elif left_s == 0:
            who = newest.spec.principal if newest is not None else {"tenant": ref.tenant, "user": state.owner}
            await self._deleting.expire(ref, Principal.from_dict(dict(who)))

    async def _newest(self, ref: RunRef) -> RunRecord | None:
        members = await self._store.list_members("thread", ref.tenant, "", 0, 1, ref.thread_id)
        return await self._store.run(ref._replace(run_id=members[0][0])) if members else None
