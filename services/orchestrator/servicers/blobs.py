"""BlobService."""

from collections.abc import AsyncIterator
from typing import Any

from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from bulkhead.orchestrator.v1 import blobs_pb2_grpc as rpc

from services.common.errors import InvalidInput
from services.common.rpc.context import principal
from services.orchestrator.blobs.keeping import BlobKeeping, received
from services.orchestrator.blobs.ports import BlobRecord
from services.orchestrator.blobs.records import KeptBlob

READ, WRITE = "blobs:read", "blobs:write"
CHUNK_BYTES = 1024 * 1024


def blob_message(record: BlobRecord) -> pb.Blob:
    """A blob as it travels."""
    message = pb.Blob(
        blob_id=record.blob_id, mime_type=record.mime_type, size=record.size, sha256=record.sha256, name=record.name,
        thread_id=record.thread_id,
    )  # fmt: skip
    message.created_at.FromMilliseconds(record.created_ms)
    if record.expires_ms:
        message.expires_at.FromMilliseconds(record.expires_ms)
    return message


class BlobServicer(rpc.BlobServiceServicer):
    """Blobs of the caller's. Scopes blobs:read and blobs:write; a link is proof enough of itself."""

    def __init__(self, keeping: BlobKeeping) -> None:
        self._keeping = keeping

    async def PutBlob(self, request_iterator, context):
        """Keeps a content."""
        caller = principal()
        caller.require(WRITE)
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("item") != "start":
            raise InvalidInput.field("start", "must be the first message")
        start = first.start
        await self._keeping.check(caller, start.mime_type, start.name, start.thread_id, start.idempotency_key)
        async with received(_chunks(request_iterator), self._keeping.coming) as content:
            found = await self._keeping.put(caller, content, start.mime_type, start.name, start.thread_id, start.idempotency_key)
        return pb.PutBlobResponse(blob=blob_message(found))

    async def GetBlob(self, request, context):
        """One blob."""
        caller = principal()
        caller.require(READ)
        return pb.GetBlobResponse(blob=blob_message(await self._keeping.get(caller, request.blob_id)))

    async def ReadBlob(self, request, context):
        """The content of a blob."""
        caller = principal()
        caller.require(READ)
        async for item in self._content(await self._keeping.open(caller, request.blob_id)):
            yield pb.ReadBlobResponse(**item)

    async def DeleteBlob(self, request, context):
        """Removes a blob. Done twice it is the same, so the key needs no record."""
        caller = principal()
        caller.require(WRITE)
        await self._keeping.delete(caller, request.blob_id, request.idempotency_key)
        return pb.DeleteBlobResponse()

    async def SignBlob(self, request, context):
        """Makes a link."""
        caller = principal()
        caller.require(READ)
        lifetime = request.lifetime.ToTimedelta() if request.HasField("lifetime") else None
        token, expires_ms = await self._keeping.sign(caller, request.blob_id, lifetime)
        answer = pb.SignBlobResponse(token=token)
        answer.expires_at.FromMilliseconds(expires_ms)
        return answer

    async def ReadSignedBlob(self, request, context):
        """The content that a link leads to."""
        async for item in self._content(await self._keeping.open_link(request.token)):
            yield pb.ReadSignedBlobResponse(**item)

    async def _content(self, found: KeptBlob) -> AsyncIterator[dict[str, Any]]:
        with self._keeping.leaving.of(found.size):
            content = await self._keeping.content(found)
            yield {"blob": blob_message(found.told())}
            for at in range(0, len(content), CHUNK_BYTES):
                yield {"chunk": content[at : at + CHUNK_BYTES]}


async def _chunks(requests: AsyncIterator[pb.PutBlobRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("item") != "chunk":
            raise InvalidInput.field("chunk", "must be all that follows the first message")
        yield request.chunk
