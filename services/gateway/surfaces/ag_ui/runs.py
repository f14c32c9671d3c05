"""POST /ag-ui/{agent}: a run, begun, taken up again, or resumed with what people have answered."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1.approvals_pb2 import DecideApprovalRequest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import Conflict, InvalidInput, NotFound
from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import GuardedRoute, PreparedRequest, idempotency_key, needs
from services.gateway.inputs import Said, as_the_client_says, input_of
from services.gateway.ports import Subject
from services.gateway.refusals import InvalidBody
from services.gateway.running import cancel_on_leaving
from services.gateway.streaming import EventStream
from services.gateway.surfaces.ag_ui import schema
from services.gateway.surfaces.ag_ui.history import history
from services.gateway.surfaces.ag_ui.interrupts import check_repeated, decision
from services.gateway.surfaces.ag_ui.projection import Projection
from services.gateway.surfaces.ag_ui.run_input import RunInput
from services.gateway.surfaces.ag_ui.run_stream import RunStream, catch_up, error_frame
from services.gateway.surfaces.native.models import ID_PATTERN, INT64_MAX, NamePath
from services.gateway.surfaces.wiring import Wiring

# Fields of a run as this route has them, and those of a decision below the entry of `resume` that it is.
_NAMES = {
    r"client_tools(\[\d+\])\.parameters_json": r"tools\1.parameters", r"client_tools": "tools", r"input$": "messages",
    ".tool_call_id": ".toolCallId",
}  # fmt: skip
_DECISION_NAMES = {
    r"decision\.edit\.arguments_json": "payload.editedArgs", r"decision\.outcome\.done_json": "payload.result", r"decision.*": "payload",
    r"arguments_digest": "payload.argumentsDigest", r"reason": "payload.reason",
}  # fmt: skip
_QUESTIONS = ("interrupt_raised", "interrupt_resolved")


class Runs:
    """/ag-ui/{agent}"""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._runs = wiring.backends.runs
        self._threads = wiring.backends.threads
        self._approvals, self._blobs = wiring.backends.approvals, wiring.backends.blobs

    def router(self) -> APIRouter:
        """Routes."""
        router = APIRouter(route_class=GuardedRoute, tags=["ag-ui"], responses=schema.ERRORS)
        router.add_api_route("/ag-ui/{agent}", self.run, methods=["POST"], responses=schema.ANSWERS, openapi_extra=schema.RUN_INPUT)
        return router

    @needs("runs:write", "runs:read", body="json")
    async def run(self, request: Request, agent: NamePath) -> Response:
        """A run of an agent as AG-UI events: RunAgentInput in, server-sent events out.

        A runId that is there already is taken up again: the messages and the state as they stand, then what comes. `resume` answers
        what a run of the thread has asked of people.
        """
        assert isinstance(request, PreparedRequest)
        about = exchange(request)
        asked = RunInput(request.parsed, about.headers)
        about.about(thread_id=asked.thread_id)
        cursor = _last_event_id(about.headers.get("last-event-id", ""))
        if asked.answers:
            run, projection = await self._resumed(asked, agent)
            fresh = False
        else:
            run, fresh = await self._found_or_made(asked, agent, cursor, idempotency_key(request))
            projection = Projection(run.run_id, run.thread_id, asked.run_id, await self._before(asked, run))
        about.about(run_id=run.run_id)
        about.answer("x-bulkhead-run-id", run.run_id)
        about.answer("x-bulkhead-thread-id", run.thread_id)
        stream = RunStream(
            self._wiring.follower, self._runs, run, projection, fresh=fresh, parent=asked.parent_run_id, warnings=asked.warnings
        )
        leaving = cancel_on_leaving(self._runs, run.run_id) if asked.cancel_on_disconnect else None
        return EventStream(stream.frames(), self._wiring.streams, resumable=False, failure=error_frame, on_gone=leaving)

    async def _found_or_made(self, asked: RunInput, agent: str, cursor: int, key: str) -> tuple[pb.Run, bool]:
        """The run of this runId, and whether it is made just now."""
        found, thread = await asyncio.gather(
            _or_none(self._runs.GetRun(pb.GetRunRequest(run_id=asked.run_id))),
            _or_none(self._threads.GetThread(pb.GetThreadRequest(thread_id=asked.thread_id))),
        )
        last_seq = thread.thread.last_seq if thread is not None else 0
        if cursor > last_seq and not (thread and await self._wiring.follower.goes_on_above(Subject(thread_id=asked.thread_id), cursor)):
            raise InvalidBody.field("Last-Event-ID", f"the last event is {last_seq}")
        if found is None and cursor:
            raise NotFound("there is no run of this runId to go on with", reason="RUN_NOT_FOUND")
        if found is None:
            told = asked.told(fresh=not last_seq)
            # A request that is sent again mostly brings the same images.
            given = await input_of(self._blobs, told, key or f"ag-ui/{asked.run_id}", by_content=not key)
            try:
                return await self._made(asked, asked.create_run(agent, given, key), told), True
            except Conflict as error:
                if error.reason != "RUN_EXISTS":
                    raise
            # Somebody has asked for it in the same moment.
            found = await self._runs.GetRun(pb.GetRunRequest(run_id=asked.run_id))
        _check_same(found.run, asked, agent, "runId")
        return found.run, False

    async def _made(self, asked: RunInput, wanted: pb.CreateRunRequest, told: Sequence[Said]) -> pb.Run:
        wanted.on_busy = asked.on_busy or pb.ON_BUSY_REJECT
        try:
            return await self._create(wanted, told)
        except Conflict as error:
            if asked.on_busy or error.reason != "THREAD_BUSY":
                raise
            await self._check_nothing_asked(error.metadata.get("run_id", ""))
        wanted.on_busy = pb.ON_BUSY_ENQUEUE
        return await self._create(wanted, told)

    async def _create(self, wanted: pb.CreateRunRequest, told: Sequence[Said]) -> pb.Run:
        try:
            return (await self._runs.CreateRun(wanted)).run
        except InvalidInput as error:
            as_the_client_says(error, _NAMES, told)
            raise

    async def _check_nothing_asked(self, run_id: str) -> None:
        """Raises Conflict where a run waits for people: what comes behind it would wait as long, and its client might not know."""
        run = (await self._runs.GetRun(pb.GetRunRequest(run_id=run_id))).run
        if run.status != pb.RUN_STATUS_WAITING:
            return
        projection = Projection(run_id, run.thread_id, run_id, [])
        log = self._wiring.follower.follow(Subject(run_id=run_id), max(0, run.first_seq - 1), types=_QUESTIONS, replay_only=True)
        async with aclosing(log) as events:
            async for event in events:
                projection.take(event)
        if projection.open:
            raise _unanswered(projection)

    async def _before(self, asked: RunInput, run: pb.Run) -> list[dict[str, Any]]:
        """The conversation before a run: as its client has it, else as the thread has it."""
        return asked.before(run.run_id) if asked.messages else await history(self._threads, run)

    async def _resumed(self, asked: RunInput, agent: str) -> tuple[pb.Run, Projection]:
        """The run that is answered, with the answers given. Raises InvalidBody, Conflict, and what the orchestrator refuses."""
        run_id = asked.answers[0].interrupt_id.partition("/")[0]
        where = f"{asked.answers[0].where}.interruptId"
        may_be = re.fullmatch(ID_PATTERN, run_id)
        found = await _or_none(self._runs.GetRun(pb.GetRunRequest(run_id=run_id))) if may_be else None
        if found is None:
            raise InvalidBody.field(where, "is no interrupt of this thread")
        run = found.run
        _check_same(run, asked, agent, where)
        asked.check_nothing_new(run_id)
        projection = Projection(run_id, run.thread_id, asked.run_id, await self._before(asked, run))
        await catch_up(self._wiring.follower, run, projection)
        for answer in asked.answers:
            if answer.interrupt_id not in projection.asked:
                raise InvalidBody.field(f"{answer.where}.interruptId", "is no interrupt of this run")
        decisions = [decision(answer, projection.asked[answer.interrupt_id], asked.run_id) for answer in asked.answers]
        if projection.open.keys() - {answer.interrupt_id for answer in asked.answers}:
            raise _unanswered(projection)
        for decided in decisions:
            if decided.approval_id not in projection.open:
                check_repeated(decided, projection.asked[decided.approval_id])
        for answer, decided in zip(asked.answers, decisions, strict=True):
            if decided.approval_id in projection.open:
                await self._decide(decided, answer.where)
        projection.usage_since = max(projection.raised_seq[answer.interrupt_id] for answer in asked.answers)
        return run, projection

    async def _decide(self, decided: DecideApprovalRequest, where: str) -> None:
        try:
            await self._approvals.DecideApproval(decided)
        except InvalidInput as error:
            as_the_client_says(error, {of_service: f"{where}.{name}" for of_service, name in _DECISION_NAMES.items()})
            raise


async def _or_none(call: Any) -> Any:
    try:
        return await call
    except NotFound:
        return None


def _check_same(run: pb.Run, asked: RunInput, agent: str, where: str) -> None:
    if run.thread_id != asked.thread_id:
        raise InvalidBody.field(where, "is of another thread")
    if run.agent != agent:
        raise InvalidBody.field(where, "is of another agent")


def _unanswered(projection: Projection) -> Conflict:
    ids = ", ".join(list(projection.open)[:3])
    return Conflict(
        f"the thread waits for answers; `resume` must have one for each of what run {projection.run_id} asks, as {ids}",
        reason="INTERRUPTS_OPEN", metadata={"run_id": projection.run_id},
    )  # fmt: skip


def _last_event_id(raw: str) -> int:
    raw = raw.strip()
    if raw and not (raw.isascii() and raw.isdigit() and len(raw) <= 19 and int(raw) <= INT64_MAX):
        raise InvalidBody.field("Last-Event-ID", "must be the id of an event of this surface")
    return int(raw or 0)
