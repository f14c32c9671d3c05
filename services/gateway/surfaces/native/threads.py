"""Threads."""

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import After, IdPath, Limit, ThreadCreate
from services.gateway.surfaces.native.outputs import ThreadOut, ThreadPage
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring


class Threads:
    """/v1/threads"""

    def __init__(self, wiring: Wiring) -> None:
        self._threads = wiring.backends.threads

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("threads")
        router.add_api_route("/v1/threads", self.create, methods=["POST"], status_code=201, responses=answers(ThreadOut, 201))
        router.add_api_route("/v1/threads", self.list, methods=["GET"], responses=answers(ThreadPage))
        router.add_api_route("/v1/threads/{thread_id}", self.get, methods=["GET"], responses=answers(ThreadOut))
        return router

    @needs("threads:write", body="json")
    async def create(self, request: Request, body: ThreadCreate | None = None) -> Response:
        """Makes a thread. An id that is already there answers that thread."""
        body = body or ThreadCreate()
        answer = await self._threads.CreateThread(
            pb.CreateThreadRequest(thread_id=body.thread_id or "", metadata=body.metadata, idempotency_key=idempotency_key(request))
        )
        exchange(request).about(thread_id=answer.thread.thread_id)
        return shapes.reply(shapes.thread(answer.thread), 201, shapes.location("/v1/threads", answer.thread.thread_id))

    @needs("threads:read")
    async def list(self, request: Request, limit: Limit = 100, after: After = "") -> Response:
        """The caller's threads, newest first."""
        answer = await self._threads.ListThreads(pb.ListThreadsRequest(page_size=limit, page_token=after))
        return shapes.page(request, map(shapes.thread, answer.threads), answer.next_page_token)

    @needs("threads:read")
    async def get(self, request: Request, thread_id: IdPath) -> Response:
        """One thread."""
        exchange(request).about(thread_id=thread_id)
        answer = await self._threads.GetThread(pb.GetThreadRequest(thread_id=thread_id))
        return shapes.reply(shapes.thread(answer.thread))
