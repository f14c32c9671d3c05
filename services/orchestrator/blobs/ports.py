"""What the rest of the orchestrator asks of blobs."""

from typing import NamedTuple, Protocol


class BlobRecord(NamedTuple):
    """What is known of a blob. `size` in bytes, `sha256` in hex, times in ms since 1970; `thread_id` is empty where it belongs to none,
    `expires_ms` is 0 where it lives as long as its thread."""

    blob_id: str
    tenant: str
    user: str
    mime_type: str
    size: int
    sha256: str
    name: str
    created_ms: int
    thread_id: str = ""
    expires_ms: int = 0


class Keeper(Protocol):
    """Keeps blobs for runs."""

    async def keep(
        self, tenant: str, user: str, thread_id: str, key: str, content: bytes, mime_type: str, name: str, run_id: str = ""
    ) -> BlobRecord:
        """Keeps what a run of a thread made; of a `run_id`, no longer than the thread has that run. The same `key` within a thread answers
        the same blob, so that a step that is made again makes no second one. Raises InvalidInput where the content is not what `mime_type`
        says, or too large, and Overloaded (BLOBS_UNAVAILABLE).
        """
        ...

    async def read(self, tenant: str, user: str, blob_id: str) -> tuple[BlobRecord, bytes]:
        """A blob that this user may see. Raises NotFound and Overloaded (BLOBS_UNAVAILABLE)."""
        ...
