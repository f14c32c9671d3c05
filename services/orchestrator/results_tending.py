"""Removes large results that nothing points to: of runs that are gone, and what a process put aside that died before it could say so.

Whoever puts a result aside has noted its run before. A run that has ended is looked at once nobody can write for it any more; then, less
and less often, only so that what others have deleted, a replica of the version before among them, leaves nothing behind.
"""

import asyncio
from collections.abc import Collection
from typing import Protocol

from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.repeating import repeat, safely

MOST_AT_ONCE = 16
# What a look mostly does is wait.
MOST_PARALLEL = 8
TURN_S = 5.0
AGAIN_S = 60.0
DAY_S = 86_400.0
MONTH_S = 30 * DAY_S


class ResultArchive(Protocol):
    """The state store's side. Raises Overloaded while it is away."""

    async def results_due(self, most: int, again_in_s: float) -> list[RunRef]:
        """Runs of which large results were put aside and that are to be looked at; they are due again in `again_in_s`."""
        ...

    async def results_again(self, ref: RunRef, again_in_s: float | None) -> None:
        """Has a run that is noted looked at again in `again_in_s` (None: never)."""
        ...

    async def has_results(self, ref: RunRef) -> bool:
        """Whether a run is noted."""
        ...

    async def taken_over(self, ref: RunRef) -> bool:
        """Whether events of a run that has no record in this thread may be in its log, from the thread that it was forked of."""
        ...

    async def stored_results(self, ref: RunRef, first_seq: int, last_seq: int) -> set[str]:
        """Names of the results that events of a run point to. Raises Gone, Internal."""
        ...

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        ...

    async def oldest(self, ref: RunRef) -> tuple[int, str, int]:
        """As LogArchive.oldest."""
        ...


class Results(Protocol):
    """Where they are. Raises Overloaded (RESULTS_UNAVAILABLE) while it cannot be used."""

    async def drop(self, ref: RunRef, but: Collection[str] = ()) -> None:
        """Removes the results of a run, all `but` those of these names."""
        ...


class RunBlobs(Protocol):
    """As BlobTending."""

    async def drop_run(self, ref: RunRef) -> None:
        """As BlobTending.drop_run."""
        ...


class ResultTending:
    """Looks at runs; `after_s` is how long after its end nobody writes for a run any more. `blobs` end with their runs, too."""

    def __init__(self, archive: ResultArchive, results: Results, after_s: float, blobs: RunBlobs | None = None) -> None:
        self._archive, self._results, self._after_s, self._blobs = archive, results, after_s, blobs

    async def run(self) -> None:
        """Looks until cancelled; a store that is away is tried again."""
        await repeat("results", self.turn, MOST_AT_ONCE, TURN_S)

    async def turn(self) -> int:
        """Looks at what is due, at most MOST_AT_ONCE; answers how many there were. Raises Overloaded."""
        refs = await self._archive.results_due(MOST_AT_ONCE, AGAIN_S)
        places = asyncio.Semaphore(MOST_PARALLEL)

        async def one(ref: RunRef) -> None:
            async with places:
                await safely("results", self.look(ref), run_id=ref.run_id)

        await asyncio.gather(*map(one, refs))
        return len(refs)

    async def look(self, ref: RunRef) -> None:
        """Does what is due for one run. Raises BulkheadError."""
        await self._archive.results_again(ref, await self._look(ref))

    async def _look(self, ref: RunRef) -> float | None:
        """When to look again, in seconds."""
        record = await self._archive.run(ref)
        if record is None:
            if await self._archive.taken_over(ref):
                return DAY_S
            await self._results.drop(ref)
            return None
        if not record.ended:
            return AGAIN_S
        _, _, now_ms = await self._archive.oldest(ref)
        ended_s = (now_ms - record.ended_ms) / 1000
        if ended_s < self._after_s:
            return self._after_s - ended_s
        held = await self._archive.stored_results(ref, record.first_seq, record.terminal_seq)
        await self._results.drop(ref, held)
        return min(max(ended_s, DAY_S), MONTH_S) if held else None

    async def expiring(self, ref: RunRef) -> None:
        """To be called before the retention of a run ends: should this process die behind that, its results are found all the same."""
        await self._archive.results_again(ref, AGAIN_S)

    async def expired(self, ref: RunRef) -> None:
        """The run is deleted, and its part of the log. Raises Overloaded."""
        if await self._archive.has_results(ref):
            await self._results.drop(ref)
            await self._archive.results_again(ref, None)
        if self._blobs is not None:
            await self._blobs.drop_run(ref)
