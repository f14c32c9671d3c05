"""Long-term memories of the calling user."""

from bulkhead.memory.v1 import memory_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import After, IdPath, Limit, MemoryCreate, MemorySearch
from services.gateway.surfaces.native.outputs import MemoryList, MemoryOut, MemoryPage
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring


class Memories:
    """/v1/memories"""

    def __init__(self, wiring: Wiring) -> None:
        self._memories = wiring.backends.memories

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("memories")
        router.add_api_route("/v1/memories", self.add, methods=["POST"], status_code=201, responses=answers(MemoryOut, 201, "Kept."))
        router.add_api_route("/v1/memories", self.list, methods=["GET"], responses=answers(MemoryPage))
        router.add_api_route("/v1/memories/search", self.search, methods=["POST"], responses=answers(MemoryList))
        router.add_api_route("/v1/memories/{memory_id}", self.get, methods=["GET"], responses=answers(MemoryOut))
        router.add_api_route(
            "/v1/memories/{memory_id}", self.delete, methods=["DELETE"], status_code=204, responses=answers(None, 204, "Deleted.")
        )
        return router

    @needs("memories:write", body="json")
    async def add(self, request: Request, body: MemoryCreate) -> Response:
        """Keeps a memory. A near-duplicate answers the memory that is there already."""
        memory = pb.NewMemory(text=body.text, importance=body.importance, kind=body.kind, session_id=body.session_id or "")
        if body.expires_at is not None:
            memory.expires_at.FromDatetime(body.expires_at)
        answer = await self._memories.AddMemories(pb.AddMemoriesRequest(memories=[memory], idempotency_key=idempotency_key(request)))
        kept = answer.memories[0]
        return shapes.reply(shapes.memory(kept), 201, shapes.location("/v1/memories", kept.memory_id))

    @needs("memories:read")
    async def list(self, request: Request, limit: Limit = 100, after: After = "") -> Response:
        """The caller's memories, newest first."""
        answer = await self._memories.ListMemories(pb.ListMemoriesRequest(page_size=limit, page_token=after))
        return shapes.page(request, map(shapes.memory, answer.memories), answer.next_page_token)

    @needs("memories:read", body="json")
    async def search(self, request: Request, body: MemorySearch) -> Response:
        """The caller's memories by meaning and by keyword."""
        answer = await self._memories.SearchMemories(pb.SearchMemoriesRequest(query=body.query, page_size=body.limit))
        found = {"data": [shapes.memory(m) for m in answer.memories], "warnings": [shapes.warning(w) for w in answer.warnings]}
        return shapes.reply(found)

    @needs("memories:read")
    async def get(self, request: Request, memory_id: IdPath) -> Response:
        """One memory."""
        answer = await self._memories.GetMemory(pb.GetMemoryRequest(memory_id=memory_id))
        return shapes.reply(shapes.memory(answer.memory))

    @needs("memories:write")
    async def delete(self, request: Request, memory_id: IdPath) -> Response:
        """Deletes a memory."""
        await self._memories.DeleteMemory(pb.DeleteMemoryRequest(memory_id=memory_id, idempotency_key=idempotency_key(request)))
        return Response(status_code=204)
