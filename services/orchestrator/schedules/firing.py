"""Makes the runs of schedules: one for each tick, whichever of the replicas is there and whenever it is lost.

A tick is decided in one step of the store (it makes a run, or it passes), so two replicas never decide it differently. The run of a
tick has an id that follows from schedule and tick and is accepted under an idempotency key that does, so making it twice makes it once.
Whoever is lost between the decision and the run leaves the tick marked, and the next look makes the run.
"""

import asyncio
from contextlib import suppress

import structlog
from opentelemetry import trace
from opentelemetry.metrics import get_meter

from services.common.errors import BulkheadError, Conflict, IdempotencyMismatch, NotFound, Overloaded
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.orchestrator.accepting import RunRequest
from services.orchestrator.records import RunRef
from services.orchestrator.repeating import repeat, safely
from services.orchestrator.schedules.ports import RunRecords, Runs, ScheduleStore
from services.orchestrator.schedules.records import LABEL, LABEL_FOR, STABLE, Due, Outcome, ScheduleRecord, at, due_of, run_of

MOST_AT_ONCE = 100
# A look whose process is lost is had again after this time.
AGAIN_S = 3.0
# How long a tick waits for an earlier run, or for a limit of its tenant's, before it is looked at again.
WAIT_S = 1.0
# How soon a tick that is left to processes of its track is due for them.
OTHERS_S = 0.2
# Ticks that one look decides; the next look goes on.
MOST_TICKS_A_LOOK = 100
MOST_WAIT_S = 3_600.0
SCOPE = "runs:write"
THREAD_CHANGING = "THREAD_CHANGING"
log = structlog.get_logger("bulkhead.schedules")
_tracer = trace.get_tracer("bulkhead.orchestrator")
_meter = get_meter("bulkhead.orchestrator")
_ticks = _meter.create_counter("bulkhead_schedule_ticks_total", description="Ticks of schedules, by what came of them.")
_late_s = _meter.create_histogram(
    "bulkhead_schedule_lateness_seconds", unit="s", description="Time from when a tick was due, jitter included, to its run."
)


class Firing:
    """One of any number; each schedule is looked at by one of them at a time, as a rule."""

    def __init__(
        self, store: ScheduleStore, records: RunRecords, runs: Runs, *, look_every_s: float, grace_s: float, track: str = STABLE,
        other_track_after_s: float = 10.0,
    ) -> None:  # fmt: skip
        """Ticks that are late by less than `grace_s` are made up, whatever the catch-up policy says. Those of the other release track
        than `track` are left to its processes until they are late by `other_track_after_s`: which agents there are is theirs to say."""
        self._store, self._records, self._runs, self._track = store, records, runs, track
        self._look_every_s, self._grace_ms = look_every_s, int(grace_s * 1000)
        # Well within the grace, behind which the tick would be gone.
        self._left_ms = int(min(other_track_after_s, grace_s / 2) * 1000)

    async def run(self) -> None:
        """Fires until cancelled; a store that is away is tried again."""
        await repeat("schedules", self.turn, MOST_AT_ONCE, self._look_every_s)

    async def turn(self) -> int:
        """Looks at what is due, at most MOST_AT_ONCE; answers how many there were. Raises Overloaded."""
        found = await self._store.due(MOST_AT_ONCE, AGAIN_S)
        await asyncio.gather(*(safely("schedule", self._look(due), Overloaded, schedule_id=due.ref.schedule_id) for due in found))
        return len(found)

    async def _look(self, due: Due) -> None:
        await self._store.leave(due, await self.look(due))

    async def look(self, due: Due) -> float | None:
        """Decides the ticks that are due; answers in how many seconds somebody should look again (None: never). Raises Overloaded."""
        for _ in range(MOST_TICKS_A_LOOK):
            record = await self._store.get(due.ref)
            if record is None:
                return None
            now_ms = await self._store.now_ms()
            if await self._of_others(record, now_ms):
                return OTHERS_S
            if record.firing_ms:
                if not await self._make(record, now_ms):
                    return WAIT_S
                continue
            if not (due_ms := record.due_ms()):
                return None
            if due_ms > now_ms:
                return min((due_ms - now_ms) / 1000, MOST_WAIT_S)
            if not await self._decide(record, now_ms, due_ms):
                return WAIT_S
        return 0.0

    async def _of_others(self, record: ScheduleRecord, now_ms: int) -> bool:
        """Whether what is due is of the other track, and has been for so short that one of its processes may come by."""
        definition = record.firing if record.firing_ms and record.firing is not None else record.definition
        since_ms = record.firing_since_ms if record.firing_ms else record.due_ms()
        if definition.track == self._track or not 0 < since_ms <= now_ms:
            return False
        if record.waiting_ms and record.last_run is not None:
            # It could not be made before the run ended that it waited for.
            run = await self._records.run(record.last_run)
            since_ms = max(since_ms, (run.ended_ms or now_ms) if run is not None else 0)
        return now_ms < since_ms + self._left_ms

    async def _decide(self, record: ScheduleRecord, now_ms: int, due_ms: int) -> bool:
        """Decides the next tick; False when it has to wait."""
        timing, tick_ms = record.definition.timing, record.next_ms
        if now_ms - due_ms > self._grace_ms and record.waiting_ms != tick_ms:
            last_ms = timing.last_until(tick_ms, now_ms) if record.definition.catch_up == "last" else 0
            if last_ms != tick_ms:
                within_ms = max(tick_ms, now_ms - self._grace_ms - timing.jitter_ms - 1)
                await self._pass(record, "missed", last_ms or timing.after(within_ms), now_ms)
                return True
        if record.definition.overlap != "cancel" and await self._at_work(record.last_run):
            if record.definition.overlap == "skip":
                await self._pass(record, "skipped", timing.after(tick_ms), now_ms)
                return True
            if not record.definition.thread_id:
                await self._store.hold(record)
                return False
        await self._store.begin(record)
        return True

    async def _pass(self, record: ScheduleRecord, result: str, next_ms: int, now_ms: int) -> None:
        if await self._store.passed(record, Outcome(record.next_ms, result, at_ms=now_ms), next_ms):
            _ticks.add(1, {"result": result})
            log.info("schedule_tick", schedule_id=record.ref.schedule_id, tick=at(record.next_ms), result=result)

    async def _at_work(self, ref: RunRef | None) -> bool:
        run = await self._records.run(ref) if ref is not None else None
        return run is not None and not run.ended

    async def _make(self, record: ScheduleRecord, now_ms: int) -> bool:
        """Makes the run of the tick that fires; False when it has to wait."""
        definition, tick_ms = record.firing, record.firing_ms
        assert definition is not None
        ref = run_of(record.ref, definition, tick_ms)
        principal = Principal.from_dict(dict(definition.principal))
        since_ms = max(record.firing_since_ms, due_of(record.ref, definition.timing, tick_ms))
        early = now_ms - since_ms <= self._grace_ms
        context = call_context.CallContext(f"{record.ref.schedule_id}/{tick_ms}", definition.canary, principal=principal)
        attributes = {"bulkhead.schedule_id": record.ref.schedule_id, "bulkhead.run_id": ref.run_id, "bulkhead.tenant": ref.tenant}
        reason = ""
        with call_context.bind(context), _tracer.start_as_current_span("schedule_tick", attributes=attributes):
            try:
                principal.require(SCOPE)
                if definition.overlap == "cancel" and await self._at_work(record.last_run) and record.last_run != ref:
                    assert record.last_run is not None
                    with suppress(NotFound):
                        await self._runs.cancel_run(principal, record.last_run.run_id, "the next tick of its schedule has come")
                await self._runs.create_run(principal, self._request(record, ref))
            except Overloaded:
                raise
            except (Conflict, IdempotencyMismatch) as error:
                # A run of this id was accepted before, by a version that asked for it in other words.
                if await self._records.run(ref) is None:
                    if error.reason == THREAD_CHANGING and early:
                        # It is being rolled back, which takes no longer than its runs take to end.
                        return False
                    reason = error.reason
            except BulkheadError as error:
                if error.retryable and early:
                    return False
                reason = error.reason
        result = "refused" if reason else "fired"
        made = None if reason else ref
        outcome = Outcome(tick_ms, result, ref.run_id if made else "", ref.thread_id if made else "", reason, now_ms)
        if await self._store.fired(record, outcome, made, record.definition.timing.after(tick_ms)):
            _ticks.add(1, {"result": result})
            _late_s.record(max(0, now_ms - due_of(record.ref, definition.timing, tick_ms)) / 1000)
            log.info("schedule_tick", schedule_id=record.ref.schedule_id, tick=at(tick_ms), result=result, run_id=ref.run_id, reason=reason)
        return True

    def _request(self, record: ScheduleRecord, ref: RunRef) -> RunRequest:
        definition = record.firing
        assert definition is not None
        return RunRequest(
            thread_id=ref.thread_id, agent=definition.agent, input=tuple(definition.input), run_id=ref.run_id,
            idempotency_key=f"schedule/{ref.run_id}",
            metadata={**definition.metadata, LABEL: record.ref.schedule_id, LABEL_FOR: at(record.firing_ms)}, track=definition.track,
        )  # fmt: skip
