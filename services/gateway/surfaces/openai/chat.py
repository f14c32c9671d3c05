"""POST /v1/chat/completions: an agent's name as `model`."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.exchange import exchange
from services.gateway.edge.keyed import REPLAYED
from services.gateway.edge.route import GuardedRoute, PreparedRequest, idempotency_key, needs
from services.gateway.inputs import input_of
from services.gateway.ports import Subject
from services.gateway.running import cancel_on_leaving, collect
from services.gateway.streaming import EventStream
from services.gateway.surfaces.openai import schema
from services.gateway.surfaces.openai.answering import about_run, as_json, in_time
from services.gateway.surfaces.openai.chunks import chunk_frames, completion, error_frame
from services.gateway.surfaces.openai.models import create_run
from services.gateway.surfaces.openai.request import ChatRequest
from services.gateway.surfaces.wiring import Wiring

# Fields of a run as this route has them.
_NAMES = {
    r"client_tools(\[\d+\])\.parameters_json": r"tools\1.function.parameters", r"client_tools(\[\d+\])": r"tools\1.function",
    r"client_tools": "tools", r"tool_choice_json": "tool_choice", r"response_format_json": "response_format", r"input$": "messages",
}  # fmt: skip


class ChatCompletions:
    """/v1/chat/completions"""

    def __init__(self, wiring: Wiring) -> None:
        self._runs, self._blobs = wiring.backends.runs, wiring.backends.blobs
        self._follower = wiring.follower
        self._streams = wiring.streams
        self._wait_limit_s = wiring.settings.wait_limit_s

    def router(self) -> APIRouter:
        """Routes."""
        router = APIRouter(route_class=GuardedRoute, tags=["openai"], responses=schema.ERRORS)
        router.add_api_route(
            "/v1/chat/completions", self.create, methods=["POST"], responses=schema.COMPLETION, openapi_extra=schema.CHAT_BODY
        )
        return router

    @needs("runs:read", "runs:write", body="json", open_query=True)
    async def create(self, request: Request) -> Response:
        """A chat completion by an agent. Its own tools run on the server and are not shown; `tools` are the client's, who is asked to
        call them by an answer with `tool_calls` and sends what they gave in messages of role tool.

        Without a thread the messages are taken as they are. With `metadata.thread_id` or `x-bulkhead-thread-id` only the last
        user message, or the tool messages at the end, are appended to that thread.
        """
        assert isinstance(request, PreparedRequest)
        asked = ChatRequest(request.parsed, exchange(request).headers)
        key = idempotency_key(request)
        told = await input_of(self._blobs, asked.said, key)
        answer = await create_run(self._runs, asked.create_run(told, key), _NAMES, asked.said)
        run = answer.run
        about_run(request, run)
        if not answer.created:
            exchange(request).answer(REPLAYED, "true")
        leaving = cancel_on_leaving(self._runs, run.run_id) if asked.cancel_on_disconnect else None
        structured = bool(asked.response_format)
        if asked.stream:
            events = self._follower.follow(Subject(run_id=run.run_id), max(0, run.first_seq - 1))
            frames = chunk_frames(events, run, asked.model, include_usage=asked.include_usage, ignored=asked.ignored, structured=structured)
            return EventStream(frames, self._streams, resumable=False, proven=True, failure=error_frame, on_gone=leaving)
        done = await in_time(request, run, collect(self._follower, run), self._wait_limit_s, leaving)
        return as_json(completion(run, asked.model, done, asked.ignored, structured=structured))
