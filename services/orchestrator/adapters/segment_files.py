"""Segments as blobs: a place for each thread, a blob for each segment."""

from collections.abc import Awaitable
from typing import TypeVar

import structlog

from services.common.errors import Overloaded
from services.common.settings import StartRefused
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.blobs import Blobs, BlobsUnavailable, place_of
from services.orchestrator.adapters.result_blobs import RESULTS
from services.orchestrator.segments import ALL, Segment, damaged
from services.orchestrator.settings import Settings

_Answer = TypeVar("_Answer")
log = structlog.get_logger("bulkhead.segments")


class SegmentFiles:
    """SegmentStore on blobs."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    async def put(self, tenant: str, thread_id: str, segment: Segment, content: bytes) -> None:
        """As SegmentStore.put."""
        place, name = place_of(tenant, thread_id), segment.encode()
        await _asked(self.blobs.put(place, name, content))
        if await _asked(self.blobs.get(place, name)) != content:
            # The log is deleted on the strength of this file.
            raise damaged(segment)

    async def get(self, tenant: str, thread_id: str, segment: Segment) -> bytes | None:
        """As SegmentStore.get."""
        return await _asked(self.blobs.get(place_of(tenant, thread_id), segment.encode()))

    async def drop(self, tenant: str, thread_id: str, before: int) -> None:
        """As SegmentStore.drop."""
        place = place_of(tenant, thread_id)
        names = await _asked(self.blobs.names(place))
        if gone := [name for name in names if Segment.decode(name.partition(".")[0]).last < before]:
            await _asked(self.blobs.delete(place, gone))
        if before >= ALL:
            # Nothing of the thread is left, so nothing points to its large results either.
            results = place_of(tenant, thread_id, RESULTS)
            if names := await _asked(self.blobs.names(results)):
                await _asked(self.blobs.delete(results, names))


def opened_segments(settings: Settings) -> SegmentFiles | None:
    """What the settings name: a folder, a bucket, or None. Raises StartRefused for a folder or certificates that cannot be used.

    A bucket that is away fails no start, as a state store does not: nothing moves until it is back.
    """
    if settings.segments_url:
        # A library of 16 MB, which is loaded where it is needed.
        from services.orchestrator.adapters.blob_bucket import Bucket, BucketBlobs

        bucket = Bucket(
            settings.segments_url,
            settings.segments_endpoint,
            settings.segments_region,
            settings.segments_path_style,
            settings.segments_credentials_dir,
            settings.segments_ca_file,
        )
        try:
            return SegmentFiles(BucketBlobs(bucket))
        except (OSError, ValueError) as error:
            raise StartRefused([f"BULKHEAD_SEGMENTS_CA_FILE: {settings.segments_ca_file}: {error}"]) from error
    if settings.segments_dir is None:
        return None
    folder = FolderBlobs(settings.segments_dir)
    try:
        folder.prepare()
    except OSError as error:
        raise StartRefused([f"BULKHEAD_SEGMENTS_DIR: {settings.segments_dir}: {error.strerror}"]) from error
    return SegmentFiles(folder)


async def _asked(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except BlobsUnavailable as error:
        log.warning("segments_unavailable", error=str(error))
        raise Overloaded(
            "the store of older events cannot be used", reason="SEGMENTS_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "segments"}
        ) from error
