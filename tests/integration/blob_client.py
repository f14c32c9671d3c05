"""A caller of BlobService as the gateway is one, contents of every type that is taken, and what is left of them on a disk."""

import base64
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from bulkhead.orchestrator.v1 import blobs_pb2_grpc as rpc
from google.protobuf.duration_pb2 import Duration

from services.common import testing

PIECE = 256 * 1024


def png(width: int = 2, height: int = 3, more: bytes = b"") -> bytes:
    """A whole PNG, grey; `more` is text within it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + b"\x80" * width for _ in range(height))) if width * height < 1e6 else b""
    text = chunk(b"tEXt", b"comment\0" + more) if more else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def encoded(content: bytes) -> str:
    """A content as tools send it."""
    return base64.b64encode(content).decode()


def sealing_keys(folder: Path) -> Path:
    """A file of root keys, with which contents are sealed."""
    path = folder / "roots.json"
    path.write_bytes(orjson.dumps({"keys": [{"id": "1", "key": encoded(bytes(32))}]}))
    return path


class Blobs:
    """A caller."""

    def __init__(self, dialer: Any, identities: testing.Identities, principal: Any = None) -> None:
        self.stub, self.identities, self.principal = rpc.BlobServiceStub(dialer.channel("orchestrator")), identities, principal

    def calling(self):
        """The context of a call."""
        return testing.calling(self.identities, self.principal)

    async def put(self, content: bytes, mime_type: str = "image/png", *, piece: int = PIECE, **start: str) -> pb.Blob:
        """Sends a content in pieces."""

        async def requests() -> AsyncIterator[pb.PutBlobRequest]:
            yield pb.PutBlobRequest(start=pb.BlobStart(mime_type=mime_type, **start))
            for at in range(0, len(content), piece):
                yield pb.PutBlobRequest(chunk=content[at : at + piece])

        with self.calling():
            return (await self.stub.PutBlob(requests())).blob

    async def get(self, blob_id: str) -> pb.Blob:
        """What a blob is."""
        with self.calling():
            return (await self.stub.GetBlob(pb.GetBlobRequest(blob_id=blob_id))).blob

    async def read(self, blob_id: str) -> tuple[pb.Blob, bytes]:
        """A blob with its content."""
        with self.calling():
            items = [item async for item in self.stub.ReadBlob(pb.ReadBlobRequest(blob_id=blob_id))]
        assert [item.WhichOneof("item") for item in items] == ["blob"] + ["chunk"] * (len(items) - 1)
        return items[0].blob, b"".join(item.chunk for item in items)

    async def delete(self, blob_id: str) -> None:
        """Removes a blob."""
        with self.calling():
            await self.stub.DeleteBlob(pb.DeleteBlobRequest(blob_id=blob_id))

    async def sign(self, blob_id: str, lifetime_s: int | None = None) -> pb.SignBlobResponse:
        """Makes a link."""
        lifetime = None if lifetime_s is None else Duration(seconds=lifetime_s)
        with self.calling():
            return await self.stub.SignBlob(pb.SignBlobRequest(blob_id=blob_id, lifetime=lifetime))

    async def follow(self, token: str) -> bytes:
        """The content that a link leads to, asked for by nobody."""
        stream = self.stub.ReadSignedBlob(pb.ReadSignedBlobRequest(token=token), timeout=30)
        return b"".join([item.chunk async for item in stream])


def contents(folder: Path) -> list[Path]:
    """The files of all contents of blobs below a folder, those too that were not finished."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name.endswith("-blob"))
