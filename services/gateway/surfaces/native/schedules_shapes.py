"""Schedules as JSON objects, and bodies as what the orchestrator is asked for."""

from collections.abc import Sequence
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2
from bulkhead.orchestrator.v1 import schedules_pb2 as pb
from google.protobuf import field_mask_pb2

from services.gateway.surfaces.native.models import InputMessage
from services.gateway.surfaces.native.schedules_models import ScheduleChange, ScheduleCreate, ScheduleTiming
from services.gateway.surfaces.native.shapes import moment

_THREADS = {"new": pb.THREAD_POLICY_NEW, "one": pb.THREAD_POLICY_ONE}
_OVERLAP = {"skip": pb.OVERLAP_POLICY_SKIP, "queue": pb.OVERLAP_POLICY_QUEUE, "cancel": pb.OVERLAP_POLICY_CANCEL}
_CATCH_UP = {"none": pb.CATCH_UP_POLICY_NONE, "last": pb.CATCH_UP_POLICY_LAST}
_OVERLAP_NAME = {value: name for name, value in _OVERLAP.items()}
_CATCH_UP_NAME = {value: name for name, value in _CATCH_UP.items()}
_STATE_NAME = {pb.SCHEDULE_STATE_ACTIVE: "active", pb.SCHEDULE_STATE_PAUSED: "paused", pb.SCHEDULE_STATE_ENDED: "ended"}
_RESULT_NAME = {
    pb.TICK_RESULT_FIRED: "fired",
    pb.TICK_RESULT_SKIPPED: "skipped",
    pb.TICK_RESULT_MISSED: "missed",
    pb.TICK_RESULT_REFUSED: "refused",
}


def schedule(message: pb.Schedule) -> dict[str, Any]:
    """A schedule."""
    plan = message.definition
    return {
        "schedule_id": message.schedule_id,
        "name": plan.name,
        "timing": _timing_of(plan.timing),
        "agent": plan.agent,
        "input": [{"role": m.role, "content": m.text} for m in plan.input],
        "thread_policy": "one" if plan.thread_policy == pb.THREAD_POLICY_ONE else "new",
        "thread_id": plan.thread_id or None,
        "overlap_policy": _OVERLAP_NAME.get(plan.overlap_policy, "skip"),
        "catch_up_policy": _CATCH_UP_NAME.get(plan.catch_up_policy, "none"),
        "metadata": dict(plan.metadata),
        "state": _STATE_NAME[message.state],
        "next_tick_at": moment(message, "next_tick_at"),
        "created_at": moment(message, "created_at"),
        "updated_at": moment(message, "updated_at"),
        "version": message.version,
        "last_tick": tick(message.last_tick) if message.HasField("last_tick") else None,
    }


def tick(message: pb.ScheduleTick) -> dict[str, Any]:
    """A tick and what came of it."""
    return {
        "tick_at": moment(message, "tick_at"),
        "result": _RESULT_NAME[message.result],
        "run_id": message.run_id or None,
        "thread_id": message.thread_id or None,
        "reason": message.reason or None,
        "decided_at": moment(message, "decided_at"),
    }


def _timing_of(message: pb.ScheduleTiming) -> dict[str, Any]:
    return {
        "cron": message.cron or None,
        "interval_ms": message.interval.ToMilliseconds() if message.WhichOneof("recurrence") == "interval" else None,
        "time_zone": message.time_zone or "UTC",
        "start_at": moment(message, "start_at"),
        "end_at": moment(message, "end_at"),
        "jitter_ms": message.jitter.ToMilliseconds(),
    }


def definition(body: ScheduleCreate) -> pb.ScheduleDefinition:
    """What a new schedule is to do."""
    return pb.ScheduleDefinition(
        name=body.name,
        timing=_timing(body.timing),
        agent=body.agent or "",
        input=_messages(body.input),
        thread_policy=_THREADS[body.thread_policy],
        thread_id=body.thread_id or "",
        overlap_policy=_OVERLAP[body.overlap_policy],
        catch_up_policy=_CATCH_UP[body.catch_up_policy],
        metadata=body.metadata,
    )


def changes(body: ScheduleChange) -> tuple[pb.ScheduleDefinition, field_mask_pb2.FieldMask]:
    """What is to change of a schedule, and the names of it."""
    plan = pb.ScheduleDefinition()
    names = [name for name in plan.DESCRIPTOR.fields_by_name if getattr(body, name) is not None]
    if body.timing is not None:
        plan.timing.CopyFrom(_timing(body.timing))
    if body.input is not None:
        plan.input.extend(_messages(body.input))
    if body.thread_policy is not None:
        plan.thread_policy = _THREADS[body.thread_policy]
        # The thread goes with the policy; without one it is made by the service.
        names += ["thread_id"] if body.thread_id is None else []
    if body.overlap_policy is not None:
        plan.overlap_policy = _OVERLAP[body.overlap_policy]
    if body.catch_up_policy is not None:
        plan.catch_up_policy = _CATCH_UP[body.catch_up_policy]
    plan.name, plan.agent, plan.thread_id = body.name or "", body.agent or "", body.thread_id or ""
    plan.metadata.update(body.metadata or {})
    return plan, field_mask_pb2.FieldMask(paths=names)


def _messages(input_: Sequence[InputMessage]) -> list[orchestrator_pb2.InputMessage]:
    return [orchestrator_pb2.InputMessage(role=message.role, text=message.content) for message in input_]


def _timing(body: ScheduleTiming) -> pb.ScheduleTiming:
    timing = pb.ScheduleTiming(time_zone=body.time_zone)
    if body.cron is not None:
        timing.cron = body.cron
    else:
        timing.interval.FromMilliseconds(body.interval_ms or 0)
    if body.start_at is not None:
        timing.start_at.FromDatetime(body.start_at)
    if body.end_at is not None:
        timing.end_at.FromDatetime(body.end_at)
    if body.jitter_ms:
        timing.jitter.FromMilliseconds(body.jitter_ms)
    return timing
