"""Blobs: images, sounds and files, sent and fetched as they come; and links by which anybody has one for a while."""

import hashlib
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import BulkheadError, NotFound, UpstreamFailed
from services.gateway.edge.exchange import exchange
from services.gateway.edge.route import Doorkeeper, idempotency_key, needs
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.blobs_headers import file_name
from services.gateway.surfaces.native.blobs_models import ENDINGS, MOST_NAME_CHARS, BlobOut, LinkCreate, LinkOut, Uploaded, blob
from services.gateway.surfaces.native.blobs_serving import answered
from services.gateway.surfaces.native.blobs_uploading import FORM, opened, put_requests
from services.gateway.surfaces.native.models import ID_PATTERN, IdPath
from services.gateway.surfaces.native.routing import answers, native_router, problem_answer, visitors_router
from services.gateway.surfaces.wiring import Wiring

READ, WRITE = "blobs:read", "blobs:write"
LINKS = "/v1/blobs/links"
# What the orchestrator has beside the client's time, to keep what came last.
KEEPING_S = 30.0
# A copy is asked about anew each time: it may be deleted, or the key be ended.
_OWN = "private, no-cache"
# Nobody learns the end of a link but who made it, so a copy that came by one may be used past it for no longer than this.
_BY_LINK = "private, max-age=60"
# Whoever has such an answer has the content.
_SECRET = {"cache-control": "no-store"}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            **{kind: {"schema": {}} if kind == "application/json" else _BYTES for kind in ENDINGS},
            FORM: {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}, "required": ["file"]}},
        },
    }
}
_CONTENT: dict[int | str, dict[str, Any]] = {
    **answers(None, 200, "The content.", content={"*/*": _BYTES}),
    **answers(None, 206, "The one range of bytes that was asked for.", content={"*/*": _BYTES}),
    304: {"description": "The client has it: If-None-Match names its ETag."},
    416: problem_answer("The content has no such range, or several were asked for."),
}
FileName = Annotated[str, Query(max_length=MOST_NAME_CHARS, description="Of the file, for display. Absent: that of the part.")]
OwnThread = Annotated[str | None, Query(pattern=ID_PATTERN, description="A thread that it is deleted with. Absent: of none.")]
_LINK_TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,1024}")


class Blobs:
    """/v1/blobs"""

    def __init__(self, wiring: Wiring) -> None:
        self._blobs = wiring.backends.blobs
        self._streams = wiring.streams
        self._settings = wiring.settings

    def router(self) -> APIRouter:
        """Routes that ask for a key."""
        router = native_router("blobs")
        one = "/v1/blobs/{blob_id}"
        made = answers(BlobOut, 201, "Kept; it never changes.") | {408: problem_answer("The content did not come in time.")}
        router.add_api_route("/v1/blobs", self.upload, methods=["POST"], status_code=201, responses=made, openapi_extra=_UPLOAD)
        router.add_api_route(one, self.get, methods=["GET"], responses=answers(BlobOut))
        router.add_api_route(one, self.delete, methods=["DELETE"], status_code=204, responses=answers(None, 204, "Deleted."))
        router.add_api_route(f"{one}/content", self.content, methods=["GET"], responses=_CONTENT, response_class=Response)
        router.add_api_route(f"{one}/content", self.content, methods=["HEAD"], include_in_schema=False)
        linked = answers(LinkOut, 201, "Made; who has the URL has the content.")
        router.add_api_route(f"{one}/links", self.link, methods=["POST"], status_code=201, responses=linked)
        return router

    def open_router(self) -> APIRouter:
        """The route of links, whose path is all that is asked for."""
        router = visitors_router("blobs")
        router.add_api_route(f"{LINKS}/{{token}}", self.linked, methods=["GET"], responses=_CONTENT, response_class=Response)
        router.add_api_route(f"{LINKS}/{{token}}", self.linked, methods=["HEAD"], include_in_schema=False)
        return router

    @needs(WRITE, model=Uploaded)
    async def upload(
        self,
        request: Request,
        name: FileName = "",
        thread_id: OwnThread = None,
    ) -> Response:
        """Keeps a content: the bytes with their Content-Type, or a form with the one part `file`. Its first bytes must be what it says."""
        name = file_name(name, "name")
        upload = await opened(request, self._settings)
        async with aclosing(put_requests(upload, name, thread_id or "", idempotency_key(request))) as sent:
            answer = await self._blobs.PutBlob(sent, timeout=self._settings.upload_timeout_s + KEEPING_S)
        return shapes.reply(blob(answer.blob), 201, shapes.location("/v1/blobs", answer.blob.blob_id))

    @needs(READ)
    async def get(self, request: Request, blob_id: IdPath) -> Response:
        """What a blob is, without its content."""
        return shapes.reply(blob((await self._blobs.GetBlob(pb.GetBlobRequest(blob_id=blob_id))).blob))

    @needs(READ)
    async def content(self, request: Request, blob_id: IdPath) -> Response:
        """The content. Images and sounds may be shown where they are, everything else is for saving; a single range is served."""
        source = self._blobs.ReadBlob(pb.ReadBlobRequest(blob_id=blob_id), timeout=self._settings.stream_max_age_s)
        return await answered(request, await _first(source), source, self._streams, _OWN)

    @needs(WRITE, keyed=True)
    async def delete(self, request: Request, blob_id: IdPath) -> Response:
        """Removes a blob; links to it lead nowhere from then on."""
        await self._blobs.DeleteBlob(pb.DeleteBlobRequest(blob_id=blob_id, idempotency_key=idempotency_key(request)))
        return Response(status_code=204)

    @needs(READ, body="json", keyed=True)
    async def link(self, request: Request, blob_id: IdPath, body: LinkCreate | None = None) -> Response:
        """Makes a URL by which anybody has the content, without a key, for an hour or as long as is said."""
        asked = pb.SignBlobRequest(blob_id=blob_id)
        if body is not None and body.lifetime_s is not None:
            asked.lifetime.FromSeconds(body.lifetime_s)
        answer = await self._blobs.SignBlob(asked)
        url = f"{LINKS}/{answer.token}"
        return shapes.reply({"url": url, "expires_at": shapes.moment(answer, "expires_at")}, 201, {**_SECRET, "location": url})

    @needs(visitors=True, open_query=True)
    async def linked(self, request: Request, token: Annotated[str, Path()]) -> Response:
        """The content that a link leads to. A link that does not hold, never did or leads to what is deleted is not there."""
        if _LINK_TOKEN.fullmatch(token) is None:
            raise NotFound("there is no such link, or it has ended", reason="LINK_NOT_FOUND")
        source = self._blobs.ReadSignedBlob(pb.ReadSignedBlobRequest(token=token), timeout=self._settings.stream_max_age_s)
        found = await _first(source)
        keeper: Doorkeeper = request.app.state.doorkeeper
        try:
            await keeper.admission.visit(exchange(request), hashlib.sha256(found.blob_id.encode()).hexdigest()[:32])
        except BulkheadError:
            await source.aclose()
            raise
        return await answered(request, found, source, self._streams, _BY_LINK)


async def _first(source: AsyncGenerator[Any, None]) -> pb.Blob:
    """What a content is: the first message of its stream. Raises what the stream raises."""
    message = await anext(source, None)
    if message is None or not message.HasField("blob"):
        await source.aclose()
        raise UpstreamFailed("the orchestrator does not say what the content is")
    return message.blob
