"""/v1/files: uploads that are streamed to the disk, and what batches leave behind, in the shape of OpenAI's API."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.common.identity import Principal
from services.llm_gateway.batches.files import MOST_LISTED, Files, FileTerms
from services.llm_gateway.batches.ports import ContentTooLarge
from services.llm_gateway.batches.records import FileRecord
from services.llm_gateway.batches.requests import kept_s
from services.llm_gateway.model_port.errors import OPENAI, ErrorForm, Refused
from services.llm_gateway.model_port.exchange import MAX_DRAINED_BYTES, Exchange
from services.llm_gateway.model_port.multipart import Multipart, Part, boundary_of, malformed
from services.llm_gateway.model_port.routing import Handler, Route

PATH = "/v1/files"
MAX_FIELD_BYTES = 4_096
FORM = ErrorForm(OPENAI.of, OPENAI.refused, OPENAI.internal, OPENAI.event, {"STORAGE_FULL": 507})


class FilesSurface:
    """Files. Without `files` every route says that they are not configured."""

    def __init__(self, files: Files | None) -> None:
        self._files = files

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{file}}"
        routes: list[tuple[str, str, Handler]] = [
            ("POST", PATH, self.create), ("GET", PATH, self.list), ("GET", one, self.get), ("DELETE", one, self.delete),
            ("GET", f"{one}/content", self.content),
        ]  # fmt: skip
        return [Route(method, path, handle if self._files else not_configured, errors=FORM) for method, path, handle in routes]

    async def create(self, exchange: Exchange) -> None:
        """Stores an upload. Fields that come behind the file are read too."""
        upload = _Upload(exchange, Multipart(boundary_of(exchange.headers.get("content-type", ""))))
        try:
            record = await upload.stored(self._known, principal_of(exchange))
        except ContentTooLarge:
            await upload.drain()
            most = self._known.rules.most_bytes
            raise Refused(413, f"a file has at most {most} bytes", code="file_too_large", param="file") from None
        except (Refused, InvalidInput):
            await upload.drain()
            raise
        await exchange.answer(200, orjson.dumps(shown(record)))

    async def list(self, exchange: Exchange) -> None:
        """A page of files."""
        order = exchange.query("order") or "desc"
        if order not in ("asc", "desc"):
            raise InvalidInput.field("order", "must be asc or desc")
        page = await self._known.list(
            principal_of(exchange).tenant,
            after=exchange.query("after") or "",
            limit=limit_of(exchange, MOST_LISTED, MOST_LISTED),
            purpose=exchange.query("purpose") or "",
            ascending=order == "asc",
        )
        await exchange.answer(200, listed([shown(record) for record in page.items], more=page.more))

    async def get(self, exchange: Exchange) -> None:
        """One file."""
        record = await self._known.get(principal_of(exchange).tenant, exchange.parameters["file"])
        await exchange.answer(200, orjson.dumps(shown(record)))

    async def content(self, exchange: Exchange) -> None:
        """The content of a file."""
        record, pieces = await self._known.content(principal_of(exchange).tenant, exchange.parameters["file"])
        # The first piece is read before the headers go out: a file that was just removed is a 404.
        first = await anext(pieces, b"")
        await exchange.begin_body(record.size_bytes, b"application/octet-stream", [(b"x-content-type-options", b"nosniff")])
        await exchange.write(first)
        async for piece in pieces:
            await exchange.write(piece)
        await exchange.end_stream()

    async def delete(self, exchange: Exchange) -> None:
        """Removes a file."""
        file_id = exchange.parameters["file"]
        await self._known.delete(principal_of(exchange).tenant, file_id)
        await exchange.answer(200, orjson.dumps({"id": file_id, "object": "file", "deleted": True}))

    @property
    def _known(self) -> Files:
        assert self._files is not None
        return self._files


class _Upload:
    """One form on its way: its fields, and its file as a stream."""

    def __init__(self, exchange: Exchange, form: Multipart) -> None:
        self._pieces = exchange.pieces()
        self._form = form
        self._events = self._read()
        self._fields: dict[str, str] = {}
        self._bytes = 0

    async def stored(self, files: Files, principal: Principal) -> FileRecord:
        """Stores the file of the form. Raises Refused, InvalidInput, ContentTooLarge."""
        file = await self._until_file()
        if file is None:
            raise InvalidInput.field("file", "is required")
        return await files.create(principal, file.filename or "upload", self._content(), self._terms)

    async def drain(self) -> None:
        """Reads on for a while, so that the client sees the refusal and no reset."""
        async for piece in self._pieces:
            self._bytes += len(piece)
            if self._bytes > MAX_DRAINED_BYTES:
                return

    def _terms(self) -> FileTerms:
        """What the fields say; those behind the file have been read by the time that this is asked."""
        if "purpose" not in self._fields:
            raise InvalidInput.field("purpose", "is required")
        return FileTerms(self._fields["purpose"], self._kept())

    def _kept(self) -> int:
        anchor, seconds = self._fields.get("expires_after[anchor]"), self._fields.get("expires_after[seconds]")
        if anchor is None and seconds is None:
            return 0
        number = int(seconds) if seconds is not None and seconds.isascii() and seconds.isdigit() and len(seconds) < 10 else None
        return kept_s({"anchor": anchor, "seconds": number}, "expires_after")

    async def _until_file(self) -> Part | None:
        """Reads fields up to the beginning of the file."""
        name = ""
        async for event in self._events:
            if isinstance(event, Part):
                if event.name == "file":
                    return event
                name = event.name
                self._fields[name] = ""
            else:
                self._add(name, event)
        return None

    async def _content(self) -> AsyncGenerator[bytes, None]:
        """The pieces of the file; then the fields behind it are read."""
        async for event in self._events:
            if isinstance(event, Part):
                name = event.name
                self._fields[name] = ""
                async for behind in self._events:
                    if isinstance(behind, Part):
                        name = behind.name
                        self._fields[name] = ""
                    else:
                        self._add(name, behind)
                return
            yield event

    async def _read(self) -> AsyncIterator[Part | bytes]:
        async for piece in self._pieces:
            for event in self._form.feed(piece):
                yield event
        if not self._form.done:
            raise malformed()

    def _add(self, name: str, piece: bytes) -> None:
        value = self._fields[name] + piece.decode("utf-8", "replace")
        if len(value) > MAX_FIELD_BYTES:
            raise Refused(400, f"the field {name[:100]} is too long", code="invalid_form", param=name[:100])
        self._fields[name] = value


def shown(record: FileRecord) -> dict[str, Any]:
    """A file as OpenAI's API shows it."""
    return {
        "id": record.id, "object": "file", "bytes": record.size_bytes, "created_at": record.created_ms // 1000, "filename": record.name,
        "purpose": record.purpose, "status": "processed", "status_details": None,
        "expires_at": record.expires_ms // 1000 if record.expires_ms else None,
    }  # fmt: skip


def listed(items: list[dict[str, Any]], *, more: bool) -> bytes:
    """A page of a list."""
    ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
    return orjson.dumps({"object": "list", "data": items, **ends, "has_more": more})


def limit_of(exchange: Exchange, otherwise: int, most: int) -> int:
    """The page size that a request asks for. Raises InvalidInput."""
    given = exchange.query("limit")
    if given is None:
        return otherwise
    if not (given.isascii() and given.isdigit() and len(given) < 8 and 1 <= int(given) <= most):
        raise InvalidInput.field("limit", f"must be a whole number from 1 to {most}")
    return int(given)


def principal_of(exchange: Exchange) -> Principal:
    """Who asks."""
    assert exchange.principal is not None
    return exchange.principal


async def not_configured(exchange: Exchange) -> None:
    """What every route answers where no folder for files is set."""
    raise Refused(501, "this gateway keeps no files: set BULKHEAD_FILES_DIR for files and batches", code="files_not_configured")
