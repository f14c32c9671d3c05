"""Where the records are in the state store, and how they are changed without losing anybody's change.

`acct:key:<digest>` is the record of a key under the SHA-256 of its secret, `acct:id:<key_id>` the digest of its present secret,
`acct:keys:<tenant>` the ids of a tenant's keys, `acct:alias:<tenant>` its unique names, `acct:gone:<key_id>` the last record of a deleted
key. `acct:user:`, `acct:team:` and `acct:tenant:` are records, `acct:users:` and `acct:teams:` the names of a tenant's.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from urllib.parse import quote

import redis.asyncio as redis
from redis.asyncio.client import Pipeline
from redis.exceptions import WatchError

from services.common.errors import BulkheadError, Conflict
from services.common.valkey_replicas import asked, lasting_transaction

# Digests of secrets whose record changed; every version listens to it.
REVOCATIONS = "acct:revoked"
# Store keys of other records that changed.
CHANGES = "acct:changed"
CHUNK = 500
MOST_TRIES = 100
# Each holds a connection of a pool that calls on the hot path share.
MOST_TRANSACTIONS = 8
T = TypeVar("T")


def key_key(digest: str) -> str:
    """Of the record under a secret."""
    return f"acct:key:{digest}"


def id_key(key_id: str) -> str:
    """Of the digest of a key's present secret."""
    return f"acct:id:{key_id}"


def gone_key(key_id: str) -> str:
    """Of a deleted key's last record."""
    return f"acct:gone:{key_id}"


def keys_key(tenant: str) -> str:
    """Of the set of a tenant's key ids."""
    return f"acct:keys:{tenant}"


def alias_key(tenant: str) -> str:
    """Of the hash from unique names to key ids."""
    return f"acct:alias:{tenant}"


def once_key(tenant: str, once: str) -> str:
    """Of the record that a change was made under an idempotency key."""
    return f"acct:once:{_quoted(tenant)}:{once}"


def holder_key(kind: str, tenant: str, name: str = "") -> str:
    """Of the record of a tenant, or of one of its users or teams; quoted, so that no two names meet in one key."""
    return f"acct:{kind}:{_quoted(tenant)}" + (f":{_quoted(name)}" if name else "")


def names_key(kind: str, tenant: str) -> str:
    """Of the set of names of a tenant's users or teams."""
    return f"acct:{kind}s:{_quoted(tenant)}"


def _quoted(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")


class Store:
    """Reads, and changes by watch and transaction. Raises Overloaded when the store is away, or refuses for now.

    A change, and what refuses one, counts once `replicas` have on disk what was written or read.
    """

    def __init__(self, client: redis.Redis, replicas: int = 0) -> None:
        self._client = client
        self._replicas = replicas
        self._places = asyncio.Semaphore(MOST_TRANSACTIONS)

    async def get(self, key: str) -> bytes | None:
        """One value."""
        return (await self.many([key]))[0]

    async def many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Values of several keys."""
        found: list[bytes | None] = []
        for start in range(0, len(keys), CHUNK):
            found += await asked(self._client, self._client.mget(keys[start : start + CHUNK]))
        return found

    async def field(self, key: str, name: str) -> str | None:
        """One field of a hash."""
        found = await asked(self._client, self._client.hget(key, name))
        return None if found is None else text(found)

    async def members(self, key: str) -> list[str]:
        """A set, sorted."""
        return sorted(text(member) for member in await asked(self._client, self._client.smembers(key)))

    async def transaction(self, work: Callable[[Pipeline], Awaitable[T]]) -> T:
        """Runs `work`, which watches, reads, calls multi() and queues writes, until nobody changed between what it read.

        Raises Conflict when others were faster every time, and what `work` raises before multi(): nothing is written then.
        """
        return await asked(self._client, self._tried(work))

    async def confirm(self) -> None:
        """Returns once replicas have what was read: whoever is told that a key is gone does not end it again."""
        if self._replicas:

            async def nothing(pipeline: Pipeline) -> None:
                await pipeline.watch(REVOCATIONS)
                pipeline.multi()

            await self.transaction(nothing)

    async def _tried(self, work: Callable[[Pipeline], Awaitable[T]]) -> T:
        for _ in range(MOST_TRIES):
            async with self._places, lasting_transaction(self._client, self._replicas) as pipeline:
                try:
                    return await _run(pipeline, work)
                except WatchError:
                    await asyncio.sleep(random.uniform(0, 0.01))  # noqa: S311 - jitter
        raise Conflict("the record is being changed by others; try again")


async def _run(pipeline: Pipeline, work: Callable[[Pipeline], Awaitable[T]]) -> T:
    try:
        result = await work(pipeline)
    except BulkheadError:
        # Two reads with a change between them may look like a record that is not there: a refusal must be true at one moment.
        pipeline.multi()
        await pipeline.execute()
        raise
    await pipeline.execute()
    return result


def text(value: bytes | str) -> str:
    """What the store answered, as text."""
    return value.decode() if isinstance(value, bytes) else value
