"""Control of runs at work: stop, steer, another plan, a tool call cancelled, many runs cancelled."""

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import InvalidInput
from services.common.rpc import context as call_context
from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import control_shapes, shapes
from services.gateway.surfaces.native.control_models import CallIdPath, PlanUpdate, RunsCancel, RunSteer, RunStop, ToolCallCancel
from services.gateway.surfaces.native.control_shapes import CommandOut, RunsCancelOut, ToolCallCancelOut
from services.gateway.surfaces.native.models import IdPath
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.native.waiting import LONGEST_WAIT_S, waited_for
from services.gateway.surfaces.wiring import Wiring

_KEY = {
    "name": "Idempotency-Key", "in": "header", "required": True, "description": "Names the operation.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}  # fmt: skip


class Control:
    """/v1/runs/{run_id}/stop, …/steer, …/plan, …/tool-calls/{call_id}/cancel and /v1/runs/cancel"""

    def __init__(self, wiring: Wiring) -> None:
        self._runs = wiring.backends.runs

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("control")
        taken = answers(CommandOut, 202, "Recorded.")
        stopped = {**taken, **answers(CommandOut, 200, "Ended, with wait=true.")}
        called = answers(ToolCallCancelOut, 202, "Recorded.")
        bulk = {**answers(RunsCancelOut, 200, "All were looked at."), **answers(RunsCancelOut, 202, "Not all yet: send it again.")}
        add = router.add_api_route
        add("/v1/runs/cancel", self.cancel_many, methods=["POST"], responses=bulk, openapi_extra={"parameters": [_KEY]})
        add("/v1/runs/{run_id}/stop", self.stop, methods=["POST"], status_code=202, responses=stopped)
        add("/v1/runs/{run_id}/steer", self.steer, methods=["POST"], status_code=202, responses=taken)
        add("/v1/runs/{run_id}/plan", self.update_plan, methods=["PUT"], status_code=202, responses=taken)
        add("/v1/runs/{run_id}/tool-calls/{call_id}/cancel", self.cancel_call, methods=["POST"], status_code=202, responses=called)
        return router

    @needs("runs:write", body="json")
    async def stop(
        self,
        request: Request,
        run_id: IdPath,
        body: RunStop | None = None,
        wait: bool = Query(False, description="Answer when the run has ended."),
    ) -> Response:
        """Ends the model call under way, or the next one. Its text so far is the answer, and the run succeeds with it."""
        exchange(request).about(run_id=run_id)
        if wait:
            call_context.principal().require("runs:read")
        answer = await self._runs.StopGeneration(pb.StopGenerationRequest(run_id=run_id, idempotency_key=idempotency_key(request)))
        run, status = await waited_for(self._runs, request, answer.run, LONGEST_WAIT_S if wait else 0)
        return _recorded(run, answer.number, status)

    @needs("runs:write", body="json")
    async def steer(self, request: Request, run_id: IdPath, body: RunSteer) -> Response:
        """Puts a user message into a run that has not ended. Its model reads it before its next step.

        The events `steer_applied` or `steer_dropped` say with the number what became of it.
        """
        exchange(request).about(run_id=run_id)
        answer = await self._runs.SteerRun(pb.SteerRunRequest(run_id=run_id, text=body.text, idempotency_key=idempotency_key(request)))
        return _recorded(answer.run, answer.number)

    @needs("runs:write", body="json")
    async def update_plan(self, request: Request, run_id: IdPath, body: PlanUpdate) -> Response:
        """Puts a plan in place of that of a run whose agent plans. Where another version stands by now: 409 PLAN_CHANGED."""
        exchange(request).about(run_id=run_id)
        steps = [pb.PlanStep(title=step.title, status=step.status) for step in body.steps]
        asked = pb.UpdatePlanRequest(run_id=run_id, steps=steps, version=body.version, idempotency_key=idempotency_key(request))
        answer = await self._runs.UpdatePlan(asked)
        return _recorded(answer.run, answer.number)

    @needs("runs:write", body="json")
    async def cancel_call(self, request: Request, run_id: IdPath, call_id: CallIdPath, body: ToolCallCancel) -> Response:
        """Ends one tool call of a run at work, at the tool executor, and says how the run goes on without it."""
        exchange(request).about(run_id=run_id)
        asked = pb.CancelToolCallRequest(
            run_id=run_id,
            call_id=call_id,
            idempotency_key=idempotency_key(request),
            continuation=control_shapes.CONTINUATIONS[body.continuation],
            result_json=orjson.dumps(body.result) if body.continuation == "substitute" else b"",
        )
        answer = await self._runs.CancelToolCall(asked)
        return shapes.reply({"run_id": run_id, "call_id": call_id, "number": answer.number}, 202, shapes.location("/v1/runs", run_id))

    @needs("runs:write", body="json")
    async def cancel_many(self, request: Request, body: RunsCancel) -> Response:
        """Asks for the end of all runs of the caller that fit a filter and were accepted before the first request with this key.

        Answers 202 while some were not looked at yet: the same request goes on from there. `Idempotency-Key` is required.
        """
        key = idempotency_key(request)
        if not key:
            raise InvalidInput.field("Idempotency-Key", "is required: it names the operation that a second request goes on with")
        wanted = pb.RunFilter(
            thread_id=body.filter.thread_id or "",
            agent=body.filter.agent or "",
            statuses=[shapes.RUN_STATUSES[status] for status in body.filter.statuses],
            metadata=body.filter.metadata,
            schedule_id=body.filter.schedule_id or "",
        )
        asked = pb.CancelRunsRequest(filter=wanted, idempotency_key=key, reason=body.reason, page_size=body.limit or 0)
        answer = await self._runs.CancelRuns(asked)
        shape = {"matched_count": answer.matched_count, "requested_count": answer.requested_count, "done": answer.done}
        return shapes.reply(shape) if answer.done else shapes.reply(shape, 202, {"location": "/v1/runs"})


def _recorded(run: pb.Run, number: int, status: int = 202) -> Response:
    return shapes.reply(control_shapes.command(run, number), status, shapes.location("/v1/runs", run.run_id))
