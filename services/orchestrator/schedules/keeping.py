"""What callers may do with schedules."""

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from services.common.errors import Conflict, FieldViolation, InvalidInput, NotFound, QuotaExceeded
from services.common.idempotency import IdempotencyStore, fingerprint
from services.common.identity import Principal
from services.orchestrator.accepting import MOST_KEY, MOST_LABELS, Accepting, RunRequest
from services.orchestrator.agents import AgentCatalog
from services.orchestrator.schedules.cron import Cron
from services.orchestrator.schedules.ports import ScheduleStore
from services.orchestrator.schedules.records import (
    CATCH_UP,
    LABEL,
    LABEL_FOR,
    LONGEST_INTERVAL_MS,
    OVERLAP,
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
MOST_TRIES = 8


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """What a caller asks for; empty values mean the defaults. `timing.anchor_ms` is the service's own."""

    timing: Timing
    agent: str = ""
    input: Sequence[Mapping[str, str]] = ()
    one_thread: bool = False
    thread_id: str = ""
    overlap: str = "skip"
    catch_up: str = "none"
    metadata: Mapping[str, str] | None = None
    name: str = ""

    def fingerprint(self, *parts: str) -> str:
        """Digest of it."""
        timing = [getattr(self.timing, name) for name in Timing.__slots__]
        body = [
            timing, self.agent, list(self.input), self.one_thread, self.thread_id, self.overlap, self.catch_up, dict(self.metadata or {}),
            self.name,
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
        claim = await self._keys.begin(principal.tenant, "CreateSchedule", f"{principal.user}/{key}" if key else "", print_)
        if claim.answer is not None:
            return await self.get(principal, claim.answer.decode())
        # A process that died after it had made the schedule and before it could say so leaves it where this one finds it.
        name = hashlib.sha256(f"{principal.tenant}\n{claim.key}\n{print_}".encode()).hexdigest() if key else uuid.uuid4().hex
        ref = ScheduleRef(principal.tenant, f"sch_{name[:32]}")
        try:
            now_ms = await self._store.now_ms()
            definition, next_ms = await self._definition(principal, ref, request, now_ms, now_ms)
            verdict = await self._store.add(ref, principal.user, definition, next_ms, MOST_SCHEDULES)
            if verdict == "full":
                raise QuotaExceeded(
                    f"the user has {MOST_SCHEDULES} schedules, which is the limit",
                    metadata={"policy": "schedules", "limit": str(MOST_SCHEDULES)},
                )
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
        """Replaces what a schedule does. A paused one stays paused; one that has ended fires again.

        Raises as `create`, and Conflict (SCHEDULE_CHANGED) where the version is not the expected one."""
        self._check(request, key)
        await self.get(principal, schedule_id)

        async def change() -> None:
            for _ in range(MOST_TRIES):
                record = await self.get(principal, schedule_id)
                if expected_version and record.version != expected_version:
                    break
                now_ms = await self._store.now_ms()
                definition, next_ms = await self._definition(principal, record.ref, request, record.created_ms, now_ms)
                state = "paused" if record.state == "paused" else "active"
                if await self._store.change(record, definition, state, next_ms):
                    return
            raise Conflict("the schedule was changed by somebody else", reason="SCHEDULE_CHANGED")

        print_ = request.fingerprint("UpdateSchedule", schedule_id, str(expected_version))
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
        _check_key(key)

        async def remove() -> None:
            await self._store.remove(await self.get(principal, schedule_id))

        await self._once(principal, "DeleteSchedule", key, fingerprint(schedule_id), remove)

    async def _once(self, principal: Principal, method: str, key: str, print_: str, work: Callable[[], Awaitable[None]]) -> None:
        claim = await self._keys.begin(principal.tenant, method, f"{principal.user}/{key}" if key else "", print_)
        if claim.answer is not None:
            return
        try:
            await work()
        except (InvalidInput, NotFound, Conflict):
            await self._keys.abandon(claim)
            raise
        await self._keys.finish(claim, b"1")

    def _check(self, request: ScheduleRequest, key: str) -> None:
        _check_key(key)
        if violations := request.violations(self._least_ms):
            raise InvalidInput("the request is not valid", violations=violations)

    async def _definition(
        self, principal: Principal, ref: ScheduleRef, request: ScheduleRequest, anchor_ms: int, now_ms: int
    ) -> tuple[Definition, int]:
        """What is stored, and the first tick from now on. Raises InvalidInput, NotFound."""
        timing = replace(request.timing, anchor_ms=request.timing.start_ms or anchor_ms)
        next_ms = timing.after(now_ms)
        if not next_ms:
            raise never_fires()
        agent = self._agents.agents.get(request.agent)
        thread_id = request.thread_id or f"th_{ref.schedule_id}" if request.one_thread else ""
        if thread_id:
            # A thread of another user must be refused now and not at each tick.
            await self._accepting.open_thread(principal, thread_id, {})
        definition = Definition(
            timing, agent.name, [dict(message) for message in request.input], replace(principal, run_id="").as_dict(), thread_id,
            request.overlap, request.catch_up, dict(request.metadata or {}), request.name,
        )  # fmt: skip
        return definition, next_ms


def _check_key(key: str) -> None:
    if len(key) > MOST_KEY:
        raise InvalidInput.field("idempotency_key", f"must be at most {MOST_KEY} characters")
