"""ScheduleService."""

from dataclasses import replace
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2
from bulkhead.orchestrator.v1 import schedules_pb2 as pb
from bulkhead.orchestrator.v1 import schedules_pb2_grpc as rpc
from google.protobuf import duration_pb2, timestamp_pb2

from services.common.errors import InvalidInput
from services.common.rpc.context import principal
from services.orchestrator.accepting import checked_id
from services.orchestrator.schedules.firing import SCOPE
from services.orchestrator.schedules.keeping import ScheduleRequest, Schedules
from services.orchestrator.schedules.records import Definition, Outcome, ScheduleRecord, Timing
from services.orchestrator.servicer import page, page_token

READ, WRITE = "schedules:read", "schedules:write"
_OVERLAP = {
    pb.OVERLAP_POLICY_UNSPECIFIED: "skip", pb.OVERLAP_POLICY_SKIP: "skip", pb.OVERLAP_POLICY_QUEUE: "queue",
    pb.OVERLAP_POLICY_CANCEL: "cancel",
}  # fmt: skip
_CATCH_UP = {pb.CATCH_UP_POLICY_UNSPECIFIED: "none", pb.CATCH_UP_POLICY_NONE: "none", pb.CATCH_UP_POLICY_LAST: "last"}
_OVERLAP_OF = {name: value for value, name in _OVERLAP.items()}
_CATCH_UP_OF = {name: value for value, name in _CATCH_UP.items()}
_STATE = {"active": pb.SCHEDULE_STATE_ACTIVE, "paused": pb.SCHEDULE_STATE_PAUSED, "ended": pb.SCHEDULE_STATE_ENDED}
_RESULT = {
    "fired": pb.TICK_RESULT_FIRED, "skipped": pb.TICK_RESULT_SKIPPED, "missed": pb.TICK_RESULT_MISSED, "refused": pb.TICK_RESULT_REFUSED,
}  # fmt: skip
_THREADS = (pb.THREAD_POLICY_UNSPECIFIED, pb.THREAD_POLICY_NEW, pb.THREAD_POLICY_ONE)
# Fields of a definition, and what a request has them as.
_FIELDS = {
    "name": "name", "timing": "timing", "agent": "agent", "input": "input", "thread_policy": "one_thread", "thread_id": "thread_id",
    "overlap_policy": "overlap", "catch_up_policy": "catch_up", "metadata": "metadata",
}  # fmt: skip
# No Duration or Timestamp beyond this is taken; what is out of bounds below it is refused with its field's name.
_MOST_SECONDS = 10**12


def schedule_message(record: ScheduleRecord) -> pb.Schedule:
    """A schedule as it travels."""
    message = pb.Schedule(
        schedule_id=record.ref.schedule_id, definition=definition_message(record.definition), state=_STATE[record.state],
        version=record.version,
    )  # fmt: skip
    message.created_at.FromMilliseconds(record.created_ms)
    message.updated_at.FromMilliseconds(record.updated_ms)
    if record.state == "active" and record.next_ms:
        message.next_tick_at.FromMilliseconds(record.next_ms)
    if record.last is not None:
        message.last_tick.CopyFrom(tick_message(record.last))
    return message


def definition_message(definition: Definition) -> pb.ScheduleDefinition:
    """What a schedule does, as it travels."""
    timing = pb.ScheduleTiming(time_zone=definition.timing.zone)
    if definition.timing.cron:
        timing.cron = definition.timing.cron
    else:
        timing.interval.FromMilliseconds(definition.timing.every_ms)
    for name in ("start", "end"):
        if at_ms := getattr(definition.timing, f"{name}_ms"):
            getattr(timing, f"{name}_at").FromMilliseconds(at_ms)
    if definition.timing.jitter_ms:
        timing.jitter.FromMilliseconds(definition.timing.jitter_ms)
    return pb.ScheduleDefinition(
        name=definition.name, timing=timing, agent=definition.agent, metadata=definition.metadata, thread_id=definition.thread_id,
        input=[orchestrator_pb2.InputMessage(role=message["role"], text=message["text"]) for message in definition.input],
        thread_policy=pb.THREAD_POLICY_ONE if definition.thread_id else pb.THREAD_POLICY_NEW,
        overlap_policy=_OVERLAP_OF[definition.overlap], catch_up_policy=_CATCH_UP_OF[definition.catch_up],
    )  # fmt: skip


def tick_message(outcome: Outcome) -> pb.ScheduleTick:
    """What came of a tick, as it travels."""
    message = pb.ScheduleTick(result=_RESULT[outcome.result], run_id=outcome.run_id, thread_id=outcome.thread_id, reason=outcome.reason)
    message.tick_at.FromMilliseconds(outcome.tick_ms)
    message.decided_at.FromMilliseconds(outcome.at_ms)
    return message


def request_of(definition: pb.ScheduleDefinition) -> ScheduleRequest:
    """What is asked for. Raises InvalidInput for values that this version does not know."""
    timing = definition.timing
    if definition.thread_policy not in _THREADS:
        raise InvalidInput.field("definition.thread_policy", "is not known")
    return ScheduleRequest(
        Timing(
            timing.cron if timing.WhichOneof("recurrence") == "cron" else "", timing.time_zone,
            _ms("timing.interval", timing.interval) if timing.WhichOneof("recurrence") == "interval" else 0,
            start_ms=_ms("timing.start_at", timing.start_at), end_ms=_ms("timing.end_at", timing.end_at),
            jitter_ms=_ms("timing.jitter", timing.jitter),
        ),
        definition.agent, tuple({"role": message.role, "text": message.text} for message in definition.input),
        definition.thread_policy == pb.THREAD_POLICY_ONE, definition.thread_id, _OVERLAP.get(definition.overlap_policy, ""),
        _CATCH_UP.get(definition.catch_up_policy, ""), dict(definition.metadata), definition.name,
    )  # fmt: skip


def _ms(name: str, value: duration_pb2.Duration | timestamp_pb2.Timestamp) -> int:
    if not 0 <= value.seconds <= _MOST_SECONDS or not 0 <= value.nanos < 10**9:
        raise InvalidInput.field(name, "is out of bounds")
    return value.seconds * 1000 + value.nanos // 10**6


class ScheduleServicer(rpc.ScheduleServiceServicer):
    """Schedules of the caller. To make or change one takes the right to start runs."""

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules

    async def CreateSchedule(self, request: Any, context: Any):
        """Makes a schedule."""
        caller = principal()
        caller.require(WRITE, SCOPE)
        record = await self._schedules.create(caller, request_of(request.definition), request.idempotency_key)
        return pb.CreateScheduleResponse(schedule=schedule_message(record))

    async def GetSchedule(self, request: Any, context: Any):
        """One schedule."""
        caller = principal()
        caller.require(READ)
        record = await self._schedules.get(caller, checked_id("schedule_id", request.schedule_id))
        return pb.GetScheduleResponse(schedule=schedule_message(record))

    async def ListSchedules(self, request: Any, context: Any):
        """Schedules of the caller, newest first."""
        caller = principal()
        caller.require(READ)
        size, before = page(request.page_size, request.page_token)
        found = await self._schedules.of_caller(caller, before, size + 1)
        token = page_token(found[size - 1][1]) if len(found) > size else ""
        return pb.ListSchedulesResponse(schedules=[schedule_message(r) for r, _ in found[:size] if r is not None], next_page_token=token)

    async def UpdateSchedule(self, request: Any, context: Any):
        """Changes what a schedule does."""
        caller = principal()
        caller.require(WRITE, SCOPE)
        schedule_id = checked_id("schedule_id", request.schedule_id)
        if request.expected_version < 0:
            raise InvalidInput.field("expected_version", "must not be negative")
        if unknown := set(request.update_mask.paths) - set(_FIELDS):
            raise InvalidInput.field("update_mask", f"must name fields of a definition; {len(unknown)} of its paths are none")
        named = frozenset(_FIELDS[path] for path in request.update_mask.paths)
        asked = replace(request_of(request.definition), named=named)
        record = await self._schedules.update(caller, schedule_id, asked, request.expected_version, request.idempotency_key)
        return pb.UpdateScheduleResponse(schedule=schedule_message(record))

    async def PauseSchedule(self, request: Any, context: Any):
        """Has it fire no more."""
        caller = principal()
        caller.require(WRITE)
        record = await self._schedules.pause(caller, checked_id("schedule_id", request.schedule_id))
        return pb.PauseScheduleResponse(schedule=schedule_message(record))

    async def ResumeSchedule(self, request: Any, context: Any):
        """Has it fire again."""
        caller = principal()
        caller.require(WRITE, SCOPE)
        record = await self._schedules.resume(caller, checked_id("schedule_id", request.schedule_id))
        return pb.ResumeScheduleResponse(schedule=schedule_message(record))

    async def DeleteSchedule(self, request: Any, context: Any):
        """Removes it."""
        caller = principal()
        caller.require(WRITE)
        await self._schedules.delete(caller, checked_id("schedule_id", request.schedule_id), request.idempotency_key)
        return pb.DeleteScheduleResponse()

    async def ListScheduleTicks(self, request: Any, context: Any):
        """What came of its last ticks, newest first."""
        caller = principal()
        caller.require(READ)
        size, before = page(request.page_size, request.page_token)
        found = await self._schedules.ticks(caller, checked_id("schedule_id", request.schedule_id), before, size + 1)
        token = page_token(found[size - 1][1]) if len(found) > size else ""
        return pb.ListScheduleTicksResponse(ticks=[tick_message(outcome) for outcome, _ in found[:size]], next_page_token=token)
