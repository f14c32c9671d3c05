"""Repairs what a lost process left half-done: runs without an owner, accepts without a wake-up, ends without an epilogue."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import Overloaded
from services.orchestrator import parking
from services.orchestrator.outbox import Outbox
from services.orchestrator.reach import Reach
from services.orchestrator.records import SCHEMA_VERSION, Inspected, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.settings import Settings
from services.orchestrator.worker import Worker

MOST_AT_ONCE = 200
MOST_DELIVERIES = 64
LOOK_AGAIN_S = 1.0
# A slot that becomes free starts the next run at once; this is for a process that was lost in between.
HELD_LOOK_S = 2.0
# A run that could have been taken for so long, and is of a schema that not every version reads, has lost its wake-up to processes that do
# not: they take it off the queue and leave it.
PASSED_BY_S = 2.0
READ_BY_ALL = 1
# Turns from one look at what others have looked at to the next, and how much of that; where there is more, another part each time.
AHEAD_EVERY, MOST_AHEAD = 8, 2_000
# Past the end of a lease, so that one look finds it expired.
LEASE_MARGIN_S = 0.02
log = structlog.get_logger("bulkhead.sweeper")
_meter = get_meter("bulkhead.orchestrator")
_repairs = _meter.create_counter("bulkhead_sweeper_repairs_total", description="What the sweeper put right, by state it found.")
_depth = _meter.create_gauge(
    "bulkhead_queue_depth", description="Runs that wait for a worker of this process's track, as the sweeper sees it."
)


class Sweeper:
    """One of any number; each entry is looked at by one of them at a time."""

    def __init__(self, settings: Settings, store: RunStore, worker: Worker, outbox: Outbox, reach: Reach | None = None) -> None:
        """`reach` is told of each answer of the store; None: the store is never away."""
        self._settings, self._store, self._worker, self._outbox = settings, store, worker, outbox
        self._reach = reach or Reach()
        self._deliveries: set[asyncio.Task] = set()
        self._turns = 0

    async def run(self) -> None:
        """Sweeps until cancelled; a store that is away is tried again."""
        try:
            await self._sweep()
        finally:
            for task in self._deliveries:
                task.cancel()

    async def _sweep(self) -> None:
        while True:
            try:
                _depth.set(await self._store.depth(self._settings.track), {"track": self._settings.track})
                await self.turn()
            except Overloaded:
                log.debug("sweep_postponed")
            # Jitter keeps the sweepers of many replicas apart.
            await asyncio.sleep(self._settings.sweep_s * random.uniform(0.8, 1.2))  # noqa: S311

    async def turn(self) -> None:
        """Looks at all that is due, and every few times at what others have just looked at. Raises Overloaded."""
        while True:
            refs = await self._store.due(MOST_AT_ONCE, LOOK_AGAIN_S)
            self._reach.heard()
            await self._each(refs, self._look)
            if len(refs) < MOST_AT_ONCE:
                break
        if self._turns % AHEAD_EVERY == 0 and self._worker.has_room():
            # Of many sweepers of the version before, one of those is mostly the one that is told to look.
            found = await self._store.ahead(MOST_AHEAD, LOOK_AGAIN_S, random.random())  # noqa: S311
            for first in range(0, len(found), MOST_AT_ONCE):
                if not self._worker.has_room():
                    break
                await self._each(found[first : first + MOST_AT_ONCE], self._rescue)
        self._turns += 1

    async def _each(self, refs: Sequence[RunRef], look: Callable[[RunRef], Awaitable[object]]) -> None:
        found = await asyncio.gather(*(look(ref) for ref in refs), return_exceptions=True)
        for ref, error in zip(refs, found, strict=True):
            if isinstance(error, Exception) and not isinstance(error, Overloaded):
                # A defect with one run must not keep the others from being looked at.
                log.error("sweep_failed", run_id=ref.run_id, exc_info=error)

    async def _look(self, ref: RunRef) -> None:
        found = await self._store.inspect(ref)
        self._reach.heard()
        state = found.state
        if state == "owned":
            await self._store.note(ref, found.left_ms / 1000 + LEASE_MARGIN_S)
        elif state == "free":
            await self._offer(ref, found)
        elif state == "held":
            await self._hold(ref, found.epoch)
        elif state == "parked":
            await self._parked(ref, found)
        elif state == "ended":
            if await self._worker.wind_up(ref):
                await self._undelivered(ref)
            else:
                await self._outbox.settle(ref)
        elif state == "outbox":
            await self._undelivered(ref)
        elif state == "none" and await self._store.forget(ref):
            _repairs.add(1, {"state": "forgotten"})
            log.info("reservation_forgotten", run_id=ref.run_id)

    async def _undelivered(self, ref: RunRef) -> None:
        await self._store.release_slot(ref)
        self._deliver(ref)

    def _deliver(self, ref: RunRef) -> None:
        """Beside the sweep: a memory service that hangs must not hold up the takeover of runs."""
        if len(self._deliveries) < MOST_DELIVERIES:
            task = asyncio.create_task(self._outbox.deliver(ref), name=f"outbox {ref.run_id}")
            self._deliveries.add(task)
            task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task) -> None:
        self._deliveries.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Overloaded):
            log.error("outbox_failed", task=task.get_name(), exc_info=error)

    async def _hold(self, ref: RunRef, epoch: int) -> None:
        """A run whose time has come gets a place in its tenant's queue; one whose turn it is starts."""
        _, _, schedule = await self._store.schedule(ref)
        ahead_s = schedule.start_ms / 1000 - time.time()
        if ahead_s > 0:
            await self._store.note(ref, ahead_s)
        elif await self._store.admit(ref, schedule, epoch):
            _repairs.add(1, {"state": "admitted"})
            await self._worker.start(ref)
        else:
            await self._store.note(ref, HELD_LOOK_S)

    async def _parked(self, ref: RunRef, found: Inspected) -> None:
        """A parked run whose time has come goes on. Its slot is another's meanwhile, also where its owner was lost on the way."""
        if found.left_ms:
            await parking.rest(self._store, ref, found.epoch, found.left_ms / 1000 if found.left_ms > 0 else parking.LOOK_S)
        elif await self._store.unpark(ref):
            # It needs a slot first, or ends where it was cancelled.
            await self._look(ref)

    async def _offer(self, ref: RunRef, found: Inspected) -> None:
        own, track = self._settings.track, found.track
        if self._worker.owns(ref) or found.schema > SCHEMA_VERSION:
            # Ours although its lease ran out: the store was away, and the next heartbeat says how it stands.
            return
        if (grace_s := self._grace_s(found)) > 0:
            # As likely another's whose next heartbeat is on its way: losing its owner would be charged to the run.
            await self._store.note(ref, grace_s)
            return
        if track != own and found.alone_ms > self._settings.other_track_after_s * 1000:
            track = own
        _repairs.add(1, {"state": "offered"})
        _, since_ms, schedule = await self._store.schedule(ref)
        await self._store.wake(ref, track, since_ms, schedule=schedule)

    def _grace_s(self, found: Inspected) -> float:
        # Who has no owner has been alone since it was queued, and no lease ran out.
        return self._reach.grace_s(found.alone_ms / 1000) if found.alone_ms == -found.left_ms else 0.0

    async def _rescue(self, ref: RunRef) -> None:
        """Takes a run that was passed by, without a detour over the queue."""
        if self._worker.owns(ref):
            return
        found = await self._store.inspect(ref)
        self._reach.heard()
        passed_by = READ_BY_ALL < found.schema <= SCHEMA_VERSION and found.alone_ms > PASSED_BY_S * 1000
        ours = found.state == "free" and found.track == self._settings.track
        if passed_by and ours and not self._grace_s(found) and self._worker.take(ref):
            _repairs.add(1, {"state": "passed_by"})
