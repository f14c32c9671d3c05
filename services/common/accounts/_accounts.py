"""API keys in the state store, kept as a hash of the secret."""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import orjson
import redis.asyncio as redis
import structlog

from services.common.accounts._limits import NO_LIMITS, LimitSet, PrincipalLimits
from services.common.errors import NotFound, Unauthenticated
from services.common.identity import Principal
from services.common.valkey import UNAVAILABLE, store_unavailable

PREFIX = "bh_"
ACCOUNT_CACHE = timedelta(seconds=10)
CACHE_SIZE = 10_000
REVOCATIONS = "acct:revoked"
SCHEMA_VERSION = 2
log = structlog.get_logger("bulkhead.accounts")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One API key. `expires_at` is in Unix seconds, 0 for never."""

    key_id: str
    tenant: str
    user: str
    team: str = ""
    tier: str = "free"
    scopes: tuple[str, ...] = ()
    name: str = ""
    created_at: float = 0.0
    expires_at: float = 0.0
    limits: LimitSet = NO_LIMITS
    schema_version: int = SCHEMA_VERSION

    def principal(self) -> Principal:
        """Whom calls with this key are made for."""
        return Principal(self.tenant, self.user, self.key_id, self.team, self.scopes, self.tier)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key with its secret, which is shown once and stored nowhere."""

    secret: str
    record: KeyRecord


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Accounts:
    """Reads and writes key records. `start()` subscribes to revocations; without it a revoked key lives up to 10 s."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._cache: OrderedDict[str, tuple[KeyRecord | None, float]] = OrderedDict()
        self._listener: asyncio.Task | None = None
        self._revocations = 0

    async def start(self) -> None:
        """Listens for revocations."""
        self._listener = asyncio.create_task(self._listen(), name="accounts")

    async def stop(self) -> None:
        """Ends the listener."""
        # redis-py swallows a cancellation that arrives while it connects, so one cancel may not be enough.
        while self._listener is not None and not self._listener.done():
            self._listener.cancel()
            await asyncio.wait([self._listener], timeout=0.2)

    async def create_key(
        self,
        *,
        tenant: str,
        user: str,
        tier: str,
        scopes: Sequence[str],
        team: str = "",
        name: str = "",
        lifetime: timedelta | None = None,
        limits: LimitSet = NO_LIMITS,
    ) -> IssuedKey:
        """Makes a key. Raises Overloaded when the store is away."""
        secret = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        expires = now + lifetime.total_seconds() if lifetime else 0.0
        record = KeyRecord("key_" + secrets.token_hex(8), tenant, user, team, tier, tuple(scopes), name, now, expires, limits)
        digest = _digest(secret)
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.set(f"acct:key:{digest}", orjson.dumps({**asdict(record), "limits": record.limits.as_dict()}))
                pipeline.set(f"acct:id:{record.key_id}", digest)
                pipeline.sadd(f"acct:keys:{tenant}", record.key_id)
                await pipeline.execute()
        except UNAVAILABLE as error:
            raise store_unavailable(error) from error
        return IssuedKey(secret, record)

    async def resolve(self, secret: str) -> Principal:
        """The principal of an API key. Raises Unauthenticated when it is unknown, revoked or expired, Overloaded without a store."""
        record = await self._record(_digest(secret)) if secret.startswith(PREFIX) and len(secret) < 256 else None
        if record is None:
            raise Unauthenticated("the API key is not valid", reason="INVALID_API_KEY")
        if record.expires_at and record.expires_at <= time.time():
            raise Unauthenticated("the API key has expired", reason="EXPIRED_API_KEY")
        return record.principal()

    async def limits(self, principal: Principal) -> PrincipalLimits:
        """What limits `principal` beside its tier; cached for at most 10 s, changes are pushed. Raises Overloaded without a store."""
        if not principal.key_id:
            return PrincipalLimits()
        try:
            digest = await self._client.get(f"acct:id:{principal.key_id}")
        except UNAVAILABLE as error:
            raise store_unavailable(error) from error
        record = await self._record(_text(digest)) if digest else None
        return PrincipalLimits(key=record.limits) if record is not None else PrincipalLimits()

    async def _record(self, digest: str) -> KeyRecord | None:
        cached = self._cache.get(digest)
        if cached is not None and cached[1] > time.monotonic():
            return cached[0]
        revocations = self._revocations
        try:
            raw = await self._client.get(f"acct:key:{digest}")
        except UNAVAILABLE as error:
            raise store_unavailable(error) from error
        record = _decode(raw) if raw else None
        if revocations != self._revocations:
            return record  # read before a revocation that may be of this key: good for this call, not for ten seconds
        self._cache[digest] = (record, time.monotonic() + ACCOUNT_CACHE.total_seconds())
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return record

    async def list_keys(self, tenant: str) -> list[KeyRecord]:
        """Keys of a tenant, oldest first. Raises Overloaded when the store is away."""
        found = []
        try:
            for key_id in await self._client.smembers(f"acct:keys:{tenant}"):
                digest = await self._client.get(f"acct:id:{_text(key_id)}")
                raw = await self._client.get(f"acct:key:{_text(digest)}") if digest else None
                if raw:
                    found.append(_decode(raw))
        except UNAVAILABLE as error:
            raise store_unavailable(error) from error
        return sorted(found, key=lambda record: record.created_at)

    async def revoke(self, tenant: str, key_id: str) -> None:
        """Ends a key at once, in every process. Raises NotFound for an id that is not the tenant's, Overloaded without a store.

        The secret's record goes first and the tenant's list last, so that a revocation that broke off can be asked for again.
        """
        try:
            digest = await self._client.get(f"acct:id:{key_id}")
            if digest is None or not await self._client.sismember(f"acct:keys:{tenant}", key_id):
                raise NotFound("no such key")
            await self._client.delete(f"acct:key:{_text(digest)}")
            self._forget(_text(digest))
            await self._client.publish(REVOCATIONS, _text(digest))
            await self._client.delete(f"acct:id:{key_id}")
            await self._client.srem(f"acct:keys:{tenant}", key_id)
        except UNAVAILABLE as error:
            raise store_unavailable(error) from error

    def _forget(self, digest: str) -> None:
        self._revocations += 1
        self._cache.pop(digest, None)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as subscription:
                    await subscription.subscribe(REVOCATIONS)
                    # What was revoked while nobody listened must not live on in the cache.
                    self._revocations += 1
                    self._cache.clear()
                    while True:
                        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=1.0)
                        if message:
                            self._forget(_text(message["data"]))
            except UNAVAILABLE as error:
                log.warning("revocations_interrupted", error=type(error).__name__)
                await asyncio.sleep(1.0)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _decode(raw: bytes | str) -> KeyRecord:
    data = orjson.loads(raw)
    known = {name: data[name] for name in KeyRecord.__slots__ if name in data}
    known["scopes"] = tuple(known.get("scopes", ()))
    known["limits"] = LimitSet.from_dict(known.get("limits", {}))
    return KeyRecord(**known)
