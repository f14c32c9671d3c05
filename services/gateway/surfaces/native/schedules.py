"""Schedules: runs that start by the clock."""

from bulkhead.orchestrator.v1 import schedules_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.common.rpc import context as call_context
from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import schedules_shapes, shapes
from services.gateway.surfaces.native.models import After, IdPath, Limit
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.native.schedules_models import ScheduleChange, ScheduleCreate, ScheduleOut, SchedulePage, TickPage
from services.gateway.surfaces.wiring import Wiring

READ, WRITE = "schedules:read", "schedules:write"
# Whoever makes or wakes a schedule starts runs.
RUNS = "runs:write"


class Schedules:
    """/v1/schedules"""

    def __init__(self, wiring: Wiring) -> None:
        self._schedules = wiring.backends.schedules

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("schedules")
        one, answered = "/v1/schedules/{schedule_id}", answers(ScheduleOut)
        router.add_api_route("/v1/schedules", self.create, methods=["POST"], status_code=201, responses=answers(ScheduleOut, 201, "Made."))
        router.add_api_route("/v1/schedules", self.list, methods=["GET"], responses=answers(SchedulePage))
        router.add_api_route(one, self.get, methods=["GET"], responses=answered)
        router.add_api_route(one, self.change, methods=["PATCH"], responses=answered)
        router.add_api_route(one, self.delete, methods=["DELETE"], status_code=204, responses=answers(None, 204, "Deleted."))
        router.add_api_route(f"{one}/pause", self.pause, methods=["POST"], responses=answered)
        router.add_api_route(f"{one}/resume", self.resume, methods=["POST"], responses=answered)
        router.add_api_route(f"{one}/ticks", self.ticks, methods=["GET"], responses=answers(TickPage))
        return router

    @needs(WRITE, RUNS, body="json")
    async def create(self, request: Request, body: ScheduleCreate) -> Response:
        """Makes a schedule. Its runs are the caller's. One that never fires is refused."""
        asked = pb.CreateScheduleRequest(definition=schedules_shapes.definition(body), idempotency_key=idempotency_key(request))
        made = (await self._schedules.CreateSchedule(asked)).schedule
        return shapes.reply(schedules_shapes.schedule(made), 201, shapes.location("/v1/schedules", made.schedule_id))

    @needs(READ)
    async def list(self, request: Request, limit: Limit = 100, after: After = "") -> Response:
        """The caller's schedules, newest first."""
        answer = await self._schedules.ListSchedules(pb.ListSchedulesRequest(page_size=limit, page_token=after))
        return shapes.page(request, map(schedules_shapes.schedule, answer.schedules), answer.next_page_token)

    @needs(READ)
    async def get(self, request: Request, schedule_id: IdPath) -> Response:
        """One schedule."""
        found = await self._schedules.GetSchedule(pb.GetScheduleRequest(schedule_id=schedule_id))
        return shapes.reply(schedules_shapes.schedule(found.schedule))

    @needs(WRITE, RUNS, body="json")
    async def change(self, request: Request, schedule_id: IdPath, body: ScheduleChange) -> Response:
        """Changes what a schedule does; its runs are the caller's from then on.

        What the body does not name stays, also where somebody else changes it at the same time.
        """
        plan, mask = schedules_shapes.changes(body)
        if not call_context.principal().missing([READ]):
            # An orchestrator of the version before knows no mask and replaces all that the schedule does.
            before = (await self._schedules.GetSchedule(pb.GetScheduleRequest(schedule_id=schedule_id))).schedule.definition
            mask.MergeMessage(plan, before, True, True)
            plan = before
        asked = pb.UpdateScheduleRequest(
            schedule_id=schedule_id, definition=plan, update_mask=mask, expected_version=body.expected_version or 0,
            idempotency_key=idempotency_key(request),
        )  # fmt: skip
        after = (await self._schedules.UpdateSchedule(asked)).schedule
        return shapes.reply(schedules_shapes.schedule(after))

    @needs(WRITE)
    async def delete(self, request: Request, schedule_id: IdPath) -> Response:
        """Removes a schedule with its log of ticks. Runs that it made go on."""
        await self._schedules.DeleteSchedule(pb.DeleteScheduleRequest(schedule_id=schedule_id, idempotency_key=idempotency_key(request)))
        return Response(status_code=204)

    @needs(WRITE, keyed=True)
    async def pause(self, request: Request, schedule_id: IdPath) -> Response:
        """Has a schedule fire no more until it is resumed."""
        if exchange(request).replayed:
            return await self._as_it_is(request, schedule_id)
        asked = pb.PauseScheduleRequest(schedule_id=schedule_id, idempotency_key=idempotency_key(request))
        return shapes.reply(schedules_shapes.schedule((await self._schedules.PauseSchedule(asked)).schedule))

    @needs(WRITE, RUNS, keyed=True)
    async def resume(self, request: Request, schedule_id: IdPath) -> Response:
        """Has a paused schedule fire again, from its next tick on."""
        if exchange(request).replayed:
            return await self._as_it_is(request, schedule_id)
        asked = pb.ResumeScheduleRequest(schedule_id=schedule_id, idempotency_key=idempotency_key(request))
        return shapes.reply(schedules_shapes.schedule((await self._schedules.ResumeSchedule(asked)).schedule))

    async def _as_it_is(self, request: Request, schedule_id: str) -> Response:
        # Others may have paused or resumed it since: a request that is repeated must not undo that.
        call_context.principal().require(READ)
        return await self.get(request, schedule_id)

    @needs(READ)
    async def ticks(self, request: Request, schedule_id: IdPath, limit: Limit = 100, after: After = "") -> Response:
        """What came of the last ticks, newest first."""
        asked = pb.ListScheduleTicksRequest(schedule_id=schedule_id, page_size=limit, page_token=after)
        answer = await self._schedules.ListScheduleTicks(asked)
        return shapes.page(request, map(schedules_shapes.tick, answer.ticks), answer.next_page_token)
