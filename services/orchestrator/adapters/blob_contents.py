"""Contents of blobs in the folder or bucket, each in a place of its own beside the segments, sealed for its user."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import structlog

from services.orchestrator.adapters.blobs import Blobs, BlobsUnavailable, place_of
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.blobs.records import BlobRef, unavailable
from services.orchestrator.records import RunRef

CONTENT = "blob"
PLACE, NAME = "-blob", "content"
# A caller waits for no longer. What is small takes no time of its own; of what is large so much a second must go through.
ASK_WITHIN_S = 5.0
BYTES_A_SECOND = 1024 * 1024
_Answer = TypeVar("_Answer")
log = structlog.get_logger("bulkhead.blobs")


class SealedContents:
    """Contents on Blobs."""

    def __init__(self, blobs: Blobs, sealing: Sealing) -> None:
        self._blobs, self._sealing = blobs, sealing

    async def put(self, ref: BlobRef, user: str, content: bytes) -> None:
        """As Contents.put."""
        (sealed,) = await self._sealing.seal(RunRef(ref.tenant, "-", "-"), [(CONTENT, content)], user)
        await self._asked(self._put(ref, sealed), len(content))

    async def _put(self, ref: BlobRef, sealed: bytes) -> None:
        await self._blobs.put(_place(ref), NAME, sealed)
        if await self._blobs.get(_place(ref), NAME) != sealed:
            raise BlobsUnavailable("what was read back is not what was written")

    async def get(self, ref: BlobRef, size: int) -> bytes | None:
        """As Contents.get."""
        sealed = await self._asked(self._blobs.get(_place(ref), NAME), size)
        return None if sealed is None else await self._sealing.open(ref.tenant, CONTENT, sealed)

    async def drop(self, ref: BlobRef) -> None:
        """As Contents.drop."""
        names = await self._asked(self._blobs.names(_place(ref)), 0)
        if names:
            await self._asked(self._blobs.delete(_place(ref), names), 0)

    async def _asked(self, call: Awaitable[_Answer], size: int) -> _Answer:
        within_s = ASK_WITHIN_S + size / BYTES_A_SECOND
        try:
            async with asyncio.timeout(within_s):
                return await call
        except (BlobsUnavailable, TimeoutError) as error:
            log.warning("blobs_unavailable", error=str(error) or f"no answer in {within_s:g} s")
            raise unavailable() from error


def _place(ref: BlobRef) -> str:
    return place_of(ref.tenant, ref.blob_id, PLACE)
