"""The simplest thing that works: one message in, one answer out."""

import asyncio
import time
import uuid

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import DeadlineExceeded, InvalidInput
from services.common.rpc import context as call_context
from services.gateway.edge.exchange import exchange
from services.gateway.edge.keyed import REPLAYED, named_by
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.running import collect
from services.gateway.streaming import while_connected
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import AgentChat, NamePath
from services.gateway.surfaces.native.outputs import ChatOut
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring


class Chat:
    """/v1/agents/{agent}/chat"""

    def __init__(self, wiring: Wiring) -> None:
        self._runs = wiring.backends.runs
        self._follower = wiring.follower
        self._wait_limit_s = wiring.settings.wait_limit_s

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("agents")
        outcomes = {**answers(ChatOut), **answers(ChatOut, 202, "Still at work when the wait was over; Location leads to the run.")}
        router.add_api_route("/v1/agents/{agent}/chat", self.chat, methods=["POST"], responses=outcomes)
        return router

    @needs("runs:read", "runs:write", body="json")
    async def chat(self, request: Request, agent: NamePath, body: AgentChat) -> Response:
        """Says something to an agent and waits for its answer. The same session_id goes on with the conversation.

        A run that failed is a problem with its run_id. When `x-request-timeout-ms` passes first, the answer is 202 and the run goes on.
        """
        if not body.user_input.strip():
            raise InvalidInput.field("user_input", "must not be empty")
        started = time.perf_counter()
        key = idempotency_key(request)
        about = exchange(request)
        session_id = body.session_id or _new_session(key)
        about.about(thread_id=session_id)
        answer = await self._runs.CreateRun(
            pb.CreateRunRequest(
                thread_id=session_id, agent=agent, input=[pb.InputMessage(role="user", text=body.user_input)], idempotency_key=key
            )
        )
        run = answer.run
        about.about(run_id=run.run_id)
        if not answer.created:
            about.answer(REPLAYED, "true")
        headers = shapes.run_headers(run)
        left = (call_context.current() or call_context.CallContext()).remaining_s()
        wait_s = self._wait_limit_s if left is None else min(left, self._wait_limit_s)
        outcome = {"result": "", "session_id": session_id, "status": "running", "run_id": run.run_id}
        try:
            async with asyncio.timeout(wait_s):
                done = await while_connected(request.receive, collect(self._follower, run))
        except (TimeoutError, DeadlineExceeded):
            outcome |= {"citations": [], "usage": {}, "warnings": []}
            status = 202
        else:
            outcome |= {"result": done.text, "status": "succeeded"}
            outcome |= {"citations": done.citations, "usage": dict(done.usage), "warnings": done.warnings}
            status = 200
        outcome["latency_ms"] = round((time.perf_counter() - started) * 1000)
        return shapes.reply(outcome, status, headers)


def _new_session(key: str) -> str:
    """A new session id; the same for the same idempotency key, so that a repeated request has the same body for the orchestrator."""
    return named_by("session", key) if key else f"session_{uuid.uuid4().hex}"
