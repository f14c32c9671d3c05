"""Keeps the state store's memory bounded: moves the log of ended runs to segments, and deletes what was kept for long enough.

One of any number, like the sweeper. Each step can be done again and by two at once; a process that dies between two of them
leaves a run that is due again, and at worst a file that nothing points to.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from opentelemetry.metrics import get_meter

from services.common.errors import Overloaded
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.repeating import repeat, safely
from services.orchestrator.results_tending import ResultTending
from services.orchestrator.segments import ALL, MOST_ENTRIES, Entry, Segment, SegmentStore, fitting, pack

MOST_AT_ONCE = 128
# The log of a run is work for the disk; more at once would only take the loop from the runs that are at work. Where a turn is full, as
# more runs end than are looked at, the store's memory grows, and that costs them more: what a look mostly does is wait.
MOST_PARALLEL, BEHIND_PARALLEL = 8, 32
# Runs of one thread that one look deletes; the next look goes on.
MOST_EXPIRED = 100
TURN_S = 5.0
# A look that does not come to its end, because its process did, is had again after this time.
AGAIN_S = 60.0
# A longer retention is looked at this often, so that a shorter one holds for the runs that are there already.
DAY_S = 86_400.0
# What is kept for ever is looked at this often, so that a retention that its tier gets later finds it.
MONTH_S = 30 * DAY_S
_meter = get_meter("bulkhead.orchestrator")
_moved = _meter.create_counter("bulkhead_segments_moved_total", description="Segments of event logs that left the state store.")
_bytes = _meter.create_counter("bulkhead_segments_bytes_total", description="Bytes of these segments, compressed.", unit="By")
_expired = _meter.create_counter("bulkhead_runs_expired_total", description="Runs that were deleted at the end of their retention.")


class LogArchive(Protocol):
    """The state store's side. Raises Overloaded while it is away."""

    async def ended_due(self, most: int, age_s: float, again_in_s: float) -> list[RunRef]:
        """Runs that ended `age_s` ago, or are to be looked at again; they are due again in `again_in_s`."""
        ...

    async def ended_again(self, ref: RunRef, age_s: float, again_in_s: float | None) -> None:
        """Has a run looked at again in `again_in_s` (None: never)."""
        ...

    async def movable(self, ref: RunRef, age_s: float, most: int) -> tuple[str, float, list[Entry]]:
        """(none, open, young or ready; seconds until it is of age; the front of the thread's log up to the run's end)."""
        ...

    async def moved(self, ref: RunRef, segment: Segment) -> bool:
        """The front of the log is in `segment`: points to it and takes it off the log, in one step. False where it was done before."""
        ...

    async def oldest(self, ref: RunRef) -> tuple[int, str, int]:
        """(first number that is kept, id of the oldest run or '', the store's time in ms) of a thread."""
        ...

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        ...

    async def expire(self, ref: RunRef, age_s: float) -> bool:
        """Deletes the thread's oldest run, ended `age_s` ago, and its part of the log in one step. False where that is not so."""
        ...

    async def deleted(self, ref: RunRef) -> bool:
        """Whether the run's thread was deleted as a whole."""
        ...

    async def unlist(self, ref: RunRef, age_s: float) -> None:
        """Takes a deleted run out of the tenant's lists, unless its id was taken again within `age_s`."""
        ...


class SegmentMover:
    """Moves and deletes. Without a segment store it only deletes."""

    def __init__(
        self, archive: LogArchive, segments: SegmentStore | None, after_s: float, retention_s: Callable[[str], float | None],
        result_tending: ResultTending | None = None,
    ) -> None:  # fmt: skip
        """`after_s` is how long an ended run's log stays where it is; `retention_s` answers how long a tier's runs are kept
        (None: for ever); `result_tending` hears before and after a run is deleted, whose large results it removes."""
        self._archive, self._segments, self._result_tending = archive, segments, result_tending
        self._after_s, self._retention_s = after_s, retention_s

    async def run(self) -> None:
        """Moves until cancelled; a store that is away is tried again."""
        await repeat("segments", self.turn, MOST_AT_ONCE, TURN_S)

    async def turn(self) -> int:
        """Looks at runs that are due, at most MOST_AT_ONCE; answers how many there were. Raises Overloaded."""
        refs = await self._archive.ended_due(MOST_AT_ONCE, self._after_s, AGAIN_S)
        threads: dict[tuple[str, str], list[RunRef]] = {}
        for ref in refs:
            threads.setdefault(ref[:2], []).append(ref)
        places = asyncio.Semaphore(BEHIND_PARALLEL if len(refs) == MOST_AT_ONCE else MOST_PARALLEL)

        async def of_thread(runs: Sequence[RunRef]) -> None:
            # One after the other: two at once would write the same events twice, once for nothing.
            async with places:
                for ref in runs:
                    await safely("segment", self.look(ref), Overloaded, run_id=ref.run_id)

        await asyncio.gather(*map(of_thread, threads.values()))
        return len(refs)

    async def look(self, ref: RunRef) -> None:
        """Does what is due for one run and its thread. Raises Overloaded."""
        state, left_s = await self._move(ref)
        if state == "young":
            again_s: float | None = left_s
        elif state == "open":
            again_s = AGAIN_S
        else:
            again_s = await self._expire(ref)
        if state == "none":
            # Deleted before, by a look that may have got no further.
            await self._archive.unlist(ref, self._after_s)
            if self._segments is not None and await self._archive.deleted(ref):
                # A move that was under way while its thread was deleted may have left a file.
                await self._segments.drop(ref.tenant, ref.thread_id, ALL)
            again_s = None
        await self._archive.ended_again(ref, self._after_s, again_s)

    async def _move(self, ref: RunRef) -> tuple[str, float]:
        segments = self._segments
        while True:
            state, left_s, entries = await self._archive.movable(ref, self._after_s, MOST_ENTRIES if segments is not None else 0)
            if segments is None or not entries:
                return state, left_s
            front = fitting(entries)
            moved = await self._move_front(segments, ref, front)
            if moved and len(front) == len(entries) < MOST_ENTRIES:
                return state, left_s

    async def _move_front(self, segments: SegmentStore, ref: RunRef, entries: Sequence[Entry]) -> bool:
        segment, content = await asyncio.to_thread(pack, entries)
        await segments.put(ref.tenant, ref.thread_id, segment, content)
        moved = await self._archive.moved(ref, segment)
        if moved:
            _moved.add(1)
            _bytes.add(len(content))
        return moved

    async def _expire(self, ref: RunRef) -> float:
        """Deletes from the thread's oldest run on what has passed its retention; answers when to look again, in seconds."""
        again_s, first = DAY_S, 1
        for _ in range(MOST_EXPIRED):
            first, run_id, now_ms = await self._archive.oldest(ref)
            if not run_id:
                break
            oldest = ref._replace(run_id=run_id)
            record = await self._archive.run(oldest)
            keep_s = 0.0
            if record is not None:
                found = self._retention_s(str(record.spec.principal.get("tier", "")))
                if found is None:
                    again_s = MONTH_S
                    break
                keep_s = found
                if not record.ended or (left_s := record.ended_ms / 1000 + keep_s - now_ms / 1000) > 0:
                    again_s = min(DAY_S, left_s if record.ended else DAY_S)
                    break
            if self._result_tending is not None:
                await self._result_tending.expiring(oldest)
            if not await self._archive.expire(oldest, keep_s):
                # Its outbox is not delivered yet.
                again_s = AGAIN_S
                break
            if self._result_tending is not None:
                await self._result_tending.expired(oldest)
            await self._archive.unlist(oldest, keep_s or self._after_s)
            _expired.add(1)
        else:
            again_s = AGAIN_S
        if self._segments is not None and first > 1:
            # Also where nothing was deleted: a look before this one may have got no further. What the last of MOST_EXPIRED left goes
            # with the next look.
            await self._segments.drop(ref.tenant, ref.thread_id, first)
        return again_s
