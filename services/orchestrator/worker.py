"""Owns runs: claims them, keeps their leases, works on them, and lets go of them in good order."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import Overloaded
from services.common.identity import Minter, Principal
from services.orchestrator.agents import AgentCatalog
from services.orchestrator.driving import Driver, Left, Owned
from services.orchestrator.giving_up import wind_up
from services.orchestrator.hub import Hub
from services.orchestrator.outbox import Outbox
from services.orchestrator.quarantine import LOOK_S, Quarantine
from services.orchestrator.records import Claim, Event, Fenced, RunRecord, RunRef, Schedule
from services.orchestrator.run_store import RunStore
from services.orchestrator.settings import Settings
from services.orchestrator.turn.state import Services

# Left of the drain's grace to hand a run over whose step did not end in time.
HAND_OVER_S = 1.0
CLAIM_WAIT_S = 1.0
# The tenant of a wake-up that is put back has been served nothing.
NO_TURN = 1000
STORE_AWAY_WAIT_S = 0.3
log = structlog.get_logger("bulkhead.worker")
_meter = get_meter("bulkhead.orchestrator")
_active = _meter.create_up_down_counter("bulkhead_runs_active", description="Runs that this process works on.")
_queue_s = _meter.create_histogram(
    "bulkhead_run_queue_seconds", unit="s", description="Time from accept, or from the start that was asked for, to first claim, by track."
)


@dataclass
class Worker:
    """Works on the runs of one track."""

    settings: Settings
    store: RunStore
    hub: Hub
    agents: AgentCatalog
    services: Services
    outbox: Outbox
    minter: Minter
    owned: dict[RunRef, Owned] = field(default_factory=dict)
    draining: bool = False

    def __post_init__(self) -> None:
        self._background: set[asyncio.Task] = set()
        self._driver = Driver(
            self.settings, self.store, self.hub, self.agents, self.services, self.outbox, self.minter, lambda: self.draining
        )
        self._by_id: dict[tuple[str, str], Owned] = {}
        self._quarantine = Quarantine()
        self._claiming = 0
        # Whether the last look at the queue found nobody; while others wait there, a new run waits behind them.
        self._clear = True
        self._room = asyncio.Event()
        self._room.set()
        # Set while nothing is owned, and nothing is being claimed or accepted that may be.
        self._idle = asyncio.Event()
        self._idle.set()
        # Not set while the queue may hand a run to this process.
        self._waits = asyncio.Event()
        self._waits.set()

    # --- taking runs ---

    def has_room(self) -> bool:
        """Whether one more run can be taken."""
        return not self.draining and len(self.owned) + self._claiming < self.settings.max_active_runs

    def find(self, principal: Principal, run_id: str) -> RunRef | None:
        """A run of the caller that is at work here."""
        owned = self._by_id.get((principal.tenant, run_id))
        return owned.ref if owned is not None and owned.record.spec.principal["user"] == principal.user else None

    def owns(self, ref: RunRef) -> bool:
        """Whether this process works on the run."""
        return ref in self.owned

    def hold_room(self) -> bool:
        """Keeps room for a run that is being accepted, where nobody waits for it; `free_room` ends it."""
        if not self._clear or not self.has_room():
            return False
        self._begin_claim()
        return True

    def free_room(self) -> None:
        """The inverse of `hold_room`; a run that was accepted meanwhile is adopted before anything else happens."""
        self._end_claim()

    def adopt(self, ref: RunRef, claim: Claim) -> None:
        """Works on a run that this process has just accepted and owns."""
        assert claim.record is not None
        self._register(ref, claim.record)
        self._spawn(self._own(ref, claim), f"run {ref.run_id}")

    def take(self, ref: RunRef) -> bool:
        """Begins to claim a run without a detour over the queue; False when there is no room."""
        if (owned := self.owned.get(ref)) is not None and not owned.released:
            # Ours although its lease ran out, as after a long pause: the next heartbeat says how it stands.
            return True
        if not self.has_room():
            return False
        self._begin_claim()
        self._spawn(self._claim(ref), f"claim {ref.run_id}")
        return True

    async def consume(self) -> None:
        """Takes runs from the queue until the process is going away."""
        self._waits.clear()
        try:
            await self._consume()
        finally:
            self._waits.set()

    async def _consume(self) -> None:
        while not self.draining:
            if not self.has_room():
                # Who comes meanwhile is not seen from here.
                self._clear = False
                self._room.clear()
                await self._room.wait()
                continue
            try:
                ref = await self.store.next_waiting(self.settings.track)
                self._clear = ref is None
                if ref is None:
                    ref = await self.store.next_ready(self.settings.track, CLAIM_WAIT_S)
                if ref is not None and not self.take(ref):
                    # Popped on the way out, or room that was taken meanwhile: nobody should have to wait for the sweeper.
                    self._clear = False
                    await self._put_back(ref)
            except Overloaded:
                await asyncio.sleep(STORE_AWAY_WAIT_S)

    async def _put_back(self, ref: RunRef) -> None:
        _, since_ms, schedule = await self.store.schedule(ref)
        await self.store.wake(ref, self.settings.track, since_ms, schedule=schedule._replace(weight=NO_TURN))

    async def wake(self, ref: RunRef, track: str, since_ms: int, schedule: Schedule) -> None:
        """Has somebody of `track` take the run: this process where it can and nobody waits for it, else whoever's turn it is."""
        if track != self.settings.track or ref in self.owned or not self._clear or not self.take(ref):
            await self.store.wake(ref, track, since_ms, schedule=schedule)

    def admitted(self, refs: Sequence[RunRef]) -> None:
        """Starts runs that got a slot; what fails here the sweeper does."""
        for ref in refs:
            self._spawn(self.start(ref), f"start {ref.run_id}")

    async def start(self, ref: RunRef) -> None:
        """Ends the hold of a run that has a slot. Raises Overloaded."""
        state, scheduled = await asyncio.gather(self.store.enter(ref), self.store.schedule(ref))
        if state == "free":
            await self.wake(ref, *scheduled)
        elif state == "ended":
            await self.settle_ended(ref)

    async def resume(self, ref: RunRef) -> None:
        """Gets a run that was parked a slot again and has it taken; where none is free it waits in its tenant's queue. Raises
        Overloaded."""
        inspected, (_, _, schedule) = await asyncio.gather(self.store.inspect(ref), self.store.schedule(ref))
        # Else somebody else has resumed it.
        if inspected.state == "held" and await self.store.admit(ref, schedule, inspected.epoch):
            await self.start(ref)

    async def wake_next(self, ref: RunRef, run_id: str) -> None:
        """Has the next run of a thread taken."""
        if not run_id or run_id == ref.run_id:
            return
        following = ref._replace(run_id=run_id)
        inspected, scheduled = await asyncio.gather(self.store.inspect(following), self.store.schedule(following))
        if inspected[0] == "free":
            await self.wake(following, *scheduled)

    async def _claim(self, ref: RunRef) -> None:
        try:
            claim = await self.store.claim(ref, self.settings.lease_s, self.settings.crash_budget, suspect=False)
            if claim.verdict == "suspect":
                claim = await self._suspected(ref, claim)
        except Overloaded as error:
            # Nothing is known of the claim; its lease, if there is one, runs out and the sweeper finds the run.
            log.warning("claim_failed", run_id=ref.run_id, reason=error.reason)
            return
        finally:
            self._end_claim()
            self._next_suspect()
        if claim.verdict == "claimed" and claim.record is not None:
            self._register(ref, claim.record)
            self._publish_claim(ref, claim)
            await self._own(ref, claim)
        elif claim.verdict == "failed" and claim.written is not None:
            self.hub.noticed(ref, claim.written.last_seq)
            await self._settle(ref, claim.written.next_run, await self.wind_up(ref))

    async def _suspected(self, ref: RunRef, claim: Claim) -> Claim:
        """Claims a run that the next loss ends, unless this process works on such a run. Raises Overloaded."""
        if not self._quarantine.enter(ref):
            await self.store.note(ref, LOOK_S)
            return claim
        try:
            claim = await self.store.claim(ref, self.settings.lease_s, self.settings.crash_budget)
        finally:
            if claim.verdict != "claimed":
                self._quarantine.leave(ref)
        return claim

    def _cleared(self, ref: RunRef) -> None:
        """A run that was lost has come on, or is at work here no longer."""
        if self._quarantine.leave(ref):
            self._next_suspect()

    def _next_suspect(self) -> None:
        ref = self._quarantine.following()
        if ref is not None:
            self.take(ref)

    async def wind_up(self, ref: RunRef) -> bool:
        """As giving_up.wind_up, of a run that has ended."""
        return await wind_up(self.store, self.services, ref)

    async def settle_ended(self, ref: RunRef) -> None:
        """All that follows the end of a run of which it is not known who has ended it, and how far they came. Raises Overloaded."""
        await self._settle(ref, "", await self.wind_up(ref))

    def _register(self, ref: RunRef, record: RunRecord) -> None:
        self.owned[ref] = self._by_id[ref.tenant, ref.run_id] = Owned(ref, record, on_progress=lambda: self._cleared(ref))
        if record.crashes:
            log.info("run_taken_over", run_id=ref.run_id, lost_in_a_row=record.crashes, lost=record.losses)
        self._idle.clear()
        _active.add(1)
        if record.attempt == 1 and not record.state:
            since_ms = max(record.created_ms, record.spec.schedule.start_ms)
            _queue_s.record(max(0, record.started_ms - since_ms) / 1000, {"track": record.track})

    async def _own(self, ref: RunRef, claim: Claim) -> None:
        owned = self.owned[ref]
        owned.task = asyncio.current_task()
        left = Left("lost")
        try:
            left = await self._driver.drive(owned, claim)
        finally:
            if self.owned.get(ref) is owned:
                # It was not handed back and taken anew meanwhile.
                del self.owned[ref], self._by_id[ref.tenant, ref.run_id]
            if left.written is None:
                self.hub.left(ref)
            _active.add(-1)
            self._rest()
            self._freed()
            self._cleared(ref)
        if left.written is not None:
            await self._settle(ref, left.written.next_run, left.outbox)

    def _publish_claim(self, ref: RunRef, claim: Claim) -> None:
        record, written = claim.record, claim.written
        assert record is not None
        assert written is not None
        if not written.first_seq or not self.hub.watched(ref):
            return
        if record.attempt > 1:
            self.hub.noticed(ref, written.last_seq)
            return
        event = Event(written.first_seq, written.at_ms, ref.thread_id, ref.run_id, record.attempt, "run_started", b"{}", False, "")
        self.hub.publish(ref, [event])

    def _begin_claim(self) -> None:
        self._claiming += 1
        self._idle.clear()

    def _end_claim(self) -> None:
        """What was claimed is registered before anybody who waits is heard."""
        self._claiming -= 1
        self._rest()
        self._freed()

    def _rest(self) -> None:
        if not self.owned and not self._claiming:
            self._idle.set()

    def _freed(self) -> None:
        if self.has_room():
            self._room.set()

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Overloaded):
            log.error("work_failed", task=task.get_name(), exc_info=error)

    async def _settle(self, ref: RunRef, next_run: str, outbox: bool) -> None:
        """After the end: what is next in the thread, what leaves, what is free again. The sweeper does whatever this does not."""
        if outbox:
            # Its slot is free now and not when memory has the turn, which may take as long as memory is down.
            await self.store.release_slot(ref)
        if next_run:
            await self.wake_next(ref, next_run)
        if outbox:
            await self.outbox.deliver(ref)
        else:
            await self.outbox.settle(ref)

    # --- keeping and leaving ---

    async def keep_leases(self) -> None:
        """Heartbeats of all runs, forever."""
        while True:
            started = time.monotonic()
            beats = asyncio.gather(*(self._beat(owned) for owned in list(self.owned.values())))
            # A round goes over one connection. Where that hangs, the next round must not wait for it: it goes over another.
            done, _ = await asyncio.wait([beats], timeout=self.settings.heartbeat_s)
            for ended in done:
                ended.result()
            await asyncio.sleep(max(0.05, self.settings.heartbeat_s - (time.monotonic() - started)))

    async def _beat(self, owned: Owned) -> None:
        try:
            heard = await self.store.beat(owned.ref, owned.record.epoch, self.settings.lease_s)
            if heard.cancel:
                owned.interrupt("cancel")
            elif owned.turn is not None and heard.commands > owned.turn.heard:
                await self._driver.hear(owned)
        except Fenced:
            # A run that has just ended here has no lease either.
            if owned.working:
                owned.interrupt("lost")
        except Overloaded:
            # A store that is away takes nobody's lease; the writer decides when to stop waiting for it.
            log.debug("heartbeat_failed", run_id=owned.ref.run_id)

    def cancel(self, ref: RunRef) -> None:
        """Interrupts a run whose end was asked for, where it is at work here."""
        owned = self.owned.get(ref)
        if owned is not None:
            owned.interrupt("cancel")

    def hear(self, ref: RunRef) -> None:
        """Brings a run that is at work here the commands that were sent to it."""
        owned = self.owned.get(ref)
        if owned is not None:
            self._spawn(self._driver.hear(owned), f"commands {ref.run_id}")

    async def drain(self) -> None:
        """Takes nothing more; lets steps end, then hands over what is left."""
        self.draining = True
        self._room.set()
        # Whoever has waited longest for a run gets the next one, which may be this process and one that it hands back: before it does, it
        # waits for none any more. Leaving without an answer would lose that wake-up, and the run would wait for the sweeper.
        stopped = asyncio.create_task(self._stop_waiting(), name="stop waiting")
        try:
            async with asyncio.timeout(max(0.0, self.settings.drain_grace_s - HAND_OVER_S)):
                await self._left()
        except TimeoutError:
            for owned in list(self.owned.values()):
                owned.interrupt("drain")
            await self._left()
        if self._background:
            await asyncio.wait(set(self._background), timeout=HAND_OVER_S)
        await stopped

    async def _left(self) -> None:
        """Returns when all is handed over, what was on its way here when the drain began included."""
        while self.owned or self._claiming:
            await self._idle.wait()

    async def _stop_waiting(self) -> None:
        # Without a store the wait ends by itself.
        with suppress(Overloaded):
            await self.store.stop_waiting()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLAIM_WAIT_S + HAND_OVER_S):
                await self._waits.wait()

    async def close(self) -> None:
        """Ends what is left."""
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(set(self._background), timeout=1.0)
