"""Records of those who hold limits beside keys: users, teams, tenants."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, Literal, TypeVar

from redis.asyncio.client import Pipeline

from services.common.accounts._records import TeamRecord, TenantRecord, UserRecord, decode, encode
from services.common.accounts._store import CHANGES, Store, holder_key, names_key
from services.common.errors import Conflict, NotFound

Kind = Literal["user", "team", "tenant"]
H = TypeVar("H", UserRecord, TeamRecord, TenantRecord)


class Holders(Generic[H]):
    """Records of one kind. The name of a tenant's own record is empty. `forget` is told of every store key that changed."""

    def __init__(self, store: Store, kind: Kind, record: type[H], forget: Callable[[str], None]) -> None:
        self._store = store
        self._kind: Kind = kind
        self._record = record
        self._forget = forget

    async def find(self, tenant: str, name: str = "") -> H | None:
        """The record, None without one."""
        raw = await self._store.get(holder_key(self._kind, tenant, name))
        return decode(self._record, raw) if raw else None

    async def get(self, tenant: str, name: str = "") -> H:
        """The record. Raises NotFound."""
        if (record := await self.find(tenant, name)) is None:
            raise NotFound(f"no such {self._kind}")
        return record

    async def list(self, tenant: str) -> list[H]:
        """All of a tenant, by name."""
        names = await self._store.members(names_key(self._kind, tenant))
        raws = await self._store.many([holder_key(self._kind, tenant, name) for name in names])
        return [decode(self._record, raw) for raw in raws if raw]

    async def create(self, record: H, name: str = "") -> H:
        """Stores a new record. Raises Conflict when there is one, InvalidInput."""

        def made(old: H | None) -> H:
            if old is not None:
                raise Conflict(f"this {self._kind} exists", reason="ALREADY_EXISTS")
            return replace(record, created_at=time.time())

        return await self.change(record.tenant, name, made)

    async def change(self, tenant: str, name: str, change: Callable[[H | None], H]) -> H:
        """Applies `change` to the record as it is now; it may run again when another was faster, and may raise.

        Raises InvalidInput, Conflict.
        """
        key = holder_key(self._kind, tenant, name)

        async def write(pipeline: Pipeline) -> H:
            await pipeline.watch(key)
            raw = await pipeline.get(key)
            record = replace(change(decode(self._record, raw) if raw else None), updated_at=time.time())
            record.check()
            pipeline.multi()
            pipeline.set(key, encode(record))
            if name:
                pipeline.sadd(names_key(self._kind, tenant), name)
            pipeline.publish(CHANGES, key)
            return record

        record = await self._store.transaction(write)
        self._forget(key)
        return record

    async def update(self, tenant: str, name: str, change: Callable[[H], H]) -> H:
        """Like `change`, for a record that must be there. Raises NotFound too."""

        def changed(old: H | None) -> H:
            if old is None:
                raise NotFound(f"no such {self._kind}")
            return change(old)

        return await self.change(tenant, name, changed)

    async def delete(self, tenant: str, name: str) -> None:
        """Removes a record. Raises NotFound."""
        key = holder_key(self._kind, tenant, name)

        async def write(pipeline: Pipeline) -> None:
            await pipeline.watch(key)
            if await pipeline.get(key) is None:
                raise NotFound(f"no such {self._kind}")
            pipeline.multi()
            pipeline.delete(key)
            pipeline.srem(names_key(self._kind, tenant), name)
            pipeline.publish(CHANGES, key)

        await self._store.transaction(write)
        self._forget(key)
