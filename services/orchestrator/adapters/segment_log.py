"""The store's side of moving a thread's log to segments, and of deleting what has been kept for long enough."""

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import ENDED, RESULTS, listed_key, lookup_key, segments_key, thread_keys
from services.orchestrator.records import RunRef
from services.orchestrator.segments import Entry, Segment


class SegmentLogStore(StoreBase):
    """LogArchive on Valkey."""

    async def ended_due(self, most: int, age_s: float, again_in_s: float) -> list[RunRef]:
        """As LogArchive.ended_due."""
        args = [most, int(again_in_s * 1000), int(age_s * 1000)]
        return [RunRef.decode(text(found)) for found in await self._ask(self._library.call("work_due_v1", [ENDED], args))]

    async def ended_again(self, ref: RunRef, age_s: float, again_in_s: float | None) -> None:
        """As LogArchive.ended_again."""
        if again_in_s is None:
            await self._ask(self._library.batched_command("ZREM", ENDED, ref.encode()))
        else:
            await self._ask(self._library.batched("work_note_v1", [ENDED], [int((again_in_s - age_s) * 1000), ref.encode(), "XX"]))

    async def movable(self, ref: RunRef, age_s: float, most: int) -> tuple[str, float, list[Entry]]:
        """As LogArchive.movable."""
        state, left_ms, entries = await self._ask(
            self._library.batched("thread_movable_v1", thread_keys(ref)[:3], [int(age_s * 1000), most])
        )
        return text(state), int(left_ms) / 1000, entries

    async def moved(self, ref: RunRef, segment: Segment) -> bool:
        """As LogArchive.moved."""
        keys = [*thread_keys(ref)[:2], segments_key(ref)]
        return int(await self._durable("thread_move_v1", keys, [segment.first, segment.last, segment.encode()])) == 1

    async def oldest(self, ref: RunRef) -> tuple[int, str, int]:
        """As LogArchive.oldest."""
        keys = thread_keys(ref)
        first, run_id, now = await self._ask(self._library.batched("thread_oldest_v1", [keys[0], keys[6]], []))
        return int(first), text(run_id), int(now)

    async def expire(self, ref: RunRef, age_s: float) -> bool:
        """As LogArchive.expire."""
        keys = [*thread_keys(ref), segments_key(ref)]
        return int(await self._durable("thread_expire_v1", keys, [ref.run_id, int(age_s * 1000)])) == 1

    async def deleted(self, ref: RunRef) -> bool:
        """As LogArchive.deleted."""
        # A user who was erased leaves not even a tombstone.
        return await self._ask(self._client.hget(thread_keys(ref)[0], "user")) in (None, b"\0gone")

    async def results_due(self, most: int, again_in_s: float) -> list[RunRef]:
        """As ResultArchive.results_due."""
        found = await self._ask(self._library.call("work_due_v1", [RESULTS], [most, int(again_in_s * 1000), 0]))
        return [RunRef.decode(text(member)) for member in found]

    async def results_again(self, ref: RunRef, again_in_s: float | None) -> None:
        """As ResultArchive.results_again."""
        if again_in_s is None:
            await self._ask(self._client.zrem(RESULTS, ref.encode()))
        else:
            await self._ask(self._library.batched("work_note_v1", [RESULTS], [int(again_in_s * 1000), ref.encode(), "XX"]))

    async def has_results(self, ref: RunRef) -> bool:
        """As ResultArchive.has_results."""
        return await self._ask(self._client.zscore(RESULTS, ref.encode())) is not None

    async def taken_over(self, ref: RunRef) -> bool:
        """As ResultArchive.taken_over."""
        user, forked_at, oldest = await self._ask(self._client.hmget(thread_keys(ref)[0], ["user", "forked_at", "oldest_seq"]))
        if user in (None, b"\0gone"):
            return False
        return user == b"\0building" or int(oldest or 1) <= int(forked_at or 0)

    async def unlist(self, ref: RunRef, age_s: float) -> None:
        """As LogArchive.unlist."""
        lookup = lookup_key(ref.tenant, ref.run_id)
        user = await self._ask(self._library.batched_command("HGET", lookup, "user"))
        if user is not None:
            keys = [lookup, listed_key(ref.tenant, "runs", text(user))]
            await self._ask(self._library.batched("tenant_unlist_v1", keys, [ref.run_id, ref.thread_id, int(age_s * 1000)]))
