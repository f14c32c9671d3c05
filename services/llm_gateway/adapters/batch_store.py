"""Records of batches in Valkey: one hash a batch, an index a tenant, and one set of what is due for all. Implements BatchRecords."""

from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import orjson
import redis.asyncio as redis

from services.common.errors import IdempotencyMismatch, InvalidInput
from services.common.valkey import Library, store_unavailable
from services.common.valkey_replicas import refused
from services.llm_gateway.batches.ports import Claim, LeaseLost, Page, Standing
from services.llm_gateway.batches.records import (
    SCHEMA_VERSION,
    BatchRecord,
    BatchSpec,
    FileRecord,
    Progress,
    usage_as_list,
    usage_from_list,
)

LUA = Path(__file__).with_name("batch_store.lua")
DUE = "llm:{batches}:due"
# Between the first word of a batch and its record: what nobody finished within it was never begun.
ANNOUNCED = timedelta(seconds=10)
KEPT = timedelta(days=30)
_PAGE = 500
T = TypeVar("T")


async def asked(call: Awaitable[T]) -> T:
    """The answer of the store. Raises Overloaded where it is away or full."""
    try:
        return await call
    except Exception as error:
        if not refused(error):
            raise
        raise store_unavailable() from error


def member(tenant: str, id_: str) -> str:
    """An entry of a set that holds those of all tenants; ids have no such separator."""
    return f"{id_}\x1f{tenant}"


def members(raws: Sequence[bytes]) -> list[tuple[str, str]]:
    """(tenant, id) of entries."""
    return [(tenant, id_) for id_, _, tenant in (raw.decode().partition("\x1f") for raw in raws)]


class ValkeyBatches:
    """`instance` names this process among its replicas. `kept` is how long a batch that has ended can be looked at."""

    def __init__(self, client: redis.Redis, instance: str, *, kept: timedelta = KEPT) -> None:
        self._client = client
        self._library = Library(client, LUA)
        self._instance = instance
        self._kept_ms = int(kept.total_seconds() * 1000)

    async def create(self, tenant: str, batch_id: str, spec: BatchSpec, fingerprint: str) -> BatchRecord:
        """As BatchRecords.create."""
        # Announced first: a batch that exists and that nobody looks for would stand for ever.
        await self._due(tenant, batch_id, int(ANNOUNCED.total_seconds() * 1000), keep=True)
        args = [batch_id, orjson.dumps(spec.as_dict()), spec.window_s * 1000, fingerprint]
        made, known, fields = await self._call("batch_create_v1", [_batch(tenant, batch_id), _index(tenant)], args)
        if known != fingerprint.encode():
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        record = _record(tenant, batch_id, fields)
        if made:
            await self._due(tenant, batch_id, 0)
        return record

    async def get(self, tenant: str, batch_id: str) -> BatchRecord | None:
        """As BatchRecords.get."""
        fields = await asked(self._client.hgetall(_batch(tenant, batch_id)))
        if not fields:
            return None
        record = _known(tenant, batch_id, fields)
        if not record.ended:
            # A batch whose entry was lost between two steps of its creation is found again by whoever asks for it.
            await self._due(tenant, batch_id, 0, keep=True)
        return record

    async def list(self, tenant: str, *, after: str, limit: int) -> Page:
        """As BatchRecords.list."""
        index = _index(tenant)
        start = 0
        if after:
            rank = await asked(self._client.zrevrank(index, after))
            if rank is None:
                raise InvalidInput.field("after", "is no batch of this list")
            start = rank + 1
        found: list[BatchRecord] = []
        while True:
            ids = [raw.decode() for raw in await asked(self._client.zrevrange(index, start, start + limit))]
            for batch_id, record in zip(ids, await self._many(tenant, ids), strict=True):
                if record is None:
                    await asked(self._client.zrem(index, batch_id))
                    continue
                if len(found) == limit:
                    return Page(found, True)
                found.append(record)
                start += 1
            if len(ids) <= limit:
                return Page(found, False)

    async def cancel(self, tenant: str, batch_id: str) -> tuple[bool, BatchRecord] | None:
        """As BatchRecords.cancel."""
        answer = await self._call("batch_cancel_v1", [_batch(tenant, batch_id)], [])
        if answer[0] == 0:
            return None
        if answer[0] == 1:
            await self._due(tenant, batch_id, 0, keep=True)
        return answer[0] == 1, _record(tenant, batch_id, answer[1])

    async def erase(self, tenant: str, batch_id: str) -> bool:
        """As BatchRecords.erase."""
        live = await self._call("batch_erase_v1", [_batch(tenant, batch_id), _index(tenant)], [batch_id])
        if live:
            await self._due(tenant, batch_id, 0, keep=True)
        return bool(live)

    async def of_user(self, tenant: str, user: str) -> Sequence[BatchRecord]:
        """As BatchRecords.of_user."""
        found: list[BatchRecord] = []
        ids = [raw.decode() for raw in await asked(self._client.zrange(_index(tenant), 0, -1))]
        for first in range(0, len(ids), _PAGE):
            records = await self._many(tenant, ids[first : first + _PAGE])
            found += [record for record in records if record is not None and record.spec.principal.user == user]
        return found

    async def due(self, limit: int) -> Sequence[tuple[str, str]]:
        """As BatchRecords.due."""
        return members(await self._call("batch_due_v1", [DUE], [limit]))

    async def claim(self, tenant: str, batch_id: str, lease_s: float) -> Claim | bool:
        """As BatchRecords.claim."""
        answer = await self._call("batch_claim_v1", [_batch(tenant, batch_id)], [self._instance, _ms(lease_s)])
        match answer[0]:
            case -1:
                return True
            case 0:
                await self._due(tenant, batch_id, answer[1])
                return False
        await self._due(tenant, batch_id, _ms(lease_s))
        return Claim(_record(tenant, batch_id, answer[2]), answer[0], answer[1])

    async def renew(self, claim: Claim, lease_s: float, progress: Progress | None = None, *, enter: str = "", **fields: Any) -> Standing:
        """As BatchRecords.renew; `fields` are stored as JSON."""
        record = claim.record
        pairs = _pairs({**({} if progress is None else _progress(progress)), **{k: orjson.dumps(v) for k, v in fields.items()}})
        answer = await self._call("batch_renew_v1", [_batch(record.tenant, record.id)], [claim.epoch, _ms(lease_s), enter, *pairs])
        if answer[0] < 0:
            raise LeaseLost
        await self._due(record.tenant, record.id, _ms(lease_s))
        return Standing(bool(answer[0]), bool(answer[1]), answer[2])

    async def release(self, claim: Claim, after_s: float = 0.0) -> None:
        """As BatchRecords.release."""
        record = claim.record
        held = await self._call("batch_release_v1", [_batch(record.tenant, record.id)], [claim.epoch])
        await self._due(record.tenant, record.id, _ms(after_s) if held else 0, keep=not held)

    async def finish(
        self, claim: Claim, status: str, progress: Progress, files: Mapping[str, FileRecord], errors: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """As BatchRecords.finish."""
        record = claim.record
        tenant = record.tenant
        fields = {**_progress(progress), "errors": orjson.dumps(list(errors))}
        fields |= {f"{name}_file_id": file.id for name, file in files.items()}
        keys = [_batch(tenant, record.id), _index(tenant), files_index(tenant), *(file_key(tenant, file.id) for file in files.values())]
        args: list[Any] = [claim.epoch, record.id, status, self._kept_ms, len(fields), *_pairs(fields)]
        for file in files.values():
            args += [file.id, orjson.dumps(file.as_dict())]
        final = (await self._call("batch_finish_v1", keys, args)).decode()
        if not final:
            raise LeaseLost
        return final

    async def forget_due(self, tenant: str, batch_id: str) -> None:
        """As BatchRecords.forget_due."""
        await self._due(tenant, batch_id, -1)

    async def _many(self, tenant: str, ids: Sequence[str]) -> Sequence[BatchRecord | None]:
        pipeline = self._client.pipeline(transaction=False)
        for batch_id in ids:
            pipeline.hgetall(_batch(tenant, batch_id))
        raws = await asked(pipeline.execute())
        return [_known(tenant, batch_id, fields) if fields else None for batch_id, fields in zip(ids, raws, strict=True)]

    async def _due(self, tenant: str, batch_id: str, after_ms: int, *, keep: bool = False) -> None:
        await self._call("batch_put_due_v1", [DUE], [member(tenant, batch_id), after_ms, int(keep)])

    async def _call(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await asked(self._library.call(name, keys, args))


def _batch(tenant: str, batch_id: str) -> str:
    return f"llm:{{{tenant}}}:batch:{batch_id}"


def _index(tenant: str) -> str:
    return f"llm:{{{tenant}}}:batches"


def file_key(tenant: str, file_id: str) -> str:
    """Under what a file's record stands."""
    return f"llm:{{{tenant}}}:file:{file_id}"


def files_index(tenant: str) -> str:
    """The files of a tenant by time of creation."""
    return f"llm:{{{tenant}}}:files"


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _pairs(fields: Mapping[str, Any]) -> list[Any]:
    return [part for pair in fields.items() for part in pair]


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "total": progress.total, "completed": progress.completed, "failed": progress.failed,
        "usage": orjson.dumps(usage_as_list(progress.usage)),
    }  # fmt: skip


def _record(tenant: str, batch_id: str, flat: Sequence[bytes]) -> BatchRecord:
    return _known(tenant, batch_id, dict(zip(flat[::2], flat[1::2], strict=True)))


def _known(tenant: str, batch_id: str, fields: Mapping[bytes, bytes]) -> BatchRecord:
    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode()

    def loaded(name: str, otherwise: Any) -> Any:
        raw = fields.get(name.encode())
        return otherwise if raw is None else orjson.loads(raw)

    usage = loaded("usage", None)
    assert int(text("schema_version")) <= SCHEMA_VERSION + 1
    return BatchRecord(
        id=batch_id,
        tenant=tenant,
        spec=BatchSpec.from_dict(loaded("spec", None)),
        status=text("status"),
        created_ms=int(text("created_ms")),
        expires_ms=int(text("expires_ms")),
        times_ms={name[2:].decode(): int(value) for name, value in fields.items() if name.startswith(b"t:")},
        errors=loaded("errors", []),
        progress=Progress(
            loaded("total", 0), loaded("completed", 0), loaded("failed", 0), usage_from_list(usage) if usage else Progress().usage
        ),
        model=loaded("model", ""),
        output_file_id=text("output_file_id"),
        error_file_id=text("error_file_id"),
        provider=loaded("provider", {}),
        erased=text("erased") == "1",
    )
