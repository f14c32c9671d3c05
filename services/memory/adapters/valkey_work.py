"""Work that must be done in the end, in one sorted set by due time: whoever claims a due item does it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import redis.asyncio as redis

from services.common.valkey import Library
from services.common.valkey_replicas import refusals

KEY = "memory:work"


class ValkeyWork:
    """Items are JSON objects; the ticket is the item's canonical text."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._library = Library(client, Path(__file__).with_name("work.lua"))

    async def intend(self, item: Mapping[str, Any], delay_s: float, *, removes: bool = False) -> str:
        """See `Work`."""
        ticket = orjson.dumps({"v": 1, **item}, option=orjson.OPT_SORT_KEYS).decode()
        async with refusals(self._client):
            function = "memory_work_intend_removal_v1" if removes else "memory_work_intend_v1"
            await self._library.batched(function, [KEY], [ticket, int(delay_s * 1000)])
        return ticket

    async def settle(self, ticket: str) -> None:
        """See `Work`."""
        async with refusals(self._client):
            await self._client.zrem(KEY, ticket)

    async def drop(self, tenant: str, user: str) -> int:
        """See `Work`."""
        async with refusals(self._client):
            found = [item async for item, _ in self._client.zscan_iter(KEY, count=500)]
            theirs = [item for item in found if _belongs(orjson.loads(item), tenant, user)]
            return int(await self._client.zrem(KEY, *theirs)) if theirs else 0

    async def claim(self, count: int, lease_s: float) -> list[tuple[str, dict[str, Any]]]:
        """See `Work`."""
        async with refusals(self._client):
            due = await self._library.call("memory_work_claim_v1", [KEY], [count, int(lease_s * 1000)])
        return [(raw.decode(), orjson.loads(raw)) for raw in due]


def _belongs(item: Mapping[str, Any], tenant: str, user: str) -> bool:
    principal = item.get("principal", {})
    return principal.get("tenant") == tenant and principal.get("user") == user
