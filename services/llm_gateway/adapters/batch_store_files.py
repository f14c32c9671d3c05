"""Records of files in Valkey. Implements FileRecords."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import redis.asyncio as redis

from services.common.errors import InvalidInput
from services.common.valkey import Library
from services.llm_gateway.adapters.batch_store import LUA, asked, file_key, files_index, member, members
from services.llm_gateway.batches.ports import Page
from services.llm_gateway.batches.records import FileRecord

SIZES_LUA = Path(__file__).with_name("file_store.lua")
EXPIRING = "llm:{batches}:files"
_PAGE = 500


class ValkeyFiles:
    """One JSON record a file, an index a tenant, and one set for all of what is to be deleted when."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._library = Library(client, LUA)
        self._sizes = Library(client, SIZES_LUA)

    async def now_ms(self) -> int:
        """As FileRecords.now_ms."""
        seconds, micros = await asked(self._client.time())
        return seconds * 1000 + micros // 1000

    async def announce(self, tenant: str, file_id: str, due_ms: int) -> None:
        """As FileRecords.announce."""
        await asked(self._client.zadd(EXPIRING, {member(tenant, file_id): due_ms}))

    async def hold(self, tenant: str, file_id: str, size_bytes: int, most_bytes: int = -1, most_files: int = -1) -> bool:
        """As FileRecords.hold."""
        args = [file_id, size_bytes, most_bytes, most_files]
        return bool(await asked(self._sizes.call("file_hold_v1", _counts(tenant), args)))

    async def free(self, tenant: str, file_id: str) -> None:
        """As FileRecords.free."""
        await asked(self._sizes.call("file_free_v1", _counts(tenant), [file_id]))

    async def keep(self, tenant: str, file_id: str, batch_id: str) -> None:
        """As FileRecords.keep."""
        await asked(self._sizes.call("file_keep_v1", _counts(tenant), [file_id, batch_id]))

    async def leave(self, tenant: str, batch_id: str) -> None:
        """As FileRecords.leave."""
        await asked(self._sizes.call("file_leave_v1", _counts(tenant), [batch_id]))

    async def put(self, record: FileRecord) -> None:
        """As FileRecords.put."""
        pipeline = self._client.pipeline(transaction=True)
        pipeline.set(file_key(record.tenant, record.id), orjson.dumps(record.as_dict()))
        pipeline.zadd(files_index(record.tenant), {record.id: record.created_ms})
        await asked(pipeline.execute())

    async def get(self, tenant: str, file_id: str) -> FileRecord | None:
        """As FileRecords.get."""
        raw = await asked(self._client.get(file_key(tenant, file_id)))
        return _record(raw)

    async def list(self, tenant: str, *, after: str, limit: int, purpose: str, ascending: bool) -> Page:
        """As FileRecords.list."""
        index, start, found = files_index(tenant), 0, []
        if after:
            rank = await asked((self._client.zrank if ascending else self._client.zrevrank)(index, after))
            if rank is None:
                raise InvalidInput.field("after", "is no file of this list")
            start = rank + 1
        look = self._client.zrange if ascending else self._client.zrevrange
        while True:
            ids = await asked(look(index, start, start + _PAGE - 1))
            raws = await asked(self._client.mget([file_key(tenant, raw.decode()) for raw in ids])) if ids else []
            for record in map(_record, raws):
                if record is None or (purpose and record.purpose != purpose):
                    continue
                if len(found) == limit:
                    return Page(found, True)
                found.append(record)
            if len(ids) < _PAGE:
                return Page(found, False)
            start += _PAGE

    async def delete(self, tenant: str, file_id: str) -> bool:
        """As FileRecords.delete."""
        pipeline = self._client.pipeline(transaction=True)
        pipeline.delete(file_key(tenant, file_id))
        pipeline.zrem(files_index(tenant), file_id)
        deleted, _ = await asked(pipeline.execute())
        return bool(deleted)

    async def of_user(self, tenant: str, user: str) -> Sequence[FileRecord]:
        """As FileRecords.of_user."""
        found: list[FileRecord] = []
        ids = await asked(self._client.zrange(files_index(tenant), 0, -1))
        for first in range(0, len(ids), _PAGE):
            raws = await asked(self._client.mget([file_key(tenant, raw.decode()) for raw in ids[first : first + _PAGE]]))
            found += [record for record in map(_record, raws) if record is not None and record.user == user]
        return found

    async def due(self, limit: int) -> Sequence[tuple[str, str]]:
        """As FileRecords.due."""
        return members(await asked(self._library.call("batch_due_v1", [EXPIRING], [limit])))

    async def settle_due(self, tenant: str, file_id: str, due_ms: int) -> None:
        """As FileRecords.settle_due."""
        entry = member(tenant, file_id)
        await asked(self._client.zadd(EXPIRING, {entry: due_ms}) if due_ms else self._client.zrem(EXPIRING, entry))


def _counts(tenant: str) -> list[str]:
    index = files_index(tenant)
    return [f"{index}:sizes", f"{index}:inputs"]


def _record(raw: bytes | None) -> FileRecord | None:
    return None if raw is None else FileRecord.from_dict(orjson.loads(raw))
