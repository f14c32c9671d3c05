"""Runs: start, look, wait, cancel."""

import re
from collections.abc import Sequence

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from services.common.rpc import context as call_context
from services.gateway.client_tools import client_tools, response_format, tool_choice
from services.gateway.edge.exchange import exchange
from services.gateway.edge.keyed import REPLAYED
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.inputs import input_of
from services.gateway.ports import Subject
from services.gateway.refusals import InvalidBody
from services.gateway.running import cancel_on_leaving
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.events import event_stream
from services.gateway.surfaces.native.models import After, IdPath, Limit, OfAgent, OfStatus, RunCancel, RunCreate, said
from services.gateway.surfaces.native.outputs import CancelOut, RunOut, RunPage
from services.gateway.surfaces.native.routing import EVENTS, answers, native_router
from services.gateway.surfaces.native.waiting import LONGEST_WAIT_S, waited_for
from services.gateway.surfaces.wiring import Wiring

_ON_BUSY = {
    "enqueue": pb.ON_BUSY_ENQUEUE, "reject": pb.ON_BUSY_REJECT, "interrupt": pb.ON_BUSY_INTERRUPT, "rollback": pb.ON_BUSY_ROLLBACK,
    "steer": pb.ON_BUSY_STEER,
}  # fmt: skip
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")


class Runs:
    """/v1/runs and /v1/threads/{thread_id}/runs"""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._runs = wiring.backends.runs

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("runs")
        started = {
            **answers(RunOut, 202, "Accepted; Location leads to the run."),
            200: {
                "description": "Ended within `Prefer: wait=n`, or the events of the run.",
                "model": RunOut,
                "content": EVENTS,
            },
        }
        router.add_api_route("/v1/threads/{thread_id}/runs", self.create, methods=["POST"], status_code=202, responses=started)
        router.add_api_route("/v1/threads/{thread_id}/runs", self.list_of_thread, methods=["GET"], responses=answers(RunPage))
        router.add_api_route("/v1/runs", self.list, methods=["GET"], responses=answers(RunPage))
        router.add_api_route("/v1/runs/{run_id}", self.get, methods=["GET"], responses=answers(RunOut))
        cancelled = {**answers(CancelOut, 202, "Recorded."), **answers(CancelOut, 200, "Ended, with wait=true.")}
        router.add_api_route("/v1/runs/{run_id}/cancel", self.cancel, methods=["POST"], status_code=202, responses=cancelled)
        return router

    @needs("runs:write", body="json")
    async def create(self, request: Request, thread_id: IdPath, body: RunCreate) -> Response:
        """Starts a run on a thread, which is made when it is not there.

        Answers 202 once the run is durable; with `Prefer: wait=n` (seconds) 200 when it ends in time; with `stream: true` or
        `Accept: text/event-stream` the run's events.
        """
        about = exchange(request)
        about.about(thread_id=thread_id)
        streams = body.stream or "text/event-stream" in about.headers.get("accept", "")
        wait_s = _preferred_wait_s(about.headers.get("prefer", ""))
        if streams or wait_s:
            # Asked for before the run is made: what is refused has started nothing.
            call_context.principal().require("runs:read")
        key = idempotency_key(request)
        told = await input_of(self._wiring.backends.blobs, said(body.input), key)
        answer = await self._runs.CreateRun(_create_request(thread_id, body, told, key))
        run = answer.run
        about.about(run_id=run.run_id)
        headers = shapes.run_headers(run)
        # A run that is steered is another request's, which said what becomes of it when its client leaves.
        cancels = body.on_disconnect == "cancel" and not answer.steer_number
        leaving = cancel_on_leaving(self._runs, run.run_id) if cancels else None
        if not answer.created and not answer.steer_number:
            about.answer(REPLAYED, "true")
        if streams:
            return event_stream(self._wiring, Subject(run_id=run.run_id), max(0, run.first_seq - 1), headers=headers, on_gone=leaving)
        if wait_s:
            headers["preference-applied"] = f"wait={wait_s}"
        run, status = await waited_for(self._runs, request, run, wait_s, leaving)
        shape = shapes.run(run)
        if answer.steer_number:
            shape["steer_number"] = answer.steer_number
        return shapes.reply(shape, status, headers)

    @needs("runs:read")
    async def list_of_thread(
        self, request: Request, thread_id: IdPath, status: OfStatus = None, agent: OfAgent = None, limit: Limit = 100, after: After = ""
    ) -> Response:
        """Runs of a thread, newest first. Filtered, a page may hold fewer than `limit`, also none, and not be the last."""
        exchange(request).about(thread_id=thread_id)
        return await self._listed(request, thread_id, status, agent, limit, after)

    @needs("runs:read")
    async def list(
        self, request: Request, status: OfStatus = None, agent: OfAgent = None, limit: Limit = 100, after: After = ""
    ) -> Response:
        """The caller's runs, newest first. Filtered, a page may hold fewer than `limit`, also none, and not be the last."""
        return await self._listed(request, "", status, agent, limit, after)

    async def _listed(
        self, request: Request, thread_id: str, status: Sequence[str] | None, agent: str | None, limit: int, after: str
    ) -> Response:
        asked = pb.ListRunsRequest(
            thread_id=thread_id, statuses=[shapes.RUN_STATUSES[name] for name in status or ()], agent=agent or "", page_size=limit,
            page_token=after,
        )  # fmt: skip
        answer = await self._runs.ListRuns(asked)
        # Again, as an orchestrator of the version before does not know the filter, and who acts on a list acts on all of it.
        found = [run for run in answer.runs if (not asked.statuses or run.status in asked.statuses) and asked.agent in ("", run.agent)]
        return shapes.page(request, map(shapes.listed_run, found), answer.next_page_token)

    @needs("runs:read")
    async def get(self, request: Request, run_id: IdPath) -> Response:
        """One run."""
        run = (await self._runs.GetRun(pb.GetRunRequest(run_id=run_id))).run
        exchange(request).about(thread_id=run.thread_id, run_id=run_id)
        return shapes.reply(shapes.run(run))

    @needs("runs:write", body="json", keyed=True)
    async def cancel(
        self,
        request: Request,
        run_id: IdPath,
        body: RunCancel | None = None,
        wait: bool = Query(False, description="Answer when the run has ended."),
    ) -> Response:
        """Asks for the end of a run. The wish is kept, also for a run that has not started; asking again changes nothing."""
        about = exchange(request)
        about.about(run_id=run_id)
        if wait:
            call_context.principal().require("runs:read")
        asked = pb.CancelRunRequest(run_id=run_id, idempotency_key=idempotency_key(request), reason=body.reason if body else "")
        answer = await self._runs.CancelRun(asked)
        shape, status = None, 202
        if answer.HasField("run"):
            run, status = await waited_for(self._runs, request, answer.run, LONGEST_WAIT_S if wait else 0)
            shape = shapes.run(run)
        answered = {"run_id": run_id, "cancel_requested": True, "run": shape}
        return shapes.reply(answered, status, shapes.location("/v1/runs", run_id))


def _preferred_wait_s(prefer: str) -> int:
    found = _WAIT.search(prefer)
    return min(int(found.group(1)), LONGEST_WAIT_S) if found else 0


def _create_request(thread_id: str, body: RunCreate, told: Sequence[pb.InputMessage], key: str) -> pb.CreateRunRequest:
    tools = client_tools([tool.model_dump() for tool in body.client_tools], at="client_tools", wrong=InvalidBody)
    asked = pb.CreateRunRequest(
        thread_id=thread_id,
        agent=body.agent or "",
        input=told,
        run_id=body.run_id or "",
        idempotency_key=key,
        metadata=body.metadata,
        temperature=body.temperature,
        max_tokens=body.max_tokens,
        on_disconnect=pb.ON_DISCONNECT_CANCEL if body.on_disconnect == "cancel" else pb.ON_DISCONNECT_CONTINUE,
        on_busy=_ON_BUSY[body.on_busy],
        priority=body.priority,
        reset_memory=body.reset_memory,
        append_only_output=body.append_only_output,
        client_tools=tools,
        tool_choice_json=tool_choice(body.tool_choice, tools, inner="function", of_agent=True, wrong=InvalidBody),
        response_format_json=response_format(body.response_format, "response_format", inner="json_schema", wrong=InvalidBody),
    )
    if body.start_at is not None:
        asked.start_at.FromDatetime(body.start_at)
    if (limits := body.limits) is not None:
        if limits.deadline_ms:
            asked.limits.deadline.FromMilliseconds(limits.deadline_ms)
        for name in ("max_steps", "max_tool_calls", "max_cost_microusd", "max_total_tokens"):
            if (limit := getattr(limits, name)) is not None:
                setattr(asked.limits, name, limit)
    return asked
