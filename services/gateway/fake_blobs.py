"""The blobs of the fake orchestrator: in memory, of the caller alone, and as much of their rules as the gateway passes on."""

import asyncio
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Any

from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from bulkhead.orchestrator.v1 import blobs_pb2_grpc as rpc

from services.common.errors import FieldViolation, IdempotencyMismatch, InvalidInput, NotFound, Overloaded
from services.common.rpc.context import principal

CHUNK_BYTES = 1024 * 1024
HOUR_S = 3_600


@dataclass
class FakeBlob:
    """A blob and whose it is; `secret` proves its links."""

    owner: tuple[str, str]
    blob: pb.Blob
    content: bytes
    secret: bytes


class FakeBlobs(rpc.BlobServiceServicer):
    """`away` is a store that cannot be used: contents are neither written nor read. `cut_after` breaks each content after that many
    pieces. While `taking` is not set, uploads are not read. `taken` is how many bytes of them have come so far, `putting` how many are
    coming, `reading` how many contents are being sent, `sent` how many pieces of them were."""

    def __init__(self) -> None:
        self.kept: dict[str, FakeBlob] = {}
        self.away = False
        self.cut_after = 0
        self.taking = asyncio.Event()
        self.taking.set()
        self.taken = 0
        self.putting = 0
        self.reading = 0
        self.sent = 0
        self._by_key: dict[tuple[str, ...], tuple[tuple[Any, ...], str]] = {}

    async def PutBlob(self, request_iterator, context):
        """As the real one, which knows more first bytes than those of PNGs."""
        who, content, start = principal(), bytearray(), pb.BlobStart()
        self.putting += 1
        try:
            async for request in request_iterator:
                if request.WhichOneof("item") == "start":
                    start = request.start
                self.taken += len(request.chunk)
                content += request.chunk
                await self.taking.wait()
        finally:
            self.putting -= 1
        if self.away:
            raise _unavailable()
        if start.mime_type == "image/png" and not content.startswith(b"\x89PNG"):
            wrong = "is no image/png, by its own bytes"
            raise InvalidInput("the content is not taken", reason="BLOB_REFUSED", violations=[FieldViolation("content", wrong)])
        # A call that is cancelled ends its requests like any other, and is told so when it waits next: as the real one does, who hashes.
        digest = (await asyncio.to_thread(hashlib.sha256, bytes(content))).hexdigest()
        said = (start.mime_type, start.name, start.thread_id, digest)
        key = (who.tenant, who.user, start.idempotency_key)
        if start.idempotency_key and key in self._by_key:
            before, blob_id = self._by_key[key]
            if before != said:
                raise IdempotencyMismatch("the idempotency key was used before with another body")
            return pb.PutBlobResponse(blob=self.kept[blob_id].blob)
        blob = pb.Blob(
            blob_id=f"blob_{secrets.token_hex(16)}", mime_type=start.mime_type, size=len(content), sha256=digest, name=start.name,
            thread_id=start.thread_id,
        )  # fmt: skip
        blob.created_at.GetCurrentTime()
        if not start.thread_id:
            blob.expires_at.FromSeconds(blob.created_at.seconds + 30 * 24 * HOUR_S)
        self.kept[blob.blob_id] = FakeBlob((who.tenant, who.user), blob, bytes(content), secrets.token_bytes(16))
        self._by_key[key] = (said, blob.blob_id)
        return pb.PutBlobResponse(blob=blob)

    def _one(self, blob_id: str) -> FakeBlob:
        # Scopes are asked for by the gateway itself, or nobody would see that it does.
        who = principal()
        found = self.kept.get(blob_id)
        if found is None or found.owner != (who.tenant, who.user):
            raise NotFound("there is no such blob", reason="BLOB_NOT_FOUND")
        return found

    async def GetBlob(self, request, context):
        """As the real one."""
        return pb.GetBlobResponse(blob=self._one(request.blob_id).blob)

    async def ReadBlob(self, request, context):
        """As the real one."""
        async for item in self._content(self._one(request.blob_id)):
            yield pb.ReadBlobResponse(**item)

    async def DeleteBlob(self, request, context):
        """As the real one: what is not there, or not the caller's, is left as it is."""
        who = principal()
        found = self.kept.get(request.blob_id)
        if found is not None and found.owner == (who.tenant, who.user):
            del self.kept[request.blob_id]
        return pb.DeleteBlobResponse()

    async def SignBlob(self, request, context):
        """As the real one."""
        found = self._one(request.blob_id)
        until_ms = int((time.time() + (request.lifetime.ToSeconds() or HOUR_S)) * 1000)
        answer = pb.SignBlobResponse(token=_token(found, until_ms))
        answer.expires_at.FromMilliseconds(until_ms)
        return answer

    async def ReadSignedBlob(self, request, context):
        """As the real one."""
        blob_id, _, rest = request.token.partition(".")
        until, found = rest.partition(".")[0], self.kept.get(blob_id)
        until_ms = int(until) if until.isdigit() else 0
        if found is None or _token(found, until_ms) != request.token or until_ms <= time.time() * 1000:
            raise NotFound("there is no such link, or it has ended", reason="LINK_NOT_FOUND")
        async for item in self._content(found):
            yield pb.ReadSignedBlobResponse(**item)

    async def _content(self, found: FakeBlob) -> Any:
        self.reading += 1
        try:
            yield {"blob": found.blob}
            if self.away:
                raise _unavailable()
            for number, at in enumerate(range(0, len(found.content), CHUNK_BYTES), 1):
                self.sent += 1
                yield {"chunk": found.content[at : at + CHUNK_BYTES]}
                if number == self.cut_after:
                    raise _unavailable()
        finally:
            self.reading -= 1


def _token(found: FakeBlob, until_ms: int) -> str:
    told = f"{found.blob.blob_id}.{until_ms}"
    return f"{told}.{hmac.new(found.secret, told.encode(), hashlib.sha256).hexdigest()}"


def _unavailable() -> Overloaded:
    return Overloaded("the store of blobs cannot be used", reason="BLOBS_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "blobs"})
