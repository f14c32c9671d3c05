"""What callers may do with schedules."""

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from services.common.errors import Conflict, FieldViolation, InvalidInput, NotFound, QuotaExceeded
from services.common.idempotency import IdempotencyStore, check_key, fingerprint, key_of
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.orchestrator.accepting import Accepting, RunRequest
from services.orchestrator.agents import AgentCatalog
from services.orchestrator.run_request import MOST_LABELS
from services.orchestrator.schedules.cron import Cron
from services.orchestrator.schedules.ports import ScheduleStore
from services.orchestrator.schedules.records import (
    CATCH_UP,
    LABEL,
    LABEL_FOR,
    LONGEST_INTERVAL_MS,
    OVERLAP,
    STABLE,
    Definition,
    Outcome,
    ScheduleRecord,
    ScheduleRef,
    Timing,
    zone_of,
)

MOST_SCHEDULES = 200
MOST_NAME = 256
MOST_JITTER_MS = 3_600_000
# What a timestamp may hold on all surfaces.
_LAST_MS = 253_402_300_799_000
# Changes by others that one change steps back from before it gives up.
MOST_TRIES = 32


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """What a caller asks for; empty values mean the defaults. `timing.anchor_ms` is the service's own. `named`: those of these fields
    that a change is about; empty: all."""

    timing: Timing
    agent: str = ""
    input: Sequence[Mapping[str, str]] = ()
    one_thread: bool = False
    thread_id: str = ""
    overlap: str = "skip"
    catch_up: str = "none"
    metadata: Mapping[str, str] | None = None
    name: str = ""
    named: frozenset[str] = frozenset()

    def over(self, before: Definition) -> "ScheduleRequest":
        """All of what a schedule that does `before` is to do."""
        if not self.named:
            return self
        kept = ScheduleRequest(
            before.timing, before.agent, before.input, bool(before.thread_id), before.thread_id, before.overlap, before.catch_up,
            before.metadata, before.name,
        )  # fmt: skip
        after = replace(kept, **{name: getattr(self, name) for name in self.named})
        return after if after.one_thread or "thread_id" in self.named else replace(after, thread_id="")

    def fingerprint(self, *parts: str) -> str:
        """Digest of what it is about: a change may carry other fields, which differ when it is sent again."""
        asked = replace(ScheduleRequest(Timing()), **{name: getattr(self, name) for name in self.named}) if self.named else self
        timing = [getattr(asked.timing, name) for name in Timing.__slots__]
        body = [
            timing, asked.agent, list(asked.input), asked.one_thread, asked.thread_id, asked.overlap, asked.catch_up,
            dict(asked.metadata or {}), asked.name,
        ]  # fmt: skip
        return fingerprint(*parts, orjson.dumps(body, option=orjson.OPT_SORT_KEYS))

    def violations(self, least_ms: int) -> list[FieldViolation]:
        """All that is wrong with it, its agent and thread aside."""
        labels = dict(self.metadata or {})
        run = RunRequest(thread_id=self.thread_id, input=tuple(self.input), metadata=labels)
        found = [*_timing(self.timing, least_ms), *run.violations()]
        if len(labels) > MOST_LABELS - 2 or {LABEL, LABEL_FOR} & set(labels):
            found.append(FieldViolation("metadata", f"must hold at most {MOST_LABELS - 2} entries, and neither {LABEL} nor {LABEL_FOR}"))
        if self.overlap not in OVERLAP or self.catch_up not in CATCH_UP:
            found.append(FieldViolation("overlap_policy", "overlap_policy and catch_up_policy must be of the known values"))
        if self.thread_id and not self.one_thread:
            found.append(FieldViolation("thread_id", "is for schedules whose runs all go into one thread"))
        if len(self.name) > MOST_NAME:
            found.append(FieldViolation("name", f"must be at most {MOST_NAME} characters"))
        return found


def _timing(timing: Timing, least_ms: int) -> list[FieldViolation]:
    found = []
    if bool(timing.cron) == bool(timing.every_ms):
        found.append(FieldViolation("timing", "must have either a cron expression or an interval"))
    if timing.cron:
        try:
            Cron.parse(timing.cron)
        except ValueError as error:
            found.append(FieldViolation("timing.cron", str(error)))
    elif timing.every_ms and not least_ms <= timing.every_ms <= LONGEST_INTERVAL_MS:
        found.append(FieldViolation("timing.interval", f"must be at least {least_ms / 1000:g} s and at most ten years"))
    try:
        zone_of(timing.zone)
    except ValueError as error:
        found.append(FieldViolation("timing.time_zone", str(error)))
    if not 0 <= timing.jitter_ms <= MOST_JITTER_MS:
        found.append(FieldViolation("timing.jitter", "must be from 0 to an hour"))
    if not 0 <= timing.start_ms <= _LAST_MS or not 0 <= timing.end_ms <= _LAST_MS:
        found.append(FieldViolation("timing.start_at", "start_at and end_at must lie between 1970 and 9999"))
    return found


def never_fires() -> InvalidInput:
    """The error for a schedule without a tick."""
    return InvalidInput("there is no tick between its start and its end", reason="SCHEDULE_NEVER_FIRES")


def _too_many() -> QuotaExceeded:
    return QuotaExceeded(
        f"the user has {MOST_SCHEDULES} schedules, which is the limit", metadata={"policy": "schedules", "limit": str(MOST_SCHEDULES)}
    )


class Schedules:
    """The use cases. Schedules are their user's: to others they are not there. All raise Overloaded while the store is away."""

    def __init__(
        self, store: ScheduleStore, keys: IdempotencyStore, accepting: Accepting, agents: AgentCatalog, least_interval_s: float
    ) -> None:
        """`least_interval_s` is the shortest fixed interval that is taken."""
        self._store, self._keys, self._accepting, self._agents = store, keys, accepting, agents
        self._least_ms = int(least_interval_s * 1000)

    async def create(self, principal: Principal, request: ScheduleRequest, key: str) -> ScheduleRecord:
        """Makes a schedule. Raises InvalidInput (also SCHEDULE_NEVER_FIRES), NotFound (agent, thread), QuotaExceeded,
        IdempotencyMismatch, Conflict."""
        self._check(request, key)
        print_ = request.fingerprint("CreateSchedule")
        claim = await self._keys.begin(principal.tenant, "CreateSchedule", key_of(principal.user, key), print_)
        if claim.answer is not None:
            return await self.get(principal, claim.answer.decode())
        # A process that died after it had made the schedule and before it could say so leaves it where this one finds it.
        name = hashlib.sha256(f"{principal.tenant}\n{claim.key}\n{print_}".encode()).hexdigest() if key else uuid.uuid4().hex
        ref = ScheduleRef(principal.tenant, f"sch_{name[:32]}")
        try:
            now_ms = await self._store.now_ms()
            definition = self._definition(principal, ref, request, now_ms)
            next_ms = _first(definition, now_ms)
            if definition.thread_id and await self._full(principal) and await self._store.get(ref) is None:
                # Before its thread is made.
                raise _too_many()
            await self._open(principal, definition)
            verdict = await self._store.add(ref, principal.user, definition, next_ms, MOST_SCHEDULES)
            if verdict == "full":
                raise _too_many()
        except (Conflict, InvalidInput, NotFound, QuotaExceeded):
            await self._keys.abandon(claim)
            raise
        await self._keys.finish(claim, ref.schedule_id.encode())
        return await self.get(principal, ref.schedule_id)

    async def get(self, principal: Principal, schedule_id: str) -> ScheduleRecord:
        """One schedule. Raises NotFound."""
        record = await self._store.get(ScheduleRef(principal.tenant, schedule_id))
        if record is None or record.user != principal.user:
            raise NotFound("there is no such schedule", reason="SCHEDULE_NOT_FOUND")
        return record

    async def of_caller(self, principal: Principal, before: int, size: int) -> list[tuple[ScheduleRecord | None, int]]:
        """As ScheduleStore.of_user."""
        return await self._store.of_user(principal.tenant, principal.user, before, size)

    async def ticks(self, principal: Principal, schedule_id: str, before: int, size: int) -> list[tuple[Outcome, int]]:
        """As ScheduleStore.ticks. Raises NotFound."""
        record = await self.get(principal, schedule_id)
        return await self._store.ticks(record.ref, before, size)

    async def update(
        self, principal: Principal, schedule_id: str, request: ScheduleRequest, expected_version: int, key: str
    ) -> ScheduleRecord:
        """Changes what a schedule does, what is not named stays as it then is. A paused one stays paused; one that has ended fires again
        where its timing changes.

        Raises as `create`, and Conflict (SCHEDULE_CHANGED) where the version is not the expected one."""
        check_key(key)
        self._check(request.over((await self.get(principal, schedule_id)).definition), key)

        async def change() -> None:
            for _ in range(MOST_TRIES):
                record = await self.get(principal, schedule_id)
                if expected_version and record.version != expected_version:
                    break
                now_ms = await self._store.now_ms()
                # It is written only while the schedule is still the one that was read.
                asked = request.over(record.definition)
                self._check(asked, key)
                before = record.definition.timing
                same = replace(asked.timing, anchor_ms=before.anchor_ms) == before
                definition = self._definition(principal, record.ref, asked, before.anchor_ms if same else record.created_ms)
                if same:
                    # A tick that is due this moment, and that nobody has decided yet, stays due.
                    state, next_ms = record.state, record.next_ms
                else:
                    state, next_ms = "paused" if record.state == "paused" else "active", _first(definition, now_ms)
                await self._open(principal, definition)
                if await self._store.change(record, definition, state, next_ms):
                    return
            raise Conflict("the schedule was changed by somebody else", reason="SCHEDULE_CHANGED")

        print_ = request.fingerprint("UpdateSchedule", schedule_id, str(expected_version), *sorted(request.named))
        await self._once(principal, "UpdateSchedule", key, print_, change)
        return await self.get(principal, schedule_id)

    async def pause(self, principal: Principal, schedule_id: str) -> ScheduleRecord:
        """Has it fire no more. Raises NotFound, Conflict (it has ended, or others keep changing it)."""
        return await self._turn(principal, schedule_id, "paused")

    async def resume(self, principal: Principal, schedule_id: str) -> ScheduleRecord:
        """Has it fire from its next tick on; it has ended where there is none. Raises NotFound, Conflict."""
        return await self._turn(principal, schedule_id, "active")

    async def _turn(self, principal: Principal, schedule_id: str, state: str) -> ScheduleRecord:
        for _ in range(MOST_TRIES):
            record = await self.get(principal, schedule_id)
            if record.state == state:
                return record
            if record.state == "ended":
                raise Conflict("the schedule has ended", reason="SCHEDULE_ENDED")
            next_ms = record.next_ms
            if state == "active":
                next_ms = record.definition.timing.after(await self._store.now_ms())
            if await self._store.change(record, record.definition, state if next_ms else "ended", next_ms):
                return await self.get(principal, schedule_id)
        raise Conflict("the schedule was changed by somebody else", reason="SCHEDULE_CHANGED")

    async def delete(self, principal: Principal, schedule_id: str, key: str) -> None:
        """Removes it. Raises NotFound, InvalidInput, IdempotencyMismatch."""
        check_key(key)

        async def remove() -> None:
            await self._store.remove(await self.get(principal, schedule_id))

        await self._once(principal, "DeleteSchedule", key, fingerprint(schedule_id), remove)

    async def _once(self, principal: Principal, method: str, key: str, print_: str, work: Callable[[], Awaitable[None]]) -> None:
        # Where the store's memory is full, one can be removed and not changed.
        removes = method == "DeleteSchedule"
        claim = await self._keys.begin(principal.tenant, method, key_of(principal.user, key), print_, when_full=removes)
        if claim.answer is not None:
            return
        try:
            await work()
        except (InvalidInput, NotFound, Conflict):
            await self._keys.abandon(claim)
            raise
        await self._keys.finish(claim, b"1")

    def _check(self, request: ScheduleRequest, key: str) -> None:
        check_key(key)
        if violations := request.violations(self._least_ms):
            raise InvalidInput("the request is not valid", violations=violations)

    async def _full(self, principal: Principal) -> bool:
        return len(await self._store.of_user(principal.tenant, principal.user, 0, MOST_SCHEDULES)) == MOST_SCHEDULES

    async def _open(self, principal: Principal, definition: Definition) -> None:
        """Makes the thread of all its runs, last of all before the schedule is kept: what is refused leaves none. Raises NotFound."""
        if definition.thread_id:
            # A thread of another user must be refused now and not at each tick.
            await self._accepting.open_thread(principal, definition.thread_id, {})

    def _definition(self, principal: Principal, ref: ScheduleRef, request: ScheduleRequest, anchor_ms: int) -> Definition:
        """What is stored. Raises NotFound."""
        timing = replace(request.timing, anchor_ms=request.timing.start_ms or anchor_ms)
        agent = self._agents.agents.get(request.agent)
        # A share of the calls without the header may be led to the canary as well: for that one call, and not for all runs to come.
        context = call_context.current()
        canary = bool(context and context.canary)
        thread_id = request.thread_id or f"th_{ref.schedule_id}" if request.one_thread else ""
        return Definition(
            timing, agent.name, [dict(message) for message in request.input], replace(principal, run_id="").as_dict(), thread_id,
            request.overlap, request.catch_up, dict(request.metadata or {}), request.name, canary,
            self._accepting.track if canary else STABLE,
        )  # fmt: skip


def _first(definition: Definition, now_ms: int) -> int:
    """The first tick from now on. Raises InvalidInput (SCHEDULE_NEVER_FIRES)."""
    next_ms = definition.timing.after(now_ms)
    if not next_ms:
        raise never_fires()
    return next_ms
