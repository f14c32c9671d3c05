"""Accepting and cancelling runs, and opening threads: what callers may change."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson
from opentelemetry import trace

from services.common.config import ConfigFile
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, Overloaded
from services.common.identity import Principal
from services.common.limits import Policies, TierPolicy
from services.common.rpc import context as call_context
from services.common.rpc.wire import inject_trace
from services.common.tasks import Whole
from services.orchestrator.agents import AgentCatalog, AgentDefinition, arm_of
from services.orchestrator.client_asks import told
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.hub import Hub
from services.orchestrator.records import (
    Accepted,
    Claim,
    Event,
    Limits,
    Place,
    Reservation,
    RunRecord,
    RunRef,
    RunSpec,
    Schedule,
    ThreadRecord,
)
from services.orchestrator.reserving import check_quota, waits
from services.orchestrator.run_request import RunRequest, checked_id, id_violations, label_violations
from services.orchestrator.run_store import RunStore
from services.orchestrator.said_check import SaidCheck
from services.orchestrator.settings import Settings
from services.orchestrator.tool_check import ToolCheck
from services.orchestrator.turn.finish import cancelled_data
from services.orchestrator.turn.state import COUNTED
from services.orchestrator.worker import Worker

NOTED_S = 1.0


def bounded(asked: Limits, agent: AgentDefinition, tier: TierPolicy) -> Limits:
    """The smallest of what the run asks for, what its agent allows and what the tier allows, for each limit."""

    def least(*bounds: float | None) -> float:
        return min((bound for bound in bounds if bound), default=0)

    return Limits(
        least(asked.deadline_s, agent.limits.deadline_s, tier.task_seconds),
        int(least(asked.max_steps, agent.limits.max_steps, tier.max_steps)),
        int(least(asked.max_tool_calls, agent.limits.max_tool_calls, tier.max_tool_calls)),
        int(least(asked.max_cost_microusd, agent.limits.max_cost_microusd)),
        int(least(asked.max_total_tokens, agent.limits.max_total_tokens, tier.max_run_tokens)),
    )


class Accepting:
    """The use cases that change something on behalf of a caller."""

    def __init__(
        self, settings: Settings, store: RunStore, hub: Hub, worker: Worker, agents: AgentCatalog, policies: ConfigFile[Policies],
        said: SaidCheck | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._store, self._hub, self._worker = settings, store, hub, worker
        self._agents, self._policies = agents, policies
        # Without a look at threads and blobs, no calls are answered and no images taken.
        self._said = said or SaidCheck(store)
        self._saved, self._whole = set[str](), Whole()
        # Told of the thread of a run that is accepted in a tier whose threads live for a time only, before the run is written.
        self.on_mortal: Callable[[RunRef], Awaitable[None]] | None = None
        self.tools: ToolCheck | None = None

    @property
    def track(self) -> str:
        """The release track that this process accepts runs on."""
        return self._settings.track

    async def open_thread(self, principal: Principal, thread_id: str, metadata: Mapping[str, str]) -> ThreadRecord:
        """Makes a thread or answers the one that is there. Raises InvalidInput, NotFound (another's), Overloaded."""
        if violations := [*id_violations("thread_id", thread_id), *label_violations(metadata)]:
            raise InvalidInput("the request is not valid", violations=violations)
        thread = await self._store.open_thread(principal.tenant, principal.user, thread_id or f"th_{uuid.uuid4().hex}", metadata)
        if thread is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        return thread

    async def create_run(
        self, principal: Principal, request: RunRequest, child_of: Mapping[str, Any] | None = None
    ) -> tuple[RunRecord, bool]:
        """Accepts a run durably; answers its record and whether it is new. A run's child (`child_of` as in RunSpec) waits for no slot.

        Raises InvalidInput (also TOOL_CALL_UNKNOWN and TOOL_CALL_UNANSWERED), NotFound (agent, or a thread of another user), Conflict (the
        run id is taken, TOOL_CALLS_ANSWERED), IdempotencyMismatch, QuotaExceeded (concurrent, queued or delayed runs), FailedPrecondition
        (the agent names a tool that does not exist, or cannot do what is asked: UNSUPPORTED), Overloaded.
        """
        if violations := request.violations():
            raise InvalidInput("the request is not valid", violations=violations)
        agent = self._agents.agents.get(request.agent)
        tier = self._policies.current.tier(self._settings.policy_set, principal.tier)
        if self.tools is not None:
            await self.tools.check(principal, agent, request.idempotency_key)
        answers = await self._said.check(principal, request, agent)
        await self._keep(agent)
        ref = RunRef(principal.tenant, request.thread_id or f"th_{uuid.uuid4().hex}", request.run_id or f"run_{uuid.uuid4().hex}")
        # A run that waits for its child has given its slot back, and would wait for ever behind those that wait for one.
        slots = 0 if child_of else tier.concurrent_runs or 0
        schedule = Schedule(request.priority, tier.queue_weight, request.start_ms, slots)
        reserving = self._store.reserve(
            ref, principal.user, schedule.slots, request.idempotency_key, request.fingerprint(),
            queued=tier.queued_runs, delayed=tier.delayed_runs, schedule=schedule, of_run=bool(child_of),
        )  # fmt: skip
        behind = 0
        if request.thread_id and not child_of:
            # Beside each other: the store is asked once for both.
            reservation, behind = await asyncio.gather(reserving, self._behind(ref, request.on_busy))
        else:
            reservation = await reserving
        if reservation.verdict == "erasing":
            raise being_erased()
        if reservation.verdict == "mismatch":
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        check_quota(reservation, tier)
        if reservation.verdict == "taken":
            raise Conflict("a run of this id is there already", reason="RUN_EXISTS")
        ref = RunRef(ref.tenant, reservation.thread_id, reservation.run_id)
        if reservation.verdict == "existing":
            # Should the first try have died before it wrote the run, this one writes it, and the sweeper has to know of it again.
            await self._store.note(ref, NOTED_S, sooner=True)
        if tier.thread_ttl_days and self.on_mortal is not None:
            await self.on_mortal(ref)
        spec = replace(
            self._spec(principal, request, ref, agent, tier),
            schedule=schedule,
            child_of=child_of or {},
            answers=answers,
            **arm_of(agent, child_of),
        )
        asked = told(request.client_tools, request.tool_choice, request.response_format)
        queued = orjson.dumps({**spec.works(), "input": list(request.input), **asked, **waits(reservation, schedule, behind)})
        # A caller who leaves between what makes this process the owner and the work on it would leave a run at which nobody works.
        return await self._whole(self._write(principal, request, ref, reservation, spec, queued))

    async def _write(
        self, principal: Principal, request: RunRequest, ref: RunRef, reservation: Reservation, spec: RunSpec, queued: bytes
    ) -> tuple[RunRecord, bool]:
        trace_id, track = _trace_id(), request.track or self.track
        own_for_s = self._settings.lease_s if track == self.track and not reservation.held and self._worker.hold_room() else 0.0
        try:
            accepted = await self._store.accept(
                ref, principal.user, spec, track, reservation, trace_id, (queued, cancelled_data("", dict.fromkeys(COUNTED, 0))), own_for_s,
                on_busy=request.on_busy,
            )  # fmt: skip
        finally:
            if own_for_s:
                self._worker.free_room()
        verdict, record = accepted.verdict, accepted.record
        if verdict in ("foreign", "changing", "busy", "unasked", "answered") and reservation.verdict == "new":
            # The slot goes back, where it is ours: an older reservation may be that of a run at work.
            await self._store.settle(ref)
        if verdict == "foreign":
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        if verdict == "changing":
            raise Conflict("the thread is being rolled back; try again", reason="THREAD_CHANGING")
        if verdict == "busy":
            raise thread_busy(accepted.at_work)
        if verdict in ("unasked", "answered"):
            raise Conflict("the calls that the input answers do not wait any more", reason="TOOL_CALLS_ANSWERED")
        if verdict == "late":
            raise Overloaded("accepting the run took too long", reason="ACCEPT_TIMED_OUT", retry_after_s=1.0)
        assert record is not None
        if verdict == "new":
            await self._accepted(ref, accepted, queued, trace_id, reservation.held)
        with suppress(Overloaded):
            # The sweeper and heartbeats find what this does not tell.
            await self._cut_off(ref, accepted)
        return record, verdict == "new"

    async def _behind(self, ref: RunRef, on_busy: str) -> int:
        """Position of a run that joins its thread now; 0 also where that cannot be told, which keeps nobody from making it."""
        try:
            behind = await self._store.joining(ref)
        except Overloaded:
            return 0
        # Those that wait end when it is written; the one at work, which is asked to end, is before it still.
        return min(behind, 1) if on_busy in ("interrupt", "rollback") else behind

    async def _keep(self, agent: AgentDefinition) -> None:
        digest = self._agents.agents.digests[agent.name, agent.version]
        if digest not in self._saved:
            await self._store.save_definition(digest, agent.encode())
            self._saved.add(digest)

    def _spec(self, principal: Principal, request: RunRequest, ref: RunRef, agent: AgentDefinition, tier: TierPolicy) -> RunSpec:
        context = call_context.current()
        return RunSpec(
            thread_id=ref.thread_id, agent=agent.name, agent_version=agent.version,
            agent_digest=self._agents.agents.digests[agent.name, agent.version], input=request.input,
            limits=bounded(request.limits, agent, tier), principal=replace(principal, run_id=ref.run_id).as_dict(),
            request_id=context.request_id if context else "", canary=bool(context and context.canary),
            trace=dict(inject_trace()), append_only=request.append_only, temperature=request.temperature,
            max_tokens=request.max_tokens, on_disconnect=request.on_disconnect, metadata=dict(request.metadata),
            continues=request.continues, reset_memory=request.reset_memory, client_tools=request.client_tools,
            tool_choice=request.tool_choice, response_format=request.response_format,
        )  # fmt: skip

    async def _accepted(self, ref: RunRef, accepted: Accepted, queued: bytes, trace_id: str, held: bool) -> None:
        record, written = accepted.record, accepted.written
        assert record is not None
        assert written is not None
        if self._hub.watched(ref):
            events = [Event(written.first_seq, written.at_ms, ref.thread_id, ref.run_id, 0, "run_queued", queued, False, trace_id)]
            if record.status == "running":
                events.append(Event(written.last_seq, written.at_ms, ref.thread_id, ref.run_id, 1, "run_started", b"{}", False, trace_id))
            self._hub.publish(ref, events)
            self._hub.noticed(ref, written.last_seq)
        if record.status == "running":
            self._worker.adopt(ref, Claim("claimed", record, undelivered=accepted.undelivered))
            return
        schedule = record.spec.schedule
        try:
            if record.ended:
                await self._worker.settle_ended(ref)
            elif not held:
                await self._store.wake(ref, record.track, record.created_ms, schedule=schedule)
            elif schedule.start_ms:
                # The look that accepting noted comes too early, or too late for a start within the second.
                await self._store.note(ref, max(0.0, schedule.start_ms / 1000 - time.time()))
        except Overloaded:
            # The run is durable and the sweeper knows of it, so the answer stands.
            return

    async def _cut_off(self, ref: RunRef, accepted: Accepted) -> None:
        """Tells those who work on the runs that were cut off for this one, and ends what had not begun."""
        for run_id, status, last_seq in accepted.cut:
            other = ref._replace(run_id=run_id)
            self._worker.cancel(other)
            if status == "cancelled":
                self._hub.noticed(other, last_seq)
                await self._worker.outbox.settle(other)
            elif status == "queued":
                # Handed back or parked: whoever takes it finds the cancel.
                await self._worker.wake_next(ref, run_id)

    async def place(self, principal: Principal, record: RunRecord) -> Place:
        """Where a run waits that nobody works on yet; nothing while the store is away."""
        if record.status != "queued":
            return Place()
        try:
            return await self._store.place(record, principal.tenant)
        except Overloaded:
            # Whoever made the run must hear that it is accepted, also where nothing can be told of its place.
            return Place()

    async def cancel_run(self, principal: Principal, run_id: str, reason: str) -> RunRecord | None:
        """Asks for the end of a run; None where only a tombstone was left. Raises NotFound for another user's run, Overloaded."""
        checked_id("run_id", run_id)
        thread_id = await self._store.request_cancel(principal.tenant, principal.user, run_id)
        if thread_id is None:
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        if not thread_id:
            return None
        ref = RunRef(principal.tenant, thread_id, run_id)
        data = cancelled_data("", dict.fromkeys(COUNTED, 0))
        status, written = await self._store.cancel(ref, _trace_id(), data, reason[:256])
        if status == "none":
            return None
        self._worker.cancel(ref)
        if written.first_seq:
            self._hub.noticed(ref, written.last_seq)
            await self._worker.outbox.settle(ref)
            await self._worker.wake_next(ref, written.next_run)
        record = await self._store.run(ref)
        if record is not None and status == "queued" and not written.first_seq:
            # Handed back and not taken yet: whoever takes it will find the cancel.
            await self._store.wake(ref, record.track, record.since_ms, schedule=record.spec.schedule)
        return record


def thread_busy(run_id: str) -> Conflict:
    """The error that a thread has a run that has not ended."""
    return Conflict("the thread has a run that has not ended", reason="THREAD_BUSY", metadata={"run_id": run_id})


def _trace_id() -> str:
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else ""
