"""Owns runs: claims them, keeps their leases, works on them, and lets go of them in good order."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.metrics import get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common.errors import Overloaded
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.common.rpc.wire import extract_trace
from services.orchestrator.agents import AgentCatalog, AgentDefinition
from services.orchestrator.hub import Hub
from services.orchestrator.outbox import Outbox
from services.orchestrator.ports import Message
from services.orchestrator.records import Claim, Event, Fenced, RunRecord, RunRef, Terminal
from services.orchestrator.run_store import RunStore
from services.orchestrator.settings import Settings
from services.orchestrator.turn import finish
from services.orchestrator.turn.loop import run_turn
from services.orchestrator.turn.state import RunStopped, Services, Turn, TurnState
from services.orchestrator.turn.tool_step import report_cancelled
from services.orchestrator.writer import RunWriter

# Left of the drain's grace to hand a run over whose step did not end in time.
HAND_OVER_S = 1.0
CLAIM_WAIT_S = 1.0
STORE_AWAY_WAIT_S = 0.3
log = structlog.get_logger("bulkhead.worker")
_tracer = trace.get_tracer("bulkhead.orchestrator")
_meter = get_meter("bulkhead.orchestrator")
_ended = _meter.create_counter("bulkhead_runs_ended_total", description="Runs that ended here, by status, or left, by why.")
_active = _meter.create_up_down_counter("bulkhead_runs_active", description="Runs that this process works on.")
_queue_s = _meter.create_histogram("bulkhead_run_queue_seconds", unit="s", description="Time from accept to first claim.")
_run_s = _meter.create_histogram("bulkhead_run_duration_seconds", unit="s", description="Time from first claim to end.")


@dataclass(slots=True)
class Owned:
    """A run in the hands of this process. `why` says what interrupts it: cancel, lost or drain."""

    ref: RunRef
    record: RunRecord
    task: asyncio.Task | None = None
    why: str = ""
    working: bool = False
    writer: RunWriter | None = None

    def interrupt(self, why: str) -> None:
        """Ends the work under way; a run that is lost stays lost."""
        if self.why == "lost" or self.why == why:
            return
        self.why = why
        if self.working and self.task is not None:
            self.task.cancel()


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
        self._claiming = 0
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- taking runs ---

    def has_room(self) -> bool:
        """Whether one more run can be taken."""
        return not self.draining and len(self.owned) + self._claiming < self.settings.max_active_runs

    def owns(self, ref: RunRef) -> bool:
        """Whether this process works on the run."""
        return ref in self.owned

    def take(self, ref: RunRef) -> bool:
        """Begins to claim a run without a detour over the queue; False when there is no room."""
        if not self.has_room():
            return False
        self._claiming += 1
        self._spawn(self._claim(ref), f"claim {ref.run_id}")
        return True

    async def consume(self) -> None:
        """Takes runs from the queue until the process is going away."""
        while not self.draining:
            if not self.has_room():
                self._room.clear()
                await self._room.wait()
                continue
            try:
                ref = await self.store.next_ready(self.settings.track, CLAIM_WAIT_S)
                if ref is not None and not self.take(ref):
                    # Popped on the way out: whoever stays should not have to wait for the sweeper.
                    await self.store.wake(ref, self.settings.track, 0)
            except Overloaded:
                await asyncio.sleep(STORE_AWAY_WAIT_S)

    async def wake(self, ref: RunRef, track: str, priority: float) -> None:
        """Has somebody of `track` take the run: this process where it can, else whoever comes first."""
        if track != self.settings.track or ref in self.owned or not self.take(ref):
            await self.store.wake(ref, track, priority)

    async def wake_next(self, ref: RunRef, run_id: str) -> None:
        """Has the next run of a thread taken."""
        if not run_id or run_id == ref.run_id:
            return
        following = ref._replace(run_id=run_id)
        state, _, track, _, _, created_ms, _ = await self.store.inspect(following)
        if state == "free":
            await self.wake(following, track, created_ms)

    async def _claim(self, ref: RunRef) -> None:
        try:
            claim = await self.store.claim(ref, self.settings.lease_s, self.settings.crash_budget)
        except Overloaded as error:
            # Nothing is known of the claim; its lease, if there is one, runs out and the sweeper finds the run.
            log.warning("claim_failed", run_id=ref.run_id, reason=error.reason)
            return
        finally:
            self._claiming -= 1
            self._freed()
        if claim.verdict == "claimed":
            await self._own(ref, claim)
        elif claim.verdict == "failed" and claim.written is not None:
            self.hub.noticed(ref, claim.written.last_seq)
            await self._settle(ref, claim.written.next_run, False)

    async def _own(self, ref: RunRef, claim: Claim) -> None:
        record = claim.record
        assert record is not None
        assert claim.written is not None
        owned = Owned(ref, record, task=asyncio.current_task())
        self.owned[ref] = owned
        self._idle.clear()
        _active.add(1)
        if record.attempt == 1:
            _queue_s.record(max(0, record.started_ms - record.created_ms) / 1000)
        self._publish_claim(ref, claim)
        try:
            await self._work(owned, claim)
        finally:
            self.owned.pop(ref, None)
            _active.add(-1)
            if not self.owned:
                self._idle.set()
            self._freed()

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

    # --- working ---

    async def _work(self, owned: Owned, claim: Claim) -> None:
        record, ref = owned.record, owned.ref
        spec = record.spec
        principal = Principal.from_dict(dict(spec.principal))
        parent = extract_trace({"traceparent": spec.traceparent} if spec.traceparent else {})
        attributes = {
            "bulkhead.run_id": ref.run_id, "bulkhead.thread_id": ref.thread_id, "bulkhead.tenant": ref.tenant,
            "bulkhead.canary": spec.canary, "bulkhead.attempt": record.attempt, "bulkhead.request_id": spec.request_id,
            "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": spec.agent, "gen_ai.conversation.id": ref.thread_id,
        }  # fmt: skip
        with _tracer.start_as_current_span(
            f"invoke_agent {spec.agent}", context=parent, kind=SpanKind.INTERNAL, attributes=attributes,
            record_exception=False, set_status_on_exception=False,
        ) as span:  # fmt: skip
            call_context.enter(call_context.CallContext(request_id=spec.request_id, canary=spec.canary, principal=principal))
            trace_id = span.get_span_context().trace_id
            owned.writer = RunWriter(
                self.store, self.hub, ref, record.epoch, record.attempt, trace_id=f"{trace_id:032x}" if trace_id else "",
                batch_s=self.settings.delta_batch_s, patience_s=self.settings.store_patience_s, on_lost=lambda: owned.interrupt("lost"),
            )  # fmt: skip
            status = await self._drive(owned, claim, principal)
            if status == "failed":
                span.set_status(Status(StatusCode.ERROR, "run failed"))
            span.set_attribute("bulkhead.run_status", status)
        _ended.add(1, {"status": status})

    async def _drive(self, owned: Owned, claim: Claim, principal: Principal) -> str:
        """Works until the run has ended or is not ours any more; answers its status, or how it left."""
        ref, writer = owned.ref, owned.writer
        assert writer is not None
        assert owned.task is not None
        turn: Turn | None = None
        terminal: Terminal | None = None
        try:
            turn = await self._turn(owned, claim, principal)
            if owned.record.cancel_requested:
                owned.interrupt("cancel")
            if not owned.why:
                owned.working = True
                terminal = await run_turn(turn, lambda: self.draining)
                owned.working = False
        except asyncio.CancelledError:
            owned.working = False
            if not owned.why:
                raise
            owned.task.uncancel()
        except Fenced:
            owned.working = False
            owned.why = "lost"
        except Overloaded:
            # The store stayed away for longer than its patience, or was away at the start: another owner goes on.
            owned.working = False
            owned.why = "lost"
        except Exception as error:
            owned.working = False
            log.error("turn_failed", run_id=ref.run_id, exc_info=error)
            if turn is not None:
                terminal = finish.fail(turn, RunStopped("INTERNAL", "Something went wrong inside Bulkhead while this run was at work."))
        return await self._let_go(owned, turn, terminal)

    async def _let_go(self, owned: Owned, turn: Turn | None, terminal: Terminal | None) -> str:
        ref, writer = owned.ref, owned.writer
        assert writer is not None
        await writer.settled()
        if writer.lost or owned.why == "lost":
            log.warning("run_lost", run_id=ref.run_id, epoch=owned.record.epoch)
            return "lost"
        try:
            if terminal is None and owned.why == "cancel":
                turn = turn or self._bare_turn(owned)
                report_cancelled(turn)
                terminal = finish.cancel(turn)
            if terminal is None:
                await writer.release(turn.snapshot() if turn is not None else b"")
                await self.store.wake(ref, owned.record.track, 0)
                log.info("run_released", run_id=ref.run_id)
                return "released"
            written = await writer.finish(terminal)
        except Fenced:
            return "lost"
        except Overloaded:
            return "lost"
        _run_s.record(max(0, written.at_ms - owned.record.started_ms) / 1000)
        self._spawn(self._settle(ref, written.next_run, bool(terminal.outbox)), f"settle {ref.run_id}")
        return terminal.status

    async def _settle(self, ref: RunRef, next_run: str, outbox: bool) -> None:
        """After the end: what is next in the thread, what leaves, what is free again. The sweeper does whatever this does not."""
        if next_run:
            await self.wake_next(ref, next_run)
        if outbox:
            await self.outbox.deliver(ref)
        else:
            await self.store.settle(ref)

    async def _turn(self, owned: Owned, claim: Claim, principal: Principal) -> Turn:
        turn = self._bare_turn(owned, principal)
        turn.messages[:] = [Message.decode(raw) for raw in claim.messages]
        turn.agent = await self._definition(owned.record)
        if claim.undelivered:
            turn.wait_for_memory = lambda: self.outbox.caught_up(owned.ref)
        if owned.record.provisional_from:
            turn.delivered = await self._delivered(owned)
        return turn

    def _bare_turn(self, owned: Owned, principal: Principal | None = None) -> Turn:
        principal = principal or Principal.from_dict(dict(owned.record.spec.principal))
        assert owned.writer is not None

        async def caught_up() -> bool:
            return True

        return Turn(
            owned.ref, owned.record.spec, self.agents.agents.get(""), TurnState.decode(owned.record.state), [], owned.writer,
            self.services, principal, lambda: self.minter.mint(principal, run_id=owned.ref.run_id), caught_up,
        )  # fmt: skip

    async def _definition(self, record: RunRecord) -> AgentDefinition:
        known = self.agents.agents.by_digest.get(record.spec.agent_digest)
        if known is not None:
            return known
        raw = await self.store.definition(record.spec.agent_digest)
        if raw is None:
            raise RuntimeError(f"the definition of agent {record.spec.agent} {record.spec.agent_version} is gone")
        return AgentDefinition.decode(raw)

    async def _delivered(self, owned: Owned) -> str:
        """Text that was shown since the last checkpoint and stays valid."""
        text, after = [], owned.record.provisional_from - 1
        while True:
            last, _, _, events = await self.store.read(owned.ref, after, 512, False)
            text += [finish.text_of(e) for e in events if e.type == "message_delta" and e.run_id == owned.ref.run_id]
            if not events or events[-1].seq >= last:
                return "".join(text)
            after = events[-1].seq

    # --- keeping and leaving ---

    async def keep_leases(self) -> None:
        """Heartbeats of all runs, forever."""
        while True:
            started = time.monotonic()
            await asyncio.gather(*(self._beat(owned) for owned in list(self.owned.values())))
            await asyncio.sleep(max(0.05, self.settings.heartbeat_s - (time.monotonic() - started)))

    async def _beat(self, owned: Owned) -> None:
        try:
            if await self.store.beat(owned.ref, owned.record.epoch, self.settings.lease_s):
                owned.interrupt("cancel")
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

    async def drain(self) -> None:
        """Takes nothing more; lets steps end, then hands over what is left."""
        self.draining = True
        self._room.set()
        try:
            async with asyncio.timeout(max(0.0, self.settings.drain_grace_s - HAND_OVER_S)):
                await self._idle.wait()
        except TimeoutError:
            for owned in list(self.owned.values()):
                owned.interrupt("drain")
            await self._idle.wait()
        if self._background:
            await asyncio.wait(set(self._background), timeout=HAND_OVER_S)

    async def close(self) -> None:
        """Ends what is left."""
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(set(self._background), timeout=1.0)


def background(loop_forever: Callable[[], Any], name: str) -> asyncio.Task:
    """Starts one of the loops above."""
    return asyncio.get_running_loop().create_task(loop_forever(), name=name)
