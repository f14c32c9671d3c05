"""What callers and runs do with blobs. A blob is its user's: another user, of the same tenant too, does not see that it is there."""

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Protocol

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import BulkheadError, Internal, InvalidInput, NotFound, Overloaded, QuotaExceeded
from services.common.idempotency import IdempotencyStore, check_key, fingerprint, key_of
from services.common.identity import Principal
from services.orchestrator.blobs import kinds, links
from services.orchestrator.blobs.ports import BlobRecord
from services.orchestrator.blobs.records import BlobRef, BlobStore, Contents, KeptBlob, NewBlob, not_configured
from services.orchestrator.records import ThreadRecord

DEFAULT_LIFETIME = timedelta(hours=1)
LEAST_LIFETIME, MOST_LIFETIME = timedelta(seconds=1), timedelta(days=7)
# Of contents that come, in one process, each of which is in memory several times over while it is sealed; and of those that go, which
# stay for as long as their reader takes.
MOST_COMING_BYTES, MOST_GOING_BYTES = 128 * 1024 * 1024, 256 * 1024 * 1024
# Longer than keeping one takes.
LEASE_S = 45.0
# What nobody knows is compared like what somebody does.
_NO_SECRET = secrets.token_bytes(32)
log = structlog.get_logger("bulkhead.blobs")
_kept_bytes = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_blob_bytes_kept_total", unit="By", description="Bytes of blobs that were kept, by who made them: caller or run."
)


class Threads(Protocol):
    """As RunStore."""

    async def thread(self, tenant: str, user: str, thread_id: str) -> ThreadRecord | None:
        """As RunStore.thread."""
        ...


class Room:
    """Bytes that may be at hand at the same time."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._taken = most_bytes, 0

    def take(self, size: int) -> None:
        """Takes room. Raises Overloaded (BLOBS_BUSY) where there is none."""
        if self._taken + size > self._most:
            raise Overloaded("too many contents are on their way; try again soon", reason="BLOBS_BUSY", retry_after_s=1.0)
        self._taken += size

    def give_back(self, size: int) -> None:
        """Gives room back that was taken."""
        self._taken -= size

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Room for a while. Raises as `take`."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)


class BlobKeeping:
    """The use cases, and Keeper for runs. `contents` is None where there is neither a folder nor a bucket."""

    def __init__(
        self,
        store: BlobStore,
        contents: Contents | None,
        threads: Threads,
        keys: IdempotencyStore,
        most_bytes: int,
    ) -> None:
        """`most_bytes` is what all blobs of a tenant may take."""
        self._store, self._maybe, self._threads, self._keys, self._most_bytes = store, contents, threads, keys, most_bytes
        self.coming, self.leaving = Room(MOST_COMING_BYTES), Room(MOST_GOING_BYTES)

    @property
    def _contents(self) -> Contents:
        if self._maybe is None:
            raise not_configured()
        return self._maybe

    # --- what callers do ---

    async def check(self, principal: Principal, mime_type: str, name: str, thread_id: str, key: str) -> None:
        """What can be said before the content comes. Raises as `put`."""
        if self._maybe is None:
            raise not_configured()
        check_key(key)
        kinds.check_named(kinds.mime_of(mime_type), name)
        if thread_id and await self._threads.thread(principal.tenant, principal.user, thread_id) is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")

    async def put(self, principal: Principal, content: bytes, mime_type: str, name: str, thread_id: str, key: str) -> BlobRecord:
        """Keeps what a caller sent, after `check`.

        Raises InvalidInput (BLOB_REFUSED, BLOB_TOO_LARGE), NotFound (THREAD_NOT_FOUND), QuotaExceeded (BLOB_BYTES_EXCEEDED),
        IdempotencyMismatch, Conflict, FailedPrecondition (BLOBS_NOT_CONFIGURED), Overloaded (also BLOBS_UNAVAILABLE).
        """
        await self.check(principal, mime_type, name, thread_id, key)
        mime_type = kinds.mime_of(mime_type)
        kinds.check(content, mime_type, name)
        tenant, user = principal.tenant, principal.user
        digest = await _sha256(content)
        print_ = fingerprint("PutBlob", mime_type, name, thread_id, digest)
        claim = await self._keys.begin(tenant, "PutBlob", key_of(user, key), print_, lease_s=LEASE_S)
        if claim.answer is not None:
            return (await self._seen(principal, claim.answer.decode())).told()
        # A process that died after it had kept the blob and before it could say so leaves it where this one finds it.
        made = fingerprint("PutBlob", tenant, claim.key, print_) if key else uuid.uuid4().hex
        new = NewBlob(BlobRef(tenant, f"blob_{made[:32]}"), user, mime_type, len(content), digest, name, thread_id)
        try:
            found = await self._keep(new, content, "caller")
        except BulkheadError:
            await self._keys.abandon(claim)
            raise
        await self._keys.finish(claim, new.ref.blob_id.encode())
        return found

    async def get(self, principal: Principal, blob_id: str) -> BlobRecord:
        """What a blob of the caller's is. Raises NotFound."""
        found = await self._seen(principal, blob_id)
        await self._store.asked(found.ref)
        return found.told()

    async def delete(self, principal: Principal, blob_id: str, key: str) -> None:
        """Removes a blob of the caller's; one that is not there, or not theirs, changes nothing."""
        check_key(key)
        found = await self._store.get(BlobRef(principal.tenant, blob_id)) if _is_id(blob_id) else None
        if found is not None and found.user == principal.user:
            await self._store.going(found.ref)
            await self.remove(found.ref)

    async def sign(self, principal: Principal, blob_id: str, lifetime: timedelta | None) -> tuple[str, int]:
        """(token with which anybody may read a blob of the caller's, until when in ms). Raises InvalidInput, NotFound."""
        lasts = DEFAULT_LIFETIME if lifetime is None else lifetime
        if not LEAST_LIFETIME <= lasts <= MOST_LIFETIME:
            raise InvalidInput.field("lifetime", f"must be from 1 second to {MOST_LIFETIME.days} days")
        found = await self._seen(principal, blob_id)
        await self._store.asked(found.ref)
        link = links.Link(principal.tenant, blob_id, found.now_ms + int(lasts.total_seconds() * 1000))
        return links.signed(link, found.secret), link.expires_ms

    async def open(self, principal: Principal, blob_id: str) -> KeptBlob:
        """A blob of the caller's, whose `content` is wanted. Raises NotFound."""
        found = await self._seen(principal, blob_id)
        await self._store.asked(found.ref)
        return found

    async def open_link(self, token: str) -> KeptBlob:
        """The blob that a token names. Raises NotFound (LINK_NOT_FOUND), whatever is wrong with it."""
        link = links.named(token)
        found = await self._store.get(BlobRef(link.tenant, link.blob_id)) if link is not None and _is_id(link.blob_id) else None
        proved = links.proved(token, link or links.Link("", "", 0), found.secret if found is not None else _NO_SECRET)
        if link is None or found is None or not proved or not found.readable or link.expires_ms <= found.now_ms:
            raise NotFound("there is no such link, or it has ended", reason="LINK_NOT_FOUND")
        await self._store.asked(found.ref)
        return found

    async def content(self, found: KeptBlob) -> bytes:
        """The content of a blob that was opened. Raises NotFound where it was deleted meanwhile, Internal (BLOB_DAMAGED), Overloaded."""
        content = await self._contents.get(found.ref, found.size)
        if content is not None and await _sha256(content) == found.sha256:
            return content
        again = await self._store.get(found.ref)
        if again is None or not again.readable:
            raise _not_found()
        log.error("blob_damaged", blob_id=found.ref.blob_id, missing=content is None)
        raise Internal("the content of the blob is missing or damaged", reason="BLOB_DAMAGED")

    # --- what runs do ---

    async def keep(
        self, tenant: str, user: str, thread_id: str, key: str, content: bytes, mime_type: str, name: str, run_id: str = ""
    ) -> BlobRecord:
        """As Keeper.keep. Raises also QuotaExceeded, Conflict (SUBJECT_BEING_ERASED) and FailedPrecondition (BLOBS_NOT_CONFIGURED)."""
        kinds.check(content, mime_type, name)
        ref = BlobRef(tenant, f"blob_{fingerprint('keep', tenant, user, thread_id, key)[:32]}")
        known = await self._store.get(ref)
        if known is not None and known.readable:
            return known.told()
        new = NewBlob(ref, user, mime_type, len(content), await _sha256(content), name, thread_id, run_id)
        return await self._keep(new, content, "run")

    async def read(self, tenant: str, user: str, blob_id: str) -> tuple[BlobRecord, bytes]:
        """As Keeper.read. Raises also Internal (BLOB_DAMAGED) and FailedPrecondition (BLOBS_NOT_CONFIGURED)."""
        found = await self.open(Principal(tenant, user), blob_id)
        with self.leaving.of(found.size):
            return found.told(), await self.content(found)

    # --- for both, and for whoever looks ---

    async def remove(self, ref: BlobRef, user: str = "") -> None:
        """Ends the deletion of a blob that nobody reads any more. Raises Overloaded, after which whoever looks goes on with it."""
        if self._maybe is not None:
            await self._maybe.drop(ref)
        await self._store.delete(ref, user)

    async def _keep(self, new: NewBlob, content: bytes, by: str) -> BlobRecord:
        contents = self._contents
        verdict = await self._store.begin(new, self._most_bytes)
        if verdict == "full":
            raise QuotaExceeded(
                f"the blobs of the tenant may take {self._most_bytes:,} bytes in all; delete some",
                reason="BLOB_BYTES_EXCEEDED", metadata={"policy": "blob_bytes", "limit": str(self._most_bytes)},
            )  # fmt: skip
        if verdict == "gone":
            raise Overloaded("the blob is being deleted; try again soon", reason="BLOB_BEING_DELETED", retry_after_s=1.0)
        if verdict != "kept":
            await contents.put(new.ref, new.user, content)
            if not await self._store.kept(new.ref):
                # Its user, or its thread, was deleted while it was written.
                await contents.drop(new.ref)
                raise _not_found()
            _kept_bytes.add(new.size, {"by": by})
        found = await self._store.get(new.ref)
        if found is None:
            raise _not_found()
        return found.told()

    async def _seen(self, principal: Principal, blob_id: str) -> KeptBlob:
        found = await self._store.get(BlobRef(principal.tenant, blob_id)) if _is_id(blob_id) else None
        if found is None or found.user != principal.user or not found.readable:
            raise _not_found()
        return found


@asynccontextmanager
async def received(chunks: AsyncIterator[bytes], room: Room) -> AsyncIterator[bytes]:
    """A content that comes in pieces, for which there is room until the end of the block. Raises InvalidInput (BLOB_TOO_LARGE) and
    Overloaded (BLOBS_BUSY)."""
    content = bytearray()
    try:
        async for chunk in chunks:
            if len(content) + len(chunk) > kinds.MOST_BYTES:
                raise kinds.too_large()
            room.take(len(chunk))
            content += chunk
        yield bytes(content)
    finally:
        room.give_back(len(content))


async def _sha256(content: bytes) -> str:
    # It lets go of the interpreter while it works, and 25 MiB take some 50 ms.
    return (await asyncio.to_thread(hashlib.sha256, content)).hexdigest()


def _is_id(blob_id: str) -> bool:
    return blob_id.startswith("blob_") and len(blob_id) == 37 and blob_id.isascii() and blob_id[5:].isalnum()


def _not_found() -> NotFound:
    return NotFound("there is no such blob", reason="BLOB_NOT_FOUND")
