"""What is kept of a blob beside its content, and the ports of both."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.common.errors import FailedPrecondition, Overloaded
from services.orchestrator.blobs.ports import BlobRecord
from services.orchestrator.records import RunRef, decode_ref, encode_ref

DAY_MS = 86_400_000
# One that belongs to no thread goes when nobody has asked for it for so long.
KEPT_MS = 30 * DAY_MS


class BlobRef(NamedTuple):
    """Where a blob is."""

    tenant: str
    blob_id: str

    def encode(self) -> str:
        """As encode_ref."""
        return encode_ref(*self)

    @classmethod
    def decode(cls, text: str) -> "BlobRef":
        """The inverse of `encode`. Raises ValueError."""
        return cls(*decode_ref(text, 1))


class DueBlob(NamedTuple):
    """A blob to look at, and the date that it was taken with."""

    ref: BlobRef
    at_ms: int


@dataclass(frozen=True, slots=True)
class KeptBlob:
    """A blob's record as the store has it. `state`: making (its content may not be there yet), kept, or gone (it is being deleted).

    `run_id` is the run that made it, empty for one that a caller sent; `secret` is what its links are proved with, `asked_ms` when it was
    last asked for, `now_ms` the store's clock.
    """

    ref: BlobRef
    user: str
    state: str
    mime_type: str
    size: int
    sha256: str
    name: str
    created_ms: int
    asked_ms: int
    thread_id: str
    run_id: str
    secret: bytes
    now_ms: int

    @property
    def expires_ms(self) -> int:
        """When it goes; 0: with its thread."""
        return 0 if self.thread_id else self.asked_ms + KEPT_MS

    @property
    def readable(self) -> bool:
        """Whether it is there for those who may see it."""
        return self.state == "kept" and not 0 < self.expires_ms <= self.now_ms

    def told(self) -> BlobRecord:
        """What others get to know of it."""
        return BlobRecord(
            self.ref.blob_id, self.ref.tenant, self.user, self.mime_type, self.size, self.sha256, self.name, self.created_ms,
            self.thread_id, self.expires_ms,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob that is to be kept."""

    ref: BlobRef
    user: str
    mime_type: str
    size: int
    sha256: str
    name: str
    thread_id: str
    run_id: str = ""


class BlobStore(Protocol):
    """Records of blobs, and what is to be looked at. Raises Overloaded while the store is away."""

    async def begin(self, new: NewBlob, most_bytes: int) -> str:
        """Makes a record durable before there is a content, and counts its bytes for the tenant. Answers new, making (another began with
        it, perhaps one that was lost), kept, gone, or full (the tenant would have more than `most_bytes`). Whoever looks in some minutes
        finds what was begun. Raises Conflict (SUBJECT_BEING_ERASED)."""
        ...

    async def kept(self, ref: BlobRef) -> bool:
        """Its content is there; False where the record is gone by now."""
        ...

    async def get(self, ref: BlobRef) -> KeptBlob | None:
        """A record; None where there is none, or none that can be read any more."""
        ...

    async def asked(self, ref: BlobRef) -> None:
        """Somebody has asked for it."""
        ...

    async def going(self, ref: BlobRef, asked_ms: int | None = None) -> bool:
        """Nobody reads it from here on, and whoever looks in a minute deletes it; False, and nothing changes, where somebody has asked for
        it since `asked_ms`, or it is gone."""
        ...

    async def delete(self, ref: BlobRef, user: str = "") -> None:
        """Removes a record whose content is gone, and gives its bytes back. `user` whose it is; empty: whoever the record names."""
        ...

    async def of_user(self, tenant: str, user: str, most: int) -> list[BlobRef]:
        """Some of a user's, the oldest first."""
        ...

    async def of_thread(self, tenant: str, thread_id: str, most: int) -> list[BlobRef]:
        """Some of those that a thread holds."""
        ...

    async def of_run(self, ref: RunRef) -> list[BlobRef]:
        """Those that a thread holds of what a run made."""
        ...

    async def let_go(self, ref: BlobRef, thread_id: str) -> bool:
        """A thread holds a blob no more; True where no other does, and it is going."""
        ...

    async def share(self, tenant: str, thread_id: str, fork: str) -> None:
        """A fork holds what a thread holds."""
        ...

    async def holders(self, ref: BlobRef) -> list[str]:
        """The threads that hold a blob."""
        ...

    async def due(self, most: int, again_in_s: float) -> list[DueBlob]:
        """Blobs that are to be looked at now; they are due again in `again_in_s`."""
        ...

    async def leave(self, due: DueBlob, wait_s: float | None) -> None:
        """Has a blob looked at in `wait_s`, or never again, unless somebody has asked for another date since it was taken."""
        ...


class Contents(Protocol):
    """Contents of blobs, sealed. Raises Overloaded (BLOBS_UNAVAILABLE) while they cannot be had in time."""

    async def put(self, ref: BlobRef, user: str, content: bytes) -> None:
        """Keeps a content; on return it survives a power failure and was read back."""
        ...

    async def get(self, ref: BlobRef, size: int) -> bytes | None:
        """A content of so many bytes; None where there is none, or its key is destroyed."""
        ...

    async def drop(self, ref: BlobRef) -> None:
        """Removes a content, also what a `put` that was broken off has left."""
        ...


def not_configured() -> FailedPrecondition:
    """The error where there is neither a folder nor a bucket."""
    return FailedPrecondition(
        "blobs are kept in a folder or a bucket, and none is configured", reason="BLOBS_NOT_CONFIGURED",
        metadata={"setting": "BULKHEAD_SEGMENTS_DIR"},
    )  # fmt: skip


def unavailable() -> Overloaded:
    """The error while the folder or bucket cannot be used."""
    return Overloaded(
        "the store of blobs cannot be used", reason="BLOBS_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "blobs"}
    )  # fmt: skip
