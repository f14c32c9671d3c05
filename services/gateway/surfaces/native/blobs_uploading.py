"""Uploads as they come: the bare content, or one part of a multipart/form-data (RFC 7578), never held as a whole."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from starlette.requests import Request

from services.common.errors import InvalidInput
from services.gateway.edge.body import body_pieces
from services.gateway.edge.exchange import exchange
from services.gateway.refusals import BodyTooLarge, UnsupportedMediaType
from services.gateway.settings import Settings
from services.gateway.surfaces.native.blobs_headers import extended, file_name, media_type, parameters
from services.gateway.surfaces.native.blobs_models import ENDINGS

FORM = "multipart/form-data"
PART = "file"
# Larger ones are not sent to the orchestrator in one message.
PIECE_BYTES = 1024 * 1024
MOST_HEAD_BYTES = 8 * 1024
# What a form may have around the content: the head of the part and two lines with the boundary.
AROUND_BYTES = MOST_HEAD_BYTES + 1024
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.A)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)", re.A)
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})
_AS_IT_IS = frozenset({"", "identity", "binary", "8bit", "7bit"})
_END = b"\r\n"
_LAST = b"--" + _END


@dataclass(frozen=True, slots=True)
class Upload:
    """What a request brings: its type, its name, which may be empty, and its content in pieces that are not empty."""

    mime_type: str
    name: str
    pieces: AsyncGenerator[bytes, None]


async def opened(request: Request, settings: Settings) -> Upload:
    """The upload of a request, when the first of its content has come; its pieces are to be closed by the caller.

    Raises UnsupportedMediaType, InvalidInput, BodyTooLarge, BodyTimeout and ClientGone, as its pieces do.
    """
    headers = exchange(request).headers
    if headers.get("content-encoding", "").strip().lower() not in _AS_IT_IS:
        raise UnsupportedMediaType("the content must come as it is, without a Content-Encoding")
    try:
        kind, about = media_type(headers.get("content-type", ""))
    except ValueError as error:
        raise UnsupportedMediaType(f"a Content-Type is needed that says what it is: {error}") from None
    limit = settings.upload_limit_bytes
    most = limit + AROUND_BYTES if kind == FORM else limit
    body = body_pieces(request.receive, headers.get("content-length"), most, settings.body_timeout_s, settings.upload_timeout_s)
    try:
        upload = await _of_form(body, about, limit) if kind == FORM else Upload(_taken(kind, about), "", body)
        first = await anext(upload.pieces, b"")
        if not first:
            raise InvalidInput("there is no content", reason="EMPTY_BODY")
    except BaseException:
        await body.aclose()
        raise
    return Upload(upload.mime_type, upload.name, _behind(first, upload.pieces, body))


async def put_requests(upload: Upload, name: str, thread_id: str, key: str) -> AsyncGenerator[pb.PutBlobRequest, None]:
    """The messages of PutBlob. Raises what the pieces of the upload raise, and closes them."""
    async with aclosing(upload.pieces):
        start = pb.BlobStart(mime_type=upload.mime_type, name=name or upload.name, thread_id=thread_id, idempotency_key=key)
        yield pb.PutBlobRequest(start=start)
        async for piece in upload.pieces:
            for at in range(0, len(piece), PIECE_BYTES):
                yield pb.PutBlobRequest(chunk=piece[at : at + PIECE_BYTES])


async def _behind(first: bytes, pieces: AsyncGenerator[bytes, None], body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(body), aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece


def _taken(kind: str, about: Mapping[str, str]) -> str:
    if kind not in ENDINGS:
        raise UnsupportedMediaType(f"this type is not taken; these are: {', '.join(ENDINGS)}")
    if about.get("charset", "utf-8").lower() not in _CHARSETS:
        raise UnsupportedMediaType("texts must be in UTF-8")
    return kind


async def _of_form(body: AsyncGenerator[bytes, None], about: Mapping[str, str], limit: int) -> Upload:
    boundary = about.get("boundary", "")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise InvalidInput("the Content-Type names no valid boundary", reason="INVALID_FORM")
    form = _Form(body, boundary.encode("ascii"), limit)
    head = await form.head()
    if head.get("content-transfer-encoding", "").lower() not in _AS_IT_IS or head.get("content-encoding", "").lower() not in _AS_IT_IS:
        raise UnsupportedMediaType("the content of the part must come as it is")
    try:
        word, named = parameters(head.get("content-disposition", ""))
        name = extended(named["filename*"]) if "filename*" in named else named.get("filename", "")
    except ValueError:
        raise InvalidInput("the Content-Disposition of the part cannot be read", reason="INVALID_FORM") from None
    if word != "form-data" or named.get("name") != PART:
        raise InvalidInput(f"the form must have one part, whose name is {PART}", reason="INVALID_FORM")
    try:
        kind, of_part = media_type(head.get("content-type", ""))
    except ValueError as error:
        raise UnsupportedMediaType(f"the part needs a Content-Type that says what it is: {error}") from None
    return Upload(_taken(kind, of_part), file_name(name, "filename"), form.content())


class _Form:
    """A form of one part. Strict: nothing stands before its first boundary, between its parts or behind its last one."""

    def __init__(self, body: AsyncGenerator[bytes, None], boundary: bytes, limit: int) -> None:
        self._body = body
        self._line = b"--" + boundary
        self._limit = limit
        self._held = bytearray()

    async def head(self) -> Mapping[str, str]:
        """The headers of the part, their names in lower case."""
        opening = self._line + _END
        while len(self._held) < len(opening):
            await self._more()
        if not self._held.startswith(opening):
            raise _broken("does not begin with its boundary")
        # A part without headers has an empty line at once.
        del self._held[: len(self._line)]
        while (end := self._held.find(_END + _END)) < 0:
            if len(self._held) > MOST_HEAD_BYTES:
                raise _broken("has a head that is too large")
            await self._more()
        if end > MOST_HEAD_BYTES:
            raise _broken("has a head that is too large")
        lines, self._held = bytes(self._held[len(_END) : end]), self._held[end + 2 * len(_END) :]
        found: dict[str, str] = {}
        for line in lines.split(_END) if lines else ():
            try:
                header = _HEADER.fullmatch(line.decode("utf-8"))
            except UnicodeDecodeError:
                header = None
            if header is None or header.group(1).lower() in found:
                raise _broken("has a head that cannot be read")
            found[header.group(1).lower()] = header.group(2).strip()
        return found

    async def content(self) -> AsyncGenerator[bytes, None]:
        """The content of the part, to the end of the form."""
        delimiter, size = _END + self._line, 0
        while (end := self._held.find(delimiter)) < 0:
            # The end of what is here may be the beginning of the boundary.
            if (free := len(self._held) - len(delimiter) + 1) > 0:
                size += free
                self._check(size)
                yield bytes(self._held[:free])
                del self._held[:free]
            await self._more()
        self._check(size + end)
        if end:
            yield bytes(self._held[:end])
        del self._held[: end + len(delimiter)]
        while len(self._held) < 2:
            await self._more()
        if self._held.startswith(_END):
            raise InvalidInput(f"the form must have one part, whose name is {PART}", reason="INVALID_FORM")
        if not self._held.startswith(b"--"):
            raise _broken("has its boundary within its content")
        async for piece in self._body:
            self._held += piece
            if len(self._held) > len(_LAST):
                break
        if bytes(self._held) not in (b"--", _LAST):
            raise _broken("goes on behind its end")

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise BodyTooLarge(f"the content is larger than {self._limit} bytes", metadata={"limit": str(self._limit)})

    async def _more(self) -> None:
        piece = await anext(self._body, b"")
        if not piece:
            raise _broken("ends before its last boundary")
        self._held += piece


def _broken(what: str) -> InvalidInput:
    return InvalidInput(f"the form {what}", reason="INVALID_FORM")
