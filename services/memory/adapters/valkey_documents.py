"""Records of documents in Valkey: they name the live version, and an epoch tells a reader that something changed meanwhile."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
import redis.asyncio as redis

from services.common.valkey import Library
from services.common.valkey_replicas import refusals
from services.memory.adapters.keys import tag
from services.memory.adapters.paging import newest_first
from services.memory.ports import DocumentRecord


class ValkeyDocuments:
    """One hash of records a tenant."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._library = Library(client, Path(__file__).with_name("documents.lua"))

    def _keys(self, tenant: str) -> list[str]:
        own = tag("documents", tenant)
        return [f"memory:documents:{own}", f"memory:documents:{own}:index", f"memory:documents:{own}:meta"]

    async def _call(self, name: str, tenant: str, args: list):
        async with refusals(self._client):
            return await self._library.batched(name, self._keys(tenant), args)

    async def reserve(self, tenant: str, document_id: str) -> int:
        """See `Documents`."""
        return int(await self._call("memory_documents_reserve_v1", tenant, [document_id]))

    async def publish(self, tenant: str, record: DocumentRecord) -> bool:
        """See `Documents`."""
        args = [record.document_id, record.version, record.created_ms, _packed(record)]
        return bool(await self._call("memory_documents_publish_v1", tenant, args))

    async def retitle(self, tenant: str, record: DocumentRecord) -> None:
        """See `Documents`."""
        await self._call("memory_documents_retitle_v1", tenant, [record.document_id, record.version, _packed(record)])

    async def find(self, tenant: str, document_ids: Sequence[str]) -> tuple[int, dict[str, DocumentRecord]]:
        """See `Documents`."""
        epoch, *found = await self._call("memory_documents_find_v1", tenant, list(document_ids))
        records = [_record(raw) for raw in found if raw]
        return int(epoch), {record.document_id: record for record in records}

    async def page(self, tenant: str, size: int, after: tuple[int, str] | None) -> tuple[list[DocumentRecord], bool]:
        """See `Documents`."""
        records, index, _ = self._keys(tenant)
        async with refusals(self._client):
            raw, more = await newest_first(self._client, index, records, size, after)
        return [_record(entry) for entry in raw], more

    async def count(self, tenant: str) -> int:
        """See `Documents`."""
        async with refusals(self._client):
            return int(await self._client.hlen(self._keys(tenant)[0]))

    async def remove(self, tenant: str, document_id: str) -> tuple[DocumentRecord, int] | None:
        """See `Documents`."""
        found = await self._call("memory_documents_remove_v1", tenant, [document_id])
        return None if found is None else (_record(found[0]), int(found[1]))


def _packed(record: DocumentRecord) -> bytes:
    return orjson.dumps({"v": 1, **asdict(record)})


def _record(raw: bytes) -> DocumentRecord:
    data = orjson.loads(raw)
    return DocumentRecord(**{name: data[name] for name in DocumentRecord.__dataclass_fields__ if name in data})
