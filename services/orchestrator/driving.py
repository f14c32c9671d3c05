"""Works on one run that this process owns, from its claim to its end or its hand-over."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
import structlog
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.metrics import get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common.errors import Internal, Overloaded
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.common.rpc.wire import extract_trace
from services.orchestrator import parking
from services.orchestrator.agents import AgentCatalog, AgentDefinition
from services.orchestrator.hub import PAGE, Hub
from services.orchestrator.outbox import Outbox
from services.orchestrator.parking import LOOK_S
from services.orchestrator.ports import Message
from services.orchestrator.records import Claim, Fenced, Park, RunRecord, RunRef, Terminal, Written
from services.orchestrator.run_store import RunStore
from services.orchestrator.settings import Settings
from services.orchestrator.turn import approvals, finish, guarding, lost
from services.orchestrator.turn.execute_tools import end_calls, report_unfinished
from services.orchestrator.turn.loop import run_turn
from services.orchestrator.turn.state import RunParked, RunStopped, Services, Turn, TurnState
from services.orchestrator.turn.supervisor import cancel_children
from services.orchestrator.turn.workflow_state import calls_at_work
from services.orchestrator.writer import RunWriter

RESULTS_AGAIN_S = 0.5
log = structlog.get_logger("bulkhead.driving")
_tracer = trace.get_tracer("bulkhead.orchestrator")
_meter = get_meter("bulkhead.orchestrator")
_ended = _meter.create_counter("bulkhead_runs_ended_total", description="Runs that ended here, by status, or left, by why.")
_run_s = _meter.create_histogram("bulkhead_run_duration_seconds", unit="s", description="Time from first claim to end.")


@dataclass(slots=True)
class Owned:
    """A run in the hands of this process. `why` says what interrupts it: cancel, lost or drain. `released`: it was handed back, so
    whoever hears of it, this process as well, may take it anew."""

    ref: RunRef
    record: RunRecord
    task: asyncio.Task | None = None
    why: str = ""
    working: bool = False
    writer: RunWriter | None = None
    turn: Turn | None = None
    released: bool = False
    # Called with each checkpoint.
    on_progress: Callable[[], None] = lambda: None

    def interrupt(self, why: str) -> None:
        """Ends the work under way; a run that is lost stays lost."""
        if self.why == "lost" or self.why == why:
            return
        self.why = why
        if self.working and self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class Left:
    """How the work on a run ended: its status, or `lost`, `released` or `parked`; `written` and `outbox` where the run has ended."""

    status: str
    written: Written | None = None
    outbox: bool = False


@dataclass(slots=True)
class Driver:
    """What working on any run takes. `should_hand_over` is asked at the end of each step."""

    settings: Settings
    store: RunStore
    hub: Hub
    agents: AgentCatalog
    services: Services
    outbox: Outbox
    minter: Minter
    should_hand_over: Callable[[], bool] = lambda: False

    async def drive(self, owned: Owned, claim: Claim) -> Left:
        """Works in the current task, under the trace and the context that the run was accepted with."""
        record, ref = owned.record, owned.ref
        spec = record.spec
        principal = Principal.from_dict(dict(spec.principal))
        attributes: dict[str, str | bool | int] = {
            "bulkhead.run_id": ref.run_id, "bulkhead.thread_id": ref.thread_id, "bulkhead.tenant": ref.tenant,
            "bulkhead.canary": spec.canary, "bulkhead.attempt": record.attempt, "bulkhead.request_id": spec.request_id,
            "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": spec.agent, "gen_ai.conversation.id": ref.thread_id,
        }  # fmt: skip
        about_trace = extract_trace(spec.trace)
        if spec.experiment:
            exposed = {"bulkhead.experiment": spec.experiment, "bulkhead.arm": spec.arm}
            attributes |= exposed
            for name, value in exposed.items():
                # It goes with every call that is made for the run.
                about_trace = baggage.set_baggage(name, value, about_trace)
        otel_context.attach(about_trace)
        call_context.enter(call_context.CallContext(request_id=spec.request_id, canary=spec.canary, principal=principal))
        with _tracer.start_as_current_span(
            f"invoke_agent {spec.agent}", kind=SpanKind.INTERNAL, attributes=attributes, record_exception=False,
            set_status_on_exception=False,
        ) as span:  # fmt: skip
            trace_id = span.get_span_context().trace_id
            about = {"run_id": ref.run_id, "thread_id": ref.thread_id, "agent": spec.agent, "attempt": record.attempt}
            log.info("run_claimed", **about)
            owned.writer = RunWriter(
                self.store, self.hub, ref, record.epoch, record.attempt, trace_id=f"{trace_id:032x}" if trace_id else "",
                batch_s=self.settings.delta_batch_s, patience_s=self.settings.store_patience_s, on_lost=lambda: owned.interrupt("lost"),
                on_cancel=lambda: owned.interrupt("cancel"), on_progress=owned.on_progress,
            )  # fmt: skip
            owned.turn = self._turn(owned, owned.writer, principal)
            left = await self._work(owned, claim, owned.turn)
            if left.status == "failed":
                span.set_status(Status(StatusCode.ERROR, "run failed"))
            span.set_attribute("bulkhead.run_status", left.status)
            log.info("run_left", status=left.status, **about)
        _ended.add(1, {"status": left.status})
        return left

    async def _work(self, owned: Owned, claim: Claim, turn: Turn) -> Left:
        assert owned.task is not None
        terminal: Terminal | None = None
        parked: RunParked | None = None
        try:
            await self._resume(turn, owned, claim)
            if owned.record.cancel_requested:
                owned.interrupt("cancel")
            if not owned.why:
                owned.working = True
                terminal = await self._remember(turn, claim.messages)
                await self._note_losses(turn, owned.record)
                terminal = terminal or await run_turn(turn, self.should_hand_over)
        except RunParked as found:
            parked = found
        except asyncio.CancelledError:
            if not owned.why:
                raise
            owned.task.uncancel()
        except (Fenced, Overloaded):
            # Another owner, or a store that stayed away for longer than its patience: somebody else goes on.
            owned.why = "lost"
        except Exception as error:  # a defect of ours ends the run readably, and not three workers one after the other
            log.error("turn_failed", run_id=owned.ref.run_id, exc_info=error)
            terminal = finish.fail(turn, RunStopped("INTERNAL", "Something went wrong inside Bulkhead while this run was at work."))
        finally:
            owned.working = False
        return await self._let_go(owned, turn, terminal, parked)

    async def _let_go(self, owned: Owned, turn: Turn, terminal: Terminal | None, parked: RunParked | None) -> Left:
        ref, writer = owned.ref, turn.writer
        await writer.settled()
        if writer.lost or owned.why == "lost":
            log.warning("run_lost", run_id=ref.run_id, epoch=owned.record.epoch)
            return Left("lost")
        try:
            if terminal is None and owned.why == "cancel":
                await approvals.catch_up(turn)
                report_unfinished(turn, "cancelled", await end_calls(turn))
                await self._note_losses(turn, owned.record)
                await lost.settle(turn)
                # What it said so far stays in the conversation for the run that it was cut off for.
                kept = bool(turn.delivered) and await self.store.cut_by(ref) == "interrupt"
                terminal = finish.cancel(turn, kept=kept)
            if terminal is not None:
                await cancel_children(turn)
            if terminal is None and parked is not None:
                return await self._park(owned, turn, parked)
            if terminal is None:
                await writer.release(turn.snapshot())
                owned.released = True
                await self.store.wake(ref, owned.record.track, 0, schedule=owned.record.spec.schedule)
                log.info("run_released", run_id=ref.run_id)
                return Left("released")
            # What a child has used of its parent's time, the last step included; and what its audit record is made of.
            told = turn.spec.child_of or self.settings.audit_days or turn.state.parts.get(guarding.PART)
            written = await writer.finish(terminal, turn.snapshot() if told else b"")
        except (Fenced, Overloaded):
            return Left("lost")
        _run_s.record(max(0, written.at_ms - owned.record.started_ms) / 1000)
        return Left(terminal.status, written, bool(terminal.outbox))

    async def _park(self, owned: Owned, turn: Turn, parked: RunParked) -> Left:
        ref = owned.ref
        written = await turn.writer.park(turn.snapshot(parked=True), turn.unstored(), Park(parked.until_ms, turn.state.inbox))
        if written.next_run == ref.run_id:
            # A command came while it was being parked.
            owned.released = True
            await self.store.wake(ref, owned.record.track, 0, schedule=owned.record.spec.schedule)
            return Left("released")
        # Whoever wakes it from here on may have this process take it anew, which is not done with it yet.
        owned.released = True
        left_s = max(0.0, (parked.until_ms - written.at_ms) / 1000) if parked.until_ms else LOOK_S
        await parking.rest(self.store, ref, owned.record.epoch, left_s)
        log.info("run_parked", run_id=ref.run_id, until_ms=parked.until_ms)
        return Left("parked")

    async def hear(self, owned: Owned) -> None:
        """Brings a run at work here what others have sent to it since. Raises Overloaded."""
        if (turn := owned.turn) is not None:
            turn.hear(await self.store.commands(owned.ref, turn.state.inbox))

    def _turn(self, owned: Owned, writer: RunWriter, principal: Principal) -> Turn:
        """The turn as far as the record tells."""
        return Turn(
            owned.ref, owned.record.spec, self.agents.agents.get(""), TurnState.decode(owned.record.state), [], writer, self.services,
            principal, lambda: self.minter.mint(principal, run_id=owned.ref.run_id),
            carried=owned.record.carry,
        )  # fmt: skip

    async def _resume(self, turn: Turn, owned: Owned, claim: Claim) -> None:
        """Adds what stands elsewhere: the pinned definition, text that was shown and stays valid."""
        if owned.record.inbox > turn.state.inbox:
            await self.hear(owned)
        turn.agent = await self._definition(owned.record)
        if claim.undelivered:
            turn.wait_for_memory = lambda: self.outbox.caught_up(owned.ref)
        if owned.record.provisional_from:
            turn.delivered = await self._delivered(owned)

    async def _remember(self, turn: Turn, messages: Sequence[bytes]) -> Terminal | None:
        """Gives the turn its messages; answers the end of a run that cannot go on without what is lost of them."""
        try:
            turn.messages[:] = [Message.decode(raw) for raw in await self._whole(turn, messages)]
        except RunStopped as stopped:
            await approvals.catch_up(turn)
            report_unfinished(turn, "stopped")
            return finish.fail(turn, stopped)
        turn.stored = len(turn.messages)
        return None

    async def _note_losses(self, turn: Turn, record: RunRecord) -> None:
        """Notes the model calls that owners had at work who were lost since the last checkpoint, and the time they worked, each once."""
        part = turn.state.parts.get(lost.PART, {})
        if (passed_ms := record.lost_ms - part.get("ms", 0)) > 0:
            turn.state.active_ms += passed_ms
            part = turn.state.parts[lost.PART] = {**part, "ms": record.lost_ms}
        owners = min(record.crashes, record.losses - part.get("losses", 0))
        if owners <= 0:
            return
        turn.state.parts[lost.PART] = {**part, "losses": record.losses}
        if turn.state.phase == "tools":
            return
        if record.state:
            # Each has made the call that its last checkpoint, or that of the owner before, announced.
            calls = owners * max(1, calls_at_work(turn.state.parts))
        else:
            calls = await self._announced(turn.ref, record.first_seq)
        if calls:
            lost.cut_off(turn, calls=calls)

    async def _announced(self, ref: RunRef, first_seq: int) -> int:
        """Model calls that the log tells of. Before the first checkpoint it is short."""
        calls, after = 0, first_seq - 1
        while True:
            last, _, _, events = await self.store.read(ref, after, PAGE, False)
            own = [event.data for event in events if event.run_id == ref.run_id and event.type == "step_started"]
            calls += sum("idempotency_key" in orjson.loads(data) for data in own)
            if not events or events[-1].seq >= last:
                return calls
            after = events[-1].seq

    async def _whole(self, turn: Turn, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Messages with the large results among them, which are waited for while they cannot be had; none where somebody else is to go on.
        Raises RunStopped."""
        began = 0.0
        while True:
            try:
                whole = await self.store.whole(turn.ref, messages)
            except Internal as error:
                raise RunStopped(error.reason, error.message) from error
            except Overloaded as error:
                if not began:
                    began = time.monotonic()
                    log.warning("results_waited_for", run_id=turn.ref.run_id, reason=error.reason)
            else:
                if began:
                    log.info("results_came", run_id=turn.ref.run_id, waited_s=time.monotonic() - began)
                return whole
            if self.should_hand_over():
                return []
            turn.check_time()
            await asyncio.sleep(RESULTS_AGAIN_S)

    async def _definition(self, record: RunRecord) -> AgentDefinition:
        known = self.agents.agents.by_digest.get(record.spec.agent_digest)
        if known is not None:
            return known
        raw = await self.store.definition(record.spec.agent_digest)
        if raw is None:
            raise RuntimeError(f"the definition of agent {record.spec.agent} {record.spec.agent_version} is gone")
        return AgentDefinition.decode(raw)

    async def _delivered(self, owned: Owned) -> str:
        text, after = [], owned.record.provisional_from - 1
        while True:
            last, _, _, events = await self.store.read(owned.ref, after, PAGE, False)
            text += [finish.text_of(e) for e in events if e.type == "message_delta" and e.run_id == owned.ref.run_id]
            if not events or events[-1].seq >= last:
                return "".join(text)
            after = events[-1].seq
