"""/v1/responses: an agent's name as `model`, a run as a response."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import BulkheadError, Conflict, DeadlineExceeded, InvalidInput, NotFound
from services.common.rpc import context as call_context
from services.gateway.edge.exchange import exchange
from services.gateway.edge.keyed import REPLAYED
from services.gateway.edge.problems import openai_error
from services.gateway.edge.route import GuardedRoute, PreparedRequest, idempotency_key, needs
from services.gateway.ports import Subject
from services.gateway.running import cancel_on_leaving, wait_for_end
from services.gateway.streaming import EventStream
from services.gateway.surfaces.native.models import INT64_MAX
from services.gateway.surfaces.openai.answering import about_run, as_json, in_time
from services.gateway.surfaces.openai.fields import unsupported
from services.gateway.surfaces.responses import ids, reading, schema
from services.gateway.surfaces.responses.paging import After, Include, Limit, Order, cut, refuse_include
from services.gateway.surfaces.responses.projection import NUMBERS_AN_EVENT, Projection, frame
from services.gateway.surfaces.responses.references import References
from services.gateway.surfaces.responses.request import ResponseRequest
from services.gateway.surfaces.responses.starting import Starting
from services.gateway.surfaces.wiring import Wiring

# How long a cancel waits for the end that it asks for; the response is answered as it then is.
CANCEL_WAIT_S = 5.0
StartingAfter = Annotated[int | None, Query(ge=0, le=INT64_MAX, description="Only events with larger sequence_number.")]


class Responses:
    """/v1/responses"""

    def __init__(self, wiring: Wiring) -> None:
        self._threads, self._runs = wiring.backends.threads, wiring.backends.runs
        self._follower, self._streams = wiring.follower, wiring.streams
        self._starting = Starting(wiring.backends)
        self._references = References(wiring.backends, wiring.follower)
        self._wait_limit_s = wiring.settings.wait_limit_s

    def router(self) -> APIRouter:
        """Routes."""
        router = APIRouter(route_class=GuardedRoute, tags=["openai"], responses=schema.ERRORS)
        one = "/v1/responses/{response_id}"
        body = schema.RESPONSE_BODY
        router.add_api_route("/v1/responses", self.create, methods=["POST"], responses=schema.RESPONSE_OR_EVENTS, openapi_extra=body)
        router.add_api_route(one, self.get, methods=["GET"], responses=schema.RESPONSE_OR_EVENTS)
        router.add_api_route(one, self.delete, methods=["DELETE"], responses=schema.RESPONSE_DELETED)
        router.add_api_route(f"{one}/cancel", self.cancel, methods=["POST"], responses=schema.RESPONSE)
        router.add_api_route(f"{one}/input_items", self.input_items, methods=["GET"], responses=schema.ITEMS)
        return router

    @needs("runs:write", body="json", open_query=True)
    async def create(self, request: Request) -> Response:
        """A response by an agent. Its own tools run on the server; `tools` are the client's, who is asked to call them by items of type
        `function_call` and answers with `function_call_output`.

        With `previous_response_id` or `conversation` it goes on with what was said there. `background` answers at once. A response that
        waits for an approval is answered as it is then; the answer to it is a `mcp_approval_response` behind the same response.
        """
        assert isinstance(request, PreparedRequest)
        asked = ResponseRequest(request.parsed, exchange(request).headers)
        if asked.stream or not asked.background:
            # Who may not read what comes of it is told so before it begins.
            call_context.principal().require("runs:read")
        await self._references.check(asked)
        started = await self._starting.start(asked, idempotency_key(request))
        run = started.run
        about_run(request, run)
        if not started.created:
            exchange(request).answer(REPLAYED, "true")
        projection = Projection(run, {"ignored": asked.ignored} if asked.input.decisions else asked.shown())
        leaving = cancel_on_leaving(self._runs, run.run_id) if asked.cancel_on_disconnect else None
        if asked.stream:
            return self._stream(projection, -1, leaving)
        if asked.background:
            if not started.created or asked.input.decisions:
                await reading.caught_up(self._follower, projection)
            return as_json(projection.response())
        settled = reading.settled(self._follower, projection, again=bool(asked.input.decisions))
        done = await in_time(request, run, settled, self._wait_limit_s, leaving)
        if done.answer.failure is not None and done.status == "failed":
            raise done.answer.failure
        return as_json(done.response())

    @needs("runs:read")
    async def get(
        self,
        request: Request,
        response_id: str,
        stream: bool = False,
        starting_after: StartingAfter = None,
        include_obfuscation: bool = False,
        include: Include = None,
    ) -> Response:
        """A response as it is now, or with `stream=true` its events: all of them, or those behind `starting_after`, then live."""
        refuse_include(include)
        if include_obfuscation:
            raise unsupported("include_obfuscation", "events are not padded")
        if starting_after is not None and not stream:
            raise InvalidInput.field("starting_after", "is only for stream=true")
        run = await self._run(request, response_id)
        if not stream:
            return as_json((await reading.brought_up(self._follower, Projection(run))).response())
        if starting_after is not None:
            await self._check_cursor(run, starting_after)
        return self._stream(Projection(run), -1 if starting_after is None else starting_after)

    @needs("runs:read", "runs:write", keyed=True)
    async def cancel(self, request: Request, response_id: str) -> Response:
        """Ends a response, and answers it as it then is. One that has ended stays as it is."""
        run = await self._run(request, response_id)
        if not run.terminal_seq:
            await self._runs.CancelRun(pb.CancelRunRequest(run_id=run.run_id, idempotency_key=idempotency_key(request)))
            try:
                run = await wait_for_end(self._runs, run.run_id, CANCEL_WAIT_S)
            except DeadlineExceeded:
                run = (await self._runs.GetRun(pb.GetRunRequest(run_id=run.run_id))).run
        return as_json((await reading.brought_up(self._follower, Projection(run))).response())

    @needs("runs:read", "threads:write", keyed=True)
    async def delete(self, request: Request, response_id: str) -> Response:
        """Deletes a response with all that it left. One that others go on from goes with its conversation only."""
        deleted = {"id": response_id, "object": "response", "deleted": True}
        if exchange(request).replayed:
            return as_json(deleted)
        run = await self._run(request, response_id)
        members = (await self._runs.ListRuns(pb.ListRunsRequest(thread_id=run.thread_id, page_size=2))).runs
        if not run.thread_id.startswith(ids.OWN_THREAD) or [member.run_id for member in members] != [run.run_id]:
            told = f"the response is a part of {ids.conversation_id(run.thread_id)}; that can be deleted as a whole"
            raise Conflict(told, reason="RESPONSE_IN_CONVERSATION", metadata={"run_id": run.run_id})
        await self._threads.DeleteThread(pb.DeleteThreadRequest(thread_id=run.thread_id, idempotency_key=idempotency_key(request)))
        return as_json(deleted)

    @needs("runs:read")
    async def input_items(
        self,
        request: Request,
        response_id: str,
        after: After = "",
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> Response:
        """What a response was asked, its instructions first."""
        refuse_include(include)
        projection = Projection(await self._run(request, response_id))
        await reading.caught_up(self._follower, projection, "run_queued")
        items = reading.input_items(projection)
        return as_json(cut(items if order == "asc" else items[::-1], after=after, limit=limit))

    async def _run(self, request: Request, response_id: str) -> pb.Run:
        try:
            run = (await self._runs.GetRun(pb.GetRunRequest(run_id=ids.run_id_of(response_id)))).run
        except NotFound:
            raise ids.not_found("response") from None
        about_run(request, run)
        return run

    async def _check_cursor(self, run: pb.Run, number: int) -> None:
        """Raises InvalidInput for a number that lies in the future."""
        seq = run.first_seq + number // NUMBERS_AN_EVENT
        if run.terminal_seq:
            # The last event of the log may have more numbers than the others.
            known = seq <= run.terminal_seq or number <= (await reading.brought_up(self._follower, Projection(run))).number
        else:
            thread = (await self._threads.GetThread(pb.GetThreadRequest(thread_id=run.thread_id))).thread
            known = seq <= thread.last_seq or await self._follower.goes_on_above(Subject(run_id=run.run_id), seq)
        if not known:
            raise InvalidInput.field("starting_after", "lies beyond the last event")

    def _stream(self, projection: Projection, after: int, leaving: Callable[[], Awaitable[None]] | None = None) -> EventStream:
        stream = reading.Stream(self._follower, projection, after)

        def failure(error: BulkheadError) -> bytes:
            told = openai_error(error)
            # With `error` in it the SDK raises; the number is the last one that was sent, so that the client can go on behind it.
            event = {"type": "error", "sequence_number": max(0, stream.sent), "error": told}
            return frame(event | {name: told[name] for name in ("code", "message", "param")})

        return EventStream(stream.frames(), self._streams, resumable=False, failure=failure, on_gone=leaving)
