"""Threads."""

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.edge.exchange import exchange
from services.gateway.edge.keyed import named_by
from services.gateway.edge.route import idempotency_key, needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import After, IdPath, Limit, ThreadCreate
from services.gateway.surfaces.native.outputs import ThreadOut, ThreadPage
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.native.threads_models import DeletionOut, ForkOut, RollbackOut, ThreadFork, ThreadRollback, checkpoint
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
        one = "/v1/threads/{thread_id}"
        router.add_api_route(one, self.get, methods=["GET"], responses=answers(ThreadOut))
        gone = {**answers(None, 204, "Deleted."), **answers(DeletionOut, 202, "Seen by nobody any more; the rest follows.")}
        router.add_api_route(one, self.delete, methods=["DELETE"], status_code=204, responses=gone)
        forked = answers(ForkOut, 201, "Made; Location leads to the new thread.")
        router.add_api_route(f"{one}/fork", self.fork, methods=["POST"], status_code=201, responses=forked)
        router.add_api_route(f"{one}/rollback", self.rollback, methods=["POST"], responses=answers(RollbackOut))
        return router

    @needs("threads:write", body="json", keyed=True)
    async def create(self, request: Request, body: ThreadCreate | None = None) -> Response:
        """Makes a thread. An id that is already there answers that thread."""
        body, key = body or ThreadCreate(), idempotency_key(request)
        # Of the same key the same id: whoever asks again, because nobody could say whether there is a thread, makes no other one.
        thread_id = body.thread_id or (named_by("th", key) if key else "")
        asked = pb.CreateThreadRequest(thread_id=thread_id, metadata=body.metadata, idempotency_key=key)
        if body.ttl_ms is not None:
            asked.ttl.FromMilliseconds(body.ttl_ms)
        answer = await self._threads.CreateThread(asked)
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

    @needs("threads:write", body="json")
    async def fork(self, request: Request, thread_id: IdPath, body: ThreadFork | None = None) -> Response:
        """Makes a thread that begins as this one was at a checkpoint; without one it is a copy. The two share nothing afterwards."""
        exchange(request).about(thread_id=thread_id)
        body = body or ThreadFork()
        asked = pb.ForkThreadRequest(
            thread_id=thread_id, at=checkpoint(body.at), new_thread_id=body.thread_id or "", metadata=body.metadata,
            continue_run=body.continue_run, idempotency_key=idempotency_key(request),
        )  # fmt: skip
        if body.ttl_ms is not None:
            asked.ttl.FromMilliseconds(body.ttl_ms)
        answer = await self._threads.ForkThread(asked)
        headers = shapes.run_headers(answer.run) if answer.HasField("run") else {}
        headers |= shapes.location("/v1/threads", answer.thread.thread_id)
        run = shapes.run(answer.run) if answer.HasField("run") else None
        return shapes.reply({"thread": shapes.thread(answer.thread), "run": run}, 201, headers)

    # The orchestrator takes another checkpoint under the same key for another rollback.
    @needs("threads:write", body="json", keyed=True)
    async def rollback(self, request: Request, thread_id: IdPath, body: ThreadRollback) -> Response:
        """Goes back to a checkpoint: what came after it stays in the log and is no longer part of the conversation.

        Runs that have not ended are cancelled first.
        """
        exchange(request).about(thread_id=thread_id)
        asked = pb.RollbackThreadRequest(thread_id=thread_id, to=checkpoint(body.to), idempotency_key=idempotency_key(request))
        answer = await self._threads.RollbackThread(asked)
        return shapes.reply({"thread": shapes.thread(answer.thread), "seq": answer.seq})

    @needs("threads:write", keyed=True)
    async def delete(self, request: Request, thread_id: IdPath) -> Response:
        """Deletes a thread with its log, its runs and its session. Runs that have not ended are cancelled first. Again is harmless."""
        exchange(request).about(thread_id=thread_id)
        asked = pb.DeleteThreadRequest(thread_id=thread_id, idempotency_key=idempotency_key(request))
        if (await self._threads.DeleteThread(asked)).completed:
            return Response(status_code=204)
        return shapes.reply({"thread_id": thread_id, "completed": False}, 202)
