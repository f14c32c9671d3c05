"""Contents as answers: as they come, with what keeps a browser from running them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import UpstreamFailed
from services.gateway.edge.exchange import exchange
from services.gateway.streaming import EventStream, OpenStreams
from services.gateway.surfaces.native.blobs_headers import byte_range, disposition, has_tag
from services.gateway.surfaces.native.blobs_models import ANY_TYPE, ENDINGS

# Written to the client at a time: one that takes less than this within the time of a slow reader is closed.
WRITTEN_BYTES = 64 * 1024
# Whatever the bytes are, they run nothing: no script, no form, no window, as of no origin. The edge adds nosniff to each answer.
_CAGE = "sandbox; default-src 'none'"


async def answered(request: Request, blob: pb.Blob, source: AsyncGenerator[Any, None], streams: OpenStreams, cache: str) -> Response:
    """The content of `blob`, whose pieces come from `source`, or the part of it that is asked for; nothing of it for HEAD, and where the
    client has it already. `source` is closed.

    Raises RangeNotSatisfiable.
    """
    asked = exchange(request).headers
    tag = f'"{blob.sha256}"'
    kind = blob.mime_type if blob.mime_type in ENDINGS else ANY_TYPE
    headers = {
        "etag": tag, "cache-control": cache, "accept-ranges": "bytes", "content-security-policy": _CAGE, "referrer-policy": "no-referrer",
        "content-disposition": disposition(blob.name, kind, blob.blob_id),
    }  # fmt: skip
    media = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
    try:
        if has_tag(asked.get("if-none-match", ""), tag):
            await source.aclose()
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            await source.aclose()
            return Response(headers={**headers, "content-length": str(blob.size), "content-type": media})
        part = None
        if "range" in asked and asked.get("if-range", tag).strip() == tag:
            part = byte_range(asked["range"], blob.size)
    except BaseException:
        await source.aclose()
        raise
    first, last = part or (0, blob.size - 1)
    headers["content-length"] = str(last - first + 1)
    if part is not None:
        headers["content-range"] = f"bytes {first}-{last}/{blob.size}"
    # Its headers wait for the first piece, so that a store that is away has a status of its own.
    return EventStream(
        _between(source, first, last), streams, headers=headers, media_type=media, status_code=200 if part is None else 206,
        resumable=False, proven=True, filler=b"",
    )  # fmt: skip


async def _between(source: AsyncGenerator[Any, None], first: int, last: int) -> AsyncGenerator[bytes, None]:
    """The bytes from `first` to `last` of a content that comes from its beginning."""
    at = 0
    async with aclosing(source):
        if first > last:
            return
        async for message in source:
            piece: bytes = message.chunk
            start, end = max(first - at, 0), min(last + 1 - at, len(piece))
            for begin in range(start, end, WRITTEN_BYTES):
                yield piece[begin : min(begin + WRITTEN_BYTES, end)]
            at += len(piece)
            if at > last:
                return
        raise UpstreamFailed("the content ends before its time")
