"""Deleting a thread: hidden at once, then taken out of every place that leads to it, then deleted. Each step can be done again."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import orjson
import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import DeadlineExceeded, Gone, Internal, NotFound, Overloaded, UpstreamFailed
from services.common.identity import Principal
from services.orchestrator.hub import Hub
from services.orchestrator.records import RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.segments import SegmentStore
from services.orchestrator.segments_moving import ALL
from services.orchestrator.threads.changing import AGAIN_S, NOTED_S, RUNS_AT_ONCE, Changing, settled
from services.orchestrator.threads.conversation import Conversation
from services.orchestrator.threads.ports import ThreadStore

# Runs that take longer to end lose their records: whoever works on them is fenced with the next write.
END_WITHIN_S = 10.0
DAMAGED = "SEGMENT_DAMAGED"
log = structlog.get_logger("bulkhead.threads")
_deleted = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_threads_deleted_total", description="Threads that were deleted as a whole, by why: asked, expired or abandoned."
)


class ThreadBlobs(Protocol):
    """As BlobTending."""

    async def drop_thread(self, tenant: str, thread_id: str) -> None:
        """As BlobTending.drop_thread."""
        ...

    async def share(self, tenant: str, thread_id: str, fork: str) -> None:
        """As BlobTending.share."""
        ...


class Deleting:
    """Deletes threads."""

    def __init__(
        self, store: RunStore, threads: ThreadStore, changing: Changing, conversation: Conversation, hub: Hub,
        segments: SegmentStore | None, tell: Callable[[RunRef], Awaitable[None]], blobs: ThreadBlobs | None = None,
    ) -> None:  # fmt: skip
        """`tell` as Outbox.tell."""
        self._store, self._threads, self._changing, self._conversation = store, threads, changing, conversation
        self._hub, self._segments, self._tell, self._blobs = hub, segments, tell, blobs

    async def delete(self, principal: Principal, thread_id: str) -> bool:
        """Deletes the caller's thread; False where something that is needed for it is away, and the sweeper goes on. Again is harmless.

        Raises NotFound, Overloaded.
        """
        ref = RunRef(principal.tenant, thread_id, "-")
        not_after_ms = await self._threads.note(ref, NOTED_S)
        job = orjson.dumps({"kind": "delete", "why": "asked", "principal": principal.as_dict()})
        begun = await self._threads.begin(ref, principal.user, "gone", job, not_after_ms)
        if begun.verdict == "none":
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        if begun.verdict == "late":
            raise Overloaded("deleting the thread took too long", reason="DELETE_TIMED_OUT", retry_after_s=1.0)
        if not begun.job:
            return True
        try:
            await self.work(ref, begun.job)
        except (Overloaded, UpstreamFailed, DeadlineExceeded) as error:
            log.warning("delete_postponed", thread_id=thread_id, reason=error.reason)
            return False
        return True

    async def expire(self, ref: RunRef, principal: Principal) -> None:
        """Deletes a thread whose time to live has ended; nothing where it has had activity since. Raises BulkheadError."""
        not_after_ms = await self._threads.note(ref, NOTED_S)
        job = orjson.dumps({"kind": "delete", "why": "expired", "principal": principal.as_dict()})
        begun = await self._threads.begin(ref, "", "gone", job, not_after_ms, expired=True)
        if begun.job and begun.verdict in ("begun", "same", "gone"):
            await self.work(ref, begun.job)

    async def abandon(self, ref: RunRef, principal: Principal) -> None:
        """Deletes a fork that cannot be made whole. Raises BulkheadError."""
        not_after_ms = await self._threads.note(ref, NOTED_S)
        job = orjson.dumps({"kind": "delete", "why": "abandoned", "principal": principal.as_dict()})
        begun = await self._threads.begin(ref, "", "gone", job, not_after_ms)
        if begun.job:
            await self.work(ref, begun.job)

    async def work(self, ref: RunRef, raw: bytes) -> None:
        """Deletes, from wherever it was left. Raises BulkheadError."""
        await self._threads.note(ref, AGAIN_S)
        job = orjson.loads(raw)
        principal = Principal.from_dict(job["principal"])
        run_ids = await self._threads.run_ids(ref)
        left = await self._changing.end(ref, principal, run_ids, "the thread was deleted", END_WITHIN_S, lambda record: False)
        for record in left:
            log.warning("deleted_at_work", thread_id=ref.thread_id, run_id=record.run_id)
        await self._begin_children(ref, principal, run_ids, job["why"])
        # First what leads to the runs, then the runs: who comes after us still finds which ones are left.
        for at in range(0, len(run_ids), RUNS_AT_ONCE):
            chunk = run_ids[at : at + RUNS_AT_ONCE]
            for run_id in await self._threads.unsettled(ref, chunk):
                # Whoever ended it may have been lost before its audit record was made, for which nothing would be there any more.
                await self._tell(ref._replace(run_id=run_id))
            for run_id in chunk:
                await self._store.release_slot(ref._replace(run_id=run_id))
            await self._threads.delist(ref, principal.user, chunk)
            await self._threads.purge_runs(ref, chunk)
        await self._changing.delete_session(ref, principal)
        if self._blobs is not None:
            await self._blobs.drop_thread(ref.tenant, ref.thread_id)
        if self._segments is not None:
            await self._segments.drop(ref.tenant, ref.thread_id, ALL)
            # A mover that was midway may write one more file; whoever looks at the run next drops it.
            await self._threads.ended(ref._replace(run_id=run_ids[-1] if run_ids else "-"))
        await self._threads.delist_thread(ref, principal.user)
        last = await self._threads.purge(ref, principal.user)
        self._hub.noticed(ref, last)
        await settled(self._threads, ref, None)
        _deleted.add(1, {"why": job["why"]})

    async def _begin_children(self, ref: RunRef, principal: Principal, run_ids: Sequence[str], why: str) -> None:
        """Begins to delete the threads on which other agents worked for runs of this one; whoever looks at threads goes on with it."""
        for record in await self._changing.records(ref, run_ids):
            try:
                names = await self._conversation.child_threads(ref, record)
            except Gone:
                continue
            except Internal as error:
                if error.reason != DAMAGED:
                    raise
                # It will not become whole, and the user's thread goes all the same.
                log.error("children_untold", thread_id=ref.thread_id, run_id=record.run_id, **error.metadata)
                continue
            for name in names:
                child = ref._replace(thread_id=name)
                made = await self._changing.records(child, await self._threads.run_ids(child))
                # Those of a fork's copied runs belong to the thread that it was forked from.
                asked_by = {RunRef.decode(run.spec.child_of["ref"]).thread_id for run in made if run.spec.child_of}
                if asked_by == {ref.thread_id}:
                    not_after_ms = await self._threads.note(child, AGAIN_S)
                    job = orjson.dumps({"kind": "delete", "why": why, "principal": principal.as_dict()})
                    await self._threads.begin(child, principal.user, "gone", job, not_after_ms)
