"""The last good results of tools, one hash for each user, in Valkey."""

import hashlib
import struct
import time

import redis.asyncio as redis
import structlog

from services.common.errors import Overloaded
from services.common.valkey_replicas import refusals

MOST_RESULTS = 128
_AT = struct.Struct(">d")
log = structlog.get_logger("bulkhead.tools")


class ValkeyLastResults:
    """A store that is away keeps nothing and knows nothing: a result is missing, and no call fails for that."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    async def keep(self, tenant: str, user: str, name: str, output: bytes, kept_s: float) -> None:
        """See `LastResults`. A user with too many results begins anew."""
        key = _key(tenant, user)
        try:
            async with refusals(self._client), self._client.pipeline(transaction=False) as pipeline:
                if await self._client.hlen(key) >= MOST_RESULTS:
                    await self._client.delete(key)
                pipeline.hset(key, name, _AT.pack(time.time()) + output)
                # As long as the one that is kept longest; GT alone sets no time where there is none.
                pipeline.pexpire(key, int(kept_s * 1000), nx=True)
                pipeline.pexpire(key, int(kept_s * 1000), gt=True)
                await pipeline.execute()
        except Overloaded as error:
            log.info("last_result_lost", reason=error.reason)

    async def last(self, tenant: str, user: str, name: str) -> tuple[float, bytes] | None:
        """See `LastResults`."""
        try:
            async with refusals(self._client):
                found = await self._client.hget(_key(tenant, user), name)
        except Overloaded as error:
            log.info("last_result_unknown", reason=error.reason)
            return None
        if found is None:
            return None
        (at,) = _AT.unpack(found[: _AT.size])
        return max(0.0, time.time() - at), bytes(found[_AT.size :])

    async def erase(self, tenant: str, user: str) -> int:
        """See `LastResults`."""
        key = _key(tenant, user)
        async with refusals(self._client):
            count = int(await self._client.hlen(key))
            await self._client.delete(key)
        return count


def _key(tenant: str, user: str) -> str:
    return f"tool_results:{{{tenant}}}:{hashlib.sha256(user.encode()).hexdigest()[:32]}"
