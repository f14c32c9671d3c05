"""/v1/conversations: a thread as a conversation."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import InvalidInput, NotFound
from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import GuardedRoute, PreparedRequest, idempotency_key, needs
from services.gateway.surfaces.openai.answering import as_json
from services.gateway.surfaces.openai.fields import labels, unsupported
from services.gateway.surfaces.responses import ids, reading, schema
from services.gateway.surfaces.responses.paging import After, Include, Limit, Order, bad_cursor, page, refuse_include
from services.gateway.surfaces.wiring import Wiring

_ONLY_RESPONSES = "what is said in a conversation comes with responses"
_LOG_GROWS = "what was said stays in the log of a conversation"


class Conversations:
    """/v1/conversations"""

    def __init__(self, wiring: Wiring) -> None:
        self._threads, self._runs = wiring.backends.threads, wiring.backends.runs
        self._follower = wiring.follower

    def router(self) -> APIRouter:
        """Routes."""
        router = APIRouter(route_class=GuardedRoute, tags=["openai"], responses=schema.ERRORS)
        one, answered, body = "/v1/conversations/{conversation_id}", schema.CONVERSATION, schema.CONVERSATION_BODY
        router.add_api_route("/v1/conversations", self.create, methods=["POST"], responses=answered, openapi_extra=body)
        router.add_api_route(one, self.get, methods=["GET"], responses=answered)
        router.add_api_route(one, self.update, methods=["POST"], responses=answered, openapi_extra=body)
        router.add_api_route(one, self.delete, methods=["DELETE"], responses=schema.CONVERSATION_DELETED)
        router.add_api_route(f"{one}/items", self.items, methods=["GET"], responses=schema.ITEMS)
        router.add_api_route(f"{one}/items", self.add_items, methods=["POST"], responses=schema.ITEMS, openapi_extra=schema.ITEMS_BODY)
        router.add_api_route(f"{one}/items/{{item_id}}", self.item, methods=["GET"], responses=schema.ITEM)
        router.add_api_route(f"{one}/items/{{item_id}}", self.delete_item, methods=["DELETE"], responses=answered)
        return router

    @needs("threads:write", body="json", keyed=True)
    async def create(self, request: Request) -> Response:
        """Makes a conversation. It begins empty: `items` come with the first response."""
        body = _body(request)
        _only(body, "items", "metadata")
        if body.get("items") not in (None, []):
            raise unsupported("items", _ONLY_RESPONSES)
        key = idempotency_key(request)
        asked = pb.CreateThreadRequest(thread_id=f"th_{ids.new_id(key, 'conversation')}", metadata=labels(body), idempotency_key=key)
        thread = (await self._threads.CreateThread(asked)).thread
        exchange(request).about(thread_id=thread.thread_id)
        return as_json(_conversation(thread))

    @needs("threads:read")
    async def get(self, request: Request, conversation_id: str) -> Response:
        """A conversation."""
        return as_json(_conversation(await self._thread(request, conversation_id)))

    @needs("threads:read", "threads:write", body="json")
    async def update(self, request: Request, conversation_id: str) -> Response:
        """Labels of a conversation stay as it was made with them: others are refused, the same answer it."""
        thread = await self._thread(request, conversation_id)
        body = _body(request)
        _only(body, "metadata")
        if "metadata" not in body:
            raise InvalidInput.field("metadata", "is required")
        if labels(body) != dict(thread.metadata):
            raise unsupported("metadata", "of a conversation is given when it is made, and stays")
        return as_json(_conversation(thread))

    @needs("threads:read", "threads:write", keyed=True)
    async def delete(self, request: Request, conversation_id: str) -> Response:
        """Deletes a conversation with all of its responses."""
        deleted = {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
        if exchange(request).replayed:
            return as_json(deleted)
        thread = await self._thread(request, conversation_id)
        await self._threads.DeleteThread(pb.DeleteThreadRequest(thread_id=thread.thread_id, idempotency_key=idempotency_key(request)))
        return as_json(deleted)

    @needs("runs:read")
    async def items(
        self,
        request: Request,
        conversation_id: str,
        after: After = "",
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> Response:
        """What was said in a conversation: what its responses were asked, and what they answered."""
        refuse_include(include)
        thread = await self._thread(request, conversation_id)
        found: list[dict[str, Any]] = []
        behind = not after
        async with aclosing(self._items(thread.thread_id, oldest_first=order == "asc", since=_run_of(after) if after else "")) as items:
            async for item in items:
                if behind:
                    found.append(item)
                    if len(found) > limit:
                        break
                behind = behind or item["id"] == after
        if not behind:
            raise bad_cursor()
        return as_json(page(found[:limit], has_more=len(found) > limit))

    @needs("threads:read", "threads:write", body="json")
    async def add_items(self, request: Request, conversation_id: str) -> Response:
        """Refused: what is said in a conversation comes with responses."""
        await self._thread(request, conversation_id)
        raise unsupported("items", _ONLY_RESPONSES)

    @needs("runs:read")
    async def item(self, request: Request, conversation_id: str, item_id: str, include: Include = None) -> Response:
        """One item."""
        refuse_include(include)
        thread, run_id = await self._thread(request, conversation_id), ids.run_of_item(item_id)
        if run_id:
            async with aclosing(self._items(thread.thread_id, oldest_first=False, since=run_id)) as items:
                async for item in items:
                    if item["id"] == item_id:
                        return as_json(item)
                    if ids.run_of_item(item["id"]) != run_id:
                        break
        raise ids.not_found("item")

    @needs("threads:read", "threads:write")
    async def delete_item(self, request: Request, conversation_id: str, item_id: str) -> Response:
        """Refused: what was said stays in the log of a conversation."""
        await self._thread(request, conversation_id)
        raise unsupported("item_id", _LOG_GROWS)

    async def _thread(self, request: Request, conversation_id: str) -> pb.Thread:
        try:
            thread = (await self._threads.GetThread(pb.GetThreadRequest(thread_id=ids.thread_id_of(conversation_id)))).thread
        except NotFound:
            raise ids.not_found("conversation") from None
        exchange(request).about(thread_id=thread.thread_id)
        return thread

    async def _items(self, thread_id: str, *, oldest_first: bool, since: str) -> AsyncGenerator[dict[str, Any], None]:
        """Items of the runs from `since` on; '' for all. The logs of those before are not read."""
        async with aclosing(self._members(thread_id, oldest_first=oldest_first, since=since)) as runs:
            async for run in runs:
                if run.rolled_back_seq:
                    continue
                said = reading.items_of(await reading.of_thread(self._follower, run, thread_id))
                for item in said if oldest_first else reversed(said):
                    yield item

    async def _members(self, thread_id: str, *, oldest_first: bool, since: str) -> AsyncGenerator[pb.Run, None]:
        """The runs of a thread from `since` on, if it is there; '' for all."""
        async with aclosing(reading.newest_first(self._runs, thread_id)) as runs:
            if not oldest_first:
                reached = not since
                async for run in runs:
                    reached = reached or run.run_id == since
                    if reached:
                        yield run
                return
            # The oldest one is known when all behind it are. There may be very many, so their answers are not kept.
            behind: list[pb.Run] = []
            reached = not since
            async for run in runs:
                behind.append(pb.Run(run_id=run.run_id, first_seq=run.first_seq, rolled_back_seq=run.rolled_back_seq))
                if run.run_id == since:
                    reached = True
                    break
        for run in reversed(behind if reached else []):
            yield run


def _run_of(item_id: str) -> str:
    run_id = ids.run_of_item(item_id)
    if not run_id:
        raise bad_cursor()
    return run_id


def _body(request: Request) -> dict[str, Any]:
    assert isinstance(request, PreparedRequest)
    body = request.parsed if request.content else {}
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


def _only(body: dict[str, Any], *known: str) -> None:
    for name in body:
        if name not in known:
            raise unsupported(str(name)[:64])


def _conversation(thread: pb.Thread) -> dict[str, Any]:
    return {
        "id": ids.conversation_id(thread.thread_id), "object": "conversation", "created_at": thread.created_at.seconds,
        "metadata": dict(thread.metadata),
    }  # fmt: skip
