"""Records of blobs in Valkey. Functions of a library of their own; one call is one atomic step under one hash tag."""

import secrets
from collections.abc import Mapping

import orjson
import redis.asyncio as redis

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.store_due import DueStore
from services.orchestrator.adapters.store_keys import erasing_key, quoted, tenant_prefix
from services.orchestrator.blobs.records import BlobRef, DueBlob, KeptBlob, NewBlob
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.records import RunRef

RECORD = "blob_record"
DUE = "blobs:{bl0}:due"
# Longer than it takes to keep one: whoever looks then finds it made, or left by a process that is gone.
LOOK_AFTER_MS = 330_000
# What is being deleted is gone by then, or is tried again.
GOING_MS = 60_000
# A blob that is asked for all the time is noted once in this time.
ASKED_EVERY_MS = 3_600_000
SECRET_BYTES = 32


class ValkeyBlobs(DueStore):
    """BlobStore on Valkey."""

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0, sealing: Sealing | None = None) -> None:
        """As StoreBase; `sealing` as of Store."""
        super().__init__(client, instance, replicas, ("blob", "due"))
        self.sealing = sealing or Sealing()

    async def begin(self, new: NewBlob, most_bytes: int) -> str:
        """As BlobStore.begin."""
        ref = new.ref
        # First: should this process die at any moment from here on, what it leaves is found.
        await self._note(ref, LOOK_AFTER_MS)
        about = orjson.dumps({"name": new.name, "sha256": new.sha256, "secret": secrets.token_hex(SECRET_BYTES)})
        (sealed,) = await self.sealing.seal(RunRef(ref.tenant, new.thread_id or "-", "-"), [(RECORD, about)], new.user)
        keys = [_key(ref), _threads_key(ref), _user_key(ref.tenant, new.user), _thread_key(ref.tenant, new.thread_id),
                _bytes_key(ref.tenant), erasing_key(ref.tenant)]  # fmt: skip
        args = [ref.blob_id, new.user, new.thread_id, new.mime_type, new.size, sealed, most_bytes, new.run_id]
        verdict = text(await self._durable("blob_begin_v1", keys, args))
        if verdict == "erased":
            raise being_erased()
        return verdict

    async def kept(self, ref: BlobRef) -> bool:
        """As BlobStore.kept."""
        return bool(await self._durable("blob_kept_v1", [_key(ref)], []))

    async def get(self, ref: BlobRef) -> KeptBlob | None:
        """As BlobStore.get."""
        fields = await self._ask(self._client.hgetall(_key(ref)))
        if not fields:
            return None
        opened = await self.sealing.open(ref.tenant, RECORD, fields[b"about"])
        return None if opened is None else _record(ref, fields, orjson.loads(opened), await self.now_ms())

    async def asked(self, ref: BlobRef) -> None:
        """As BlobStore.asked."""
        await self._ask(self._library.batched("blob_asked_v1", [_key(ref)], [ASKED_EVERY_MS]))

    async def going(self, ref: BlobRef, asked_ms: int | None = None) -> bool:
        """As BlobStore.going."""
        await self._note(ref, GOING_MS, sooner=True)
        return bool(await self._durable("blob_going_v1", [_key(ref)], ["" if asked_ms is None else asked_ms]))

    async def delete(self, ref: BlobRef, user: str = "") -> None:
        """As BlobStore.delete."""
        user = user or text(await self._ask(self._client.hget(_key(ref), "user")) or b"")
        keys = [_key(ref), _threads_key(ref), _user_key(ref.tenant, user), _bytes_key(ref.tenant)]
        await self._durable("blob_delete_v1", keys, [ref.blob_id])

    async def of_user(self, tenant: str, user: str, most: int) -> list[BlobRef]:
        """As BlobStore.of_user."""
        found = await self._ask(self._client.zrange(_user_key(tenant, user), 0, most - 1))
        return [BlobRef(tenant, text(blob_id)) for blob_id in found]

    async def of_thread(self, tenant: str, thread_id: str, most: int) -> list[BlobRef]:
        """As BlobStore.of_thread."""
        found = await self._ask(self._client.srandmember(_thread_key(tenant, thread_id), most))
        return [BlobRef(tenant, text(blob_id)) for blob_id in found]

    async def of_run(self, ref: RunRef) -> list[BlobRef]:
        """As BlobStore.of_run."""
        found = [text(blob_id) for blob_id in await self._ask(self._client.smembers(_thread_key(ref.tenant, ref.thread_id)))]
        pipeline = self._client.pipeline(transaction=False)
        for blob_id in found:
            pipeline.hget(_key(BlobRef(ref.tenant, blob_id)), "run")
        runs = await self._ask(pipeline.execute()) if found else []
        return [BlobRef(ref.tenant, blob_id) for blob_id, run in zip(found, runs, strict=True) if run == ref.run_id.encode()]

    async def let_go(self, ref: BlobRef, thread_id: str) -> bool:
        """As BlobStore.let_go."""
        await self._note(ref, GOING_MS, sooner=True)
        keys = [_key(ref), _threads_key(ref), _thread_key(ref.tenant, thread_id)]
        return bool(await self._durable("blob_let_go_v1", keys, [ref.blob_id, thread_id]))

    async def share(self, tenant: str, thread_id: str, fork: str) -> None:
        """As BlobStore.share."""
        for blob_id in map(text, await self._ask(self._client.smembers(_thread_key(tenant, thread_id)))):
            ref = BlobRef(tenant, blob_id)
            await self._durable("blob_hold_v1", [_key(ref), _threads_key(ref), _thread_key(tenant, fork)], [blob_id, fork])

    async def holders(self, ref: BlobRef) -> list[str]:
        """As BlobStore.holders."""
        return sorted(text(thread_id) for thread_id in await self._ask(self._client.smembers(_threads_key(ref))))

    async def due(self, most: int, again_in_s: float) -> list[DueBlob]:
        """As BlobStore.due."""
        at_ms, found = await self._take_due(DUE, most, again_in_s)
        return [DueBlob(BlobRef.decode(reference), at_ms) for reference in found]

    async def leave(self, due: DueBlob, wait_s: float | None) -> None:
        """As BlobStore.leave."""
        await self._leave_due(DUE, due.ref.encode(), due.at_ms, wait_s)

    async def _note(self, ref: BlobRef, wait_ms: int, *, sooner: bool = False) -> None:
        await self._durable("blob_note_v1", [DUE], [ref.encode(), wait_ms, "LT" if sooner else "CH"])


def _key(ref: BlobRef) -> str:
    return f"{tenant_prefix(ref.tenant)}:blob:{ref.blob_id}"


def _threads_key(ref: BlobRef) -> str:
    return f"{_key(ref)}:threads"


def _user_key(tenant: str, user: str) -> str:
    return f"{tenant_prefix(tenant)}:blobs:{quoted(user)}"


def _thread_key(tenant: str, thread_id: str) -> str:
    return f"{tenant_prefix(tenant)}:blobs-of:{thread_id}"


def _bytes_key(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}:blob-bytes"


def _record(ref: BlobRef, fields: Mapping[bytes, bytes], about: Mapping[str, str], now_ms: int) -> KeptBlob:
    user, state, mime_type, thread_id = (text(fields[name]) for name in (b"user", b"state", b"mime", b"thread"))
    return KeptBlob(
        ref, user, state, mime_type, int(fields[b"size"]), about["sha256"], about["name"], int(fields[b"created_ms"]),
        int(fields[b"asked_ms"]), thread_id, text(fields.get(b"run", b"")), bytes.fromhex(about["secret"]), now_ms,
    )  # fmt: skip
