"""The verbs of control, as a part of RunService: proto to domain and back, nothing else."""

from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.rpc.context import principal
from services.orchestrator.control.controlling import Controlling
from services.orchestrator.servicer import RunServicer, run_message
from services.orchestrator.turn import orders

_CONTINUATIONS = {
    pb.TOOL_CALL_CONTINUATION_SKIP: orders.SKIP, pb.TOOL_CALL_CONTINUATION_FAIL: orders.FAIL,
    pb.TOOL_CALL_CONTINUATION_RETRY: orders.RETRY, pb.TOOL_CALL_CONTINUATION_SUBSTITUTE: orders.SUBSTITUTE,
}  # fmt: skip


class ControlledRunServicer(RunServicer):
    """RunService with all its methods."""

    def __init__(self, controlling: Controlling, *parts: Any) -> None:
        """`parts` as of RunServicer."""
        super().__init__(*parts)
        self._control = controlling

    async def CancelRun(self, request, context):
        """Asks for the end of a run."""
        caller = principal()
        caller.require("runs:write")
        record = await self._control.cancel_run(caller, request.run_id, request.reason, wait=request.wait)
        return pb.CancelRunResponse(run=run_message(record) if record is not None else None)

    async def StopGeneration(self, request, context):
        """Ends the model call under way, or the next one."""
        caller = principal()
        caller.require("runs:write")
        record, number = await self._control.stop(caller, request.run_id, request.idempotency_key, wait=request.wait)
        return pb.StopGenerationResponse(run=run_message(record), number=number)

    async def CancelToolCall(self, request, context):
        """Ends one tool call."""
        caller = principal()
        caller.require("runs:write")
        continuation = _CONTINUATIONS.get(request.continuation, "")
        number = await self._control.cancel_call(
            caller, request.run_id, request.call_id, continuation, request.result_json, request.idempotency_key
        )
        return pb.CancelToolCallResponse(number=number)

    async def UpdatePlan(self, request, context):
        """Puts a plan of the caller's in place of the run's."""
        caller = principal()
        caller.require("runs:write")
        steps = [{"title": step.title, "status": step.status} for step in request.steps]
        record, number = await self._control.update_plan(caller, request.run_id, steps, request.version, request.idempotency_key)
        return pb.UpdatePlanResponse(run=run_message(record), number=number)

    async def SteerRun(self, request, context):
        """Puts a user message into a run at work."""
        caller = principal()
        caller.require("runs:write")
        record, number = await self._control.steer(caller, request.run_id, request.text, request.idempotency_key)
        return pb.SteerRunResponse(run=run_message(record), number=number)
