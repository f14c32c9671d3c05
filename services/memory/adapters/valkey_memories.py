"""Records of memories in Valkey: the truth that the index follows."""

import asyncio
import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
import redis.asyncio as redis

from services.common.envelope import Envelope
from services.common.errors import Overloaded
from services.common.identity import Principal
from services.common.valkey import Library
from services.common.valkey_replicas import refusals
from services.memory.adapters.keys import tag
from services.memory.adapters.paging import newest_first
from services.memory.ports import MemoryRecord

OWNER = ":owner"
KIND = "memory"


class ValkeyMemories:
    """One hash of records a user; an expired record counts as gone and is purged by upkeep."""

    def __init__(self, client: redis.Redis, envelope: Envelope | None = None) -> None:
        """`envelope` encrypts what is remembered, where there is one."""
        self._client, self._envelope = client, envelope
        self._library = Library(client, Path(__file__).with_name("memories.lua"))

    def _keys(self, tenant: str, user: str) -> list[str]:
        own = tag("memories", tenant, user)
        return [f"memory:memories:{own}{part}" for part in ("", ":index", ":texts", OWNER)]

    async def add(self, principal: Principal, record: MemoryRecord) -> MemoryRecord:
        """See `Memories`."""
        now_ms = int(time.time() * 1000)
        raw = await self._packed(principal.tenant, principal.user, record)
        args = [record.memory_id, record.created_ms, raw, _digest(record.text), now_ms]
        args.append(orjson.dumps(principal.as_dict()))
        async with refusals(self._client):
            standing = await self._library.batched("memory_memories_add_v1", self._keys(principal.tenant, principal.user), args)
        # One that is there and cannot be opened is of a key that was destroyed since.
        return await self._record(principal.tenant, standing) or record

    async def find(self, tenant: str, user: str, memory_ids: Sequence[str]) -> dict[str, MemoryRecord]:
        """See `Memories`."""
        if not memory_ids:
            return {}
        async with refusals(self._client):
            found = await self._client.hmget(self._keys(tenant, user)[0], list(memory_ids))
        now_ms = int(time.time() * 1000)
        records = await self._records(tenant, [raw for raw in found if raw])
        return {record.memory_id: record for record in records if record.expires_ms > now_ms}

    async def page(self, tenant: str, user: str, size: int, after: tuple[int, str] | None) -> tuple[list[MemoryRecord], bool]:
        """See `Memories`."""
        records, index, *_ = self._keys(tenant, user)
        now_ms = int(time.time() * 1000)
        async with refusals(self._client):
            raw, more = await newest_first(
                self._client, index, records, size, after, keep=lambda raw: orjson.loads(raw)["expires_ms"] > now_ms
            )
        return await self._records(tenant, raw), more

    async def count(self, tenant: str, user: str) -> int:
        """See `Memories`."""
        async with refusals(self._client):
            return int(await self._client.hlen(self._keys(tenant, user)[0]))

    async def owners(self, cursor: int) -> tuple[int, list[Principal]]:
        """See `Memories`."""
        async with refusals(self._client):
            cursor, keys = await self._client.scan(cursor, match=f"memory:memories:*{OWNER}", count=500)
            found = await self._client.mget(keys) if keys else []
        return cursor, [Principal.from_dict(orjson.loads(raw)) for raw in found if raw]

    async def remove(self, tenant: str, user: str, memory_id: str) -> bool:
        """See `Memories`."""
        keys = self._keys(tenant, user)
        async with refusals(self._client):
            raw = await self._client.hget(keys[0], memory_id)
            if raw is None:
                return False
            record = await self._record(tenant, raw)
            return bool(await self._library.call("memory_memories_remove_v1", keys, [memory_id, _digest(record.text) if record else ""]))

    async def erase(self, tenant: str, user: str) -> int:
        """See `Memories`."""
        keys = self._keys(tenant, user)
        async with refusals(self._client):
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.hlen(keys[0])
                pipeline.delete(*keys)
                count, _ = await pipeline.execute()
        return int(count)

    async def _packed(self, tenant: str, user: str, record: MemoryRecord) -> bytes:
        raw = orjson.dumps({"v": 1, **asdict(record)})
        if self._envelope is None:
            return raw
        sealed = await self._envelope.seal(tenant, user, KIND, raw)
        # The store's functions compare the time outside.
        return orjson.dumps({"v": 2, "expires_ms": record.expires_ms, "sealed": base64.b64encode(sealed).decode()})

    async def _record(self, tenant: str, raw: bytes) -> MemoryRecord | None:
        data = orjson.loads(raw)
        if "sealed" in data:
            if self._envelope is None:
                raise Overloaded("memories are encrypted, and this process has no keys", reason="ENVELOPE_KEY_MISSING", retry_after_s=5.0)
            opened = await self._envelope.open(tenant, KIND, base64.b64decode(data["sealed"]))
            if opened is None:
                return None
            data = orjson.loads(opened)
        return MemoryRecord(**{name: data[name] for name in MemoryRecord.__dataclass_fields__})

    async def _records(self, tenant: str, found: Sequence[bytes]) -> list[MemoryRecord]:
        return [record for record in await asyncio.gather(*(self._record(tenant, raw) for raw in found)) if record is not None]


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).casefold().encode("utf-8", "surrogatepass")).hexdigest()
