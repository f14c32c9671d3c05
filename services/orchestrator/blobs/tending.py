"""Deletes blobs: those of a user who is erased and of a thread that is deleted, those that nobody has asked for, and what was left behind.

Each step can be done again, and by two at once. A blob is looked at some minutes after it was begun, and then when it may have ended.
"""

import asyncio
from typing import Protocol

import structlog
from opentelemetry.metrics import get_meter

from services.orchestrator.blobs.keeping import BlobKeeping
from services.orchestrator.blobs.records import DAY_MS, BlobRef, BlobStore, DueBlob, KeptBlob
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.repeating import repeat, safely

MOST_AT_ONCE = 16
TURN_S = 5.0
# Whoever is lost midway is followed by another after this.
AGAIN_S = 60.0
DAY_S = DAY_MS / 1000
MONTH_S = 30 * DAY_S
# A process that keeps a blob is done with it by then, or is gone.
MADE_WITHIN_MS = 300_000
log = structlog.get_logger("bulkhead.blobs")
_deleted = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_blobs_deleted_total", description="Blobs that were deleted by the service itself, by why: erased, thread, expired or left."
)


class Owners(Protocol):
    """As the store of threads."""

    async def user_of(self, ref: RunRef) -> str:
        """Whose thread it is; '' where there is none."""
        ...

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        ...

    async def taken_over(self, ref: RunRef) -> bool:
        """As ResultArchive.taken_over."""
        ...


class BlobTending:
    """Looks at blobs, and deletes what goes with users and threads."""

    def __init__(self, store: BlobStore, keeping: BlobKeeping, owners: Owners) -> None:
        self._store, self._keeping, self._owners = store, keeping, owners

    async def run(self) -> None:
        """Looks until cancelled; a store that is away is tried again."""
        await repeat("blobs", self.turn, MOST_AT_ONCE, TURN_S)

    async def turn(self) -> int:
        """Looks at what is due, at most MOST_AT_ONCE; answers how many there were. Raises Overloaded."""
        found = await self._store.due(MOST_AT_ONCE, AGAIN_S)
        await asyncio.gather(*(safely("blobs", self.look(due), blob_id=due.ref.blob_id) for due in found))
        return len(found)

    async def look(self, due: DueBlob) -> None:
        """Does what is due for one blob. Raises BulkheadError."""
        await self._store.leave(due, await self._look(due.ref))

    async def _look(self, ref: BlobRef) -> float | None:
        """When to look again, in seconds."""
        found = await self._store.get(ref)
        if found is None or found.state == "gone":
            # Of a record that nobody can read any more, the content is unreadable as well.
            await self._keeping.remove(ref)
            return None
        age_ms = found.now_ms - found.created_ms
        if found.state == "making":
            if age_ms < MADE_WITHIN_MS:
                return (MADE_WITHIN_MS - age_ms) / 1000
            return await self._end(found, "left")
        if not found.thread_id:
            left_ms = found.expires_ms - found.now_ms
            return left_ms / 1000 if left_ms > 0 else await self._end(found, "expired")
        for thread_id in await self._store.holders(ref):
            if not await self._has(found, RunRef(ref.tenant, thread_id, found.run_id)) and await self._let_go(ref, thread_id):
                return None
        return min(max(age_ms / 1000, DAY_S), MONTH_S)

    async def _has(self, found: KeptBlob, ref: RunRef) -> bool:
        """Whether a thread is there, with the run that made a blob of it: one may have been deleted in the moment in which the blob was
        kept, and who deletes the other may be lost behind that."""
        if await self._owners.user_of(ref) != found.user:
            return False
        return not ref.run_id or await self._owners.run(ref) is not None or await self._owners.taken_over(ref)

    async def _end(self, found: KeptBlob, why: str) -> float | None:
        if not await self._store.going(found.ref, found.asked_ms):
            # Somebody has asked for it in this moment.
            return AGAIN_S
        await self._keeping.remove(found.ref)
        _deleted.add(1, {"why": why})
        return None

    async def _let_go(self, ref: BlobRef, thread_id: str) -> bool:
        if not await self._store.let_go(ref, thread_id):
            return False
        await self._keeping.remove(ref)
        _deleted.add(1, {"why": "thread"})
        return True

    async def drop_thread(self, tenant: str, thread_id: str) -> None:
        """Deletes what a thread that is being deleted holds, and no fork of it does. Raises Overloaded."""
        while found := await self._store.of_thread(tenant, thread_id, MOST_AT_ONCE):
            await asyncio.gather(*(self._let_go(ref, thread_id) for ref in found))

    async def drop_run(self, ref: RunRef) -> None:
        """Deletes what a run made whose retention in its thread has ended, as far as no fork has it. Raises Overloaded."""
        await asyncio.gather(*(self._let_go(blob, ref.thread_id) for blob in await self._store.of_run(ref)))

    async def drop_user(self, tenant: str, user: str) -> int:
        """Deletes all blobs of a user who is marked as one that is being erased; answers how many. Raises Overloaded."""
        count = 0
        while found := await self._store.of_user(tenant, user, MOST_AT_ONCE):
            await asyncio.gather(*(self._erase(ref, user) for ref in found))
            count += len(found)
        return count

    async def _erase(self, ref: BlobRef, user: str) -> None:
        await self._store.going(ref)
        await self._keeping.remove(ref, user)
        _deleted.add(1, {"why": "erased"})

    async def share(self, tenant: str, thread_id: str, fork: str) -> None:
        """Has a fork hold what the thread that it is made of holds, before anybody sees it. Raises Overloaded."""
        await self._store.share(tenant, thread_id, fork)
