"""One writer at a time to a Milvus Lite collection, over all replicas: its server is not safe against two."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.asyncio as redis

from services.common.errors import Overloaded
from services.common.valkey_replicas import refusals

# Renewed while it is held; a holder that died blocks others no longer than this.
LEASE_MS = 3_000
RENEW_S = 1.0
RETRY_S = 0.01
# Also where the store has no memory left: removing needs the lock as well, and makes room.
ACQUIRE = "#!lua flags=allow-oom\nif redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end return 0"
RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class WriteLock:
    """A lease in the state store behind a lock in this process, so that only one task a process polls for it."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self._client = client
        self._key = f"memory:write:{name}"
        self._local = asyncio.Lock()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Waits for the lock. Raises Overloaded when the state store is away."""
        token = secrets.token_hex(8)
        async with self._local:
            async with refusals(self._client):
                while not await self._client.eval(ACQUIRE, 1, self._key, token, LEASE_MS):  # noqa: ASYNC110 - another process may hold it
                    await asyncio.sleep(RETRY_S)
            renewing = asyncio.create_task(self._renew(token))
            try:
                yield
            finally:
                renewing.cancel()
                # When the store is away the lease ends by itself; the write behind it is done either way.
                with suppress(Overloaded):
                    async with refusals(self._client):
                        await self._client.eval(RELEASE, 1, self._key, token)

    async def _renew(self, token: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(Overloaded):
                async with refusals(self._client):
                    await self._client.eval(RENEW, 1, self._key, token, LEASE_MS)
