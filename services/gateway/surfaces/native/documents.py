"""Documents: ingest, list, delete, search."""

import re

from bulkhead.memory.v1 import memory_pb2 as pb
from fastapi import APIRouter, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import InvalidInput
from services.gateway.edge.failures import invalid
from services.gateway.edge.route import TEXT_TYPES, PreparedRequest, idempotency_key, needs
from services.gateway.refusals import BodyTooLarge
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import MAX_TEXT_BYTES, After, DocumentCreate, DocumentIdPath, DocumentSearch, Limit
from services.gateway.surfaces.native.outputs import DocumentOut, DocumentPage, PassageList
from services.gateway.surfaces.native.routing import answers, native_router
from services.gateway.surfaces.wiring import Wiring

# A text of the largest size whose characters are all escaped takes three times its bytes in JSON.
BODY_LIMIT_BYTES = 3 * MAX_TEXT_BYTES + 64 * 1024
MAX_TITLE_CHARS = 512
# Each part ends where the next can begin, so that no text makes it try again: it runs on the event loop over megabytes.
_HEADING = re.compile(r"^#{1,6}[ \t]+(\S.*)", re.M)
_TEXT = {"schema": {"type": "string", "minLength": 1}}
_INGEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/DocumentCreate"}},
            "text/markdown": _TEXT,
            "text/plain": _TEXT,
        },
    }
}


class Documents:
    """/v1/documents"""

    def __init__(self, wiring: Wiring) -> None:
        self._documents = wiring.backends.documents

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("documents")
        stored = {**answers(DocumentOut, 201, "Stored."), **answers(DocumentOut, 200, "The same content was there already.")}
        router.add_api_route(
            "/v1/documents", self.ingest, methods=["POST"], status_code=201, responses=stored, openapi_extra=_INGEST_BODY
        )  # fmt: skip
        router.add_api_route("/v1/documents", self.list, methods=["GET"], responses=answers(DocumentPage))
        router.add_api_route("/v1/documents/search", self.search, methods=["POST"], responses=answers(PassageList))
        router.add_api_route(
            "/v1/documents/{document_id}", self.delete, methods=["DELETE"], status_code=204, responses=answers(None, 204, "Deleted.")
        )
        return router

    @needs("documents:write", body="json_or_text", body_limit=BODY_LIMIT_BYTES, model=DocumentCreate)
    async def ingest(
        self,
        request: Request,
        title: str = Query("", max_length=512, description="With a text body; absent: its first heading."),
        document_id: str = Query("", max_length=128, description="With a text body."),
    ) -> Response:
        """Stores a document: as JSON, or as the bare text with `Content-Type: text/markdown` or `text/plain`."""
        body = _document(request, title, document_id)
        if len(body.text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
            raise BodyTooLarge(f"the text is larger than {MAX_TEXT_BYTES} bytes", metadata={"limit": str(MAX_TEXT_BYTES)})
        answer = await self._documents.IngestDocument(
            pb.IngestDocumentRequest(
                document_id=body.document_id or "",
                title=body.title,
                content_type=body.content_type,
                text=body.text,
                idempotency_key=idempotency_key(request),
            )
        )
        location = shapes.location("/v1/documents", answer.document.document_id)
        return shapes.reply(shapes.document(answer.document), 201 if answer.changed else 200, location)

    @needs("documents:read")
    async def list(self, request: Request, limit: Limit = 100, after: After = "") -> Response:
        """Documents of the tenant, newest first."""
        answer = await self._documents.ListDocuments(pb.ListDocumentsRequest(page_size=limit, page_token=after))
        return shapes.page(request, map(shapes.document, answer.documents), answer.next_page_token)

    @needs("documents:read", body="json")
    async def search(self, request: Request, body: DocumentSearch) -> Response:
        """Passages by meaning and by keyword."""
        answer = await self._documents.SearchDocuments(
            pb.SearchDocumentsRequest(query=body.query, page_size=body.limit, document_ids=body.document_ids)
        )
        found = {"data": [shapes.passage(p) for p in answer.passages], "warnings": [shapes.warning(w) for w in answer.warnings]}
        return shapes.reply(found)

    @needs("documents:write")
    async def delete(self, request: Request, document_id: DocumentIdPath) -> Response:
        """Deletes a document with all that was made from it."""
        await self._documents.DeleteDocument(pb.DeleteDocumentRequest(document_id=document_id, idempotency_key=idempotency_key(request)))
        return Response(status_code=204)


def first_heading(text: str) -> str:
    """The first Markdown heading as a title: one line of printable characters, without closing hashes; empty when there is none."""
    found = _HEADING.search(text)
    if found is None:
        return ""
    line = found.group(1)[: 2 * MAX_TITLE_CHARS].rstrip().rstrip("#")
    return " ".join("".join(c if c.isprintable() else " " for c in line).split())[:MAX_TITLE_CHARS]


def _document(request: PreparedRequest, title: str, document_id: str) -> DocumentCreate:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in TEXT_TYPES:
        try:
            text = request.content.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidInput("the body is not valid UTF-8", reason="INVALID_ENCODING") from None
        title = title or first_heading(text) or document_id
        if not title:
            raise InvalidInput.field("title", "is needed: the text has no heading")
        values = {"title": title, "text": text, "content_type": kind, "document_id": document_id or None}
    else:
        if title or document_id:
            raise InvalidInput.field("title" if title else "document_id", "belongs into the JSON body")
        values = request.parsed
    try:
        return DocumentCreate.model_validate(values)
    except ValidationError as error:
        raise invalid([{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_input=False, include_url=False)]) from None
