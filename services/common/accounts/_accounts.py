"""Whose key a secret is, and what limits its holder: cached, with changes pushed."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import redis.asyncio as redis
import structlog

from services.common.accounts._holders import Holders
from services.common.accounts._keys import PREFIX, Keys, digest_of
from services.common.accounts._limits import NO_LIMITS, LimitSet, PrincipalLimits
from services.common.accounts._records import IssuedKey, KeyRecord, TeamRecord, TenantRecord, UserRecord, decode
from services.common.accounts._store import CHANGES, REVOCATIONS, Store, gone_key, holder_key, id_key, key_key, text
from services.common.errors import Unauthenticated
from services.common.identity import Principal
from services.common.valkey import UNAVAILABLE

ACCOUNT_CACHE = timedelta(seconds=10)
CACHE_SIZE = 10_000
# Secrets that are nobody's: remembered apart, so that a flood of them costs no good key its place.
UNKNOWN_SIZE = 1_000
MOST_SECRET_CHARS = 256
T = TypeVar("T")
log = structlog.get_logger("bulkhead.accounts")


@dataclass(frozen=True, slots=True)
class _Known:
    """A key as it was read; `until` is on time.monotonic()."""

    record: KeyRecord
    principal: Principal
    ends_at: float
    until: float


@dataclass(frozen=True, slots=True)
class _Held:
    """What four records say of one principal. `blocked` names the holder that is blocked."""

    limits: PrincipalLimits
    blocked: str
    until: float


class Accounts:
    """Reads and writes accounts. `start()` subscribes to changes; without it a revoked key or an old limit lives up to 10 s.

    `keys`, `users`, `teams` and `tenants` write records. Everything raises Overloaded when the store is away. What was changed counts
    once `replicas` have it on disk.
    """

    def __init__(self, client: redis.Redis, replicas: int = 0) -> None:
        store = Store(client, replicas)
        self._store = store
        self._client = client
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._held: OrderedDict[tuple[str, str, str, str], _Held] = OrderedDict()
        self._listener: asyncio.Task | None = None
        self._changes = 0
        # Reads under way. When a record that many calls need has come of age, one of them reads it and all wait for that.
        self._reads: dict[Hashable, asyncio.Task[Any]] = {}
        self.keys = Keys(store, self._forget)
        self.users: Holders[UserRecord] = Holders(store, "user", UserRecord, self._forget)
        self.teams: Holders[TeamRecord] = Holders(store, "team", TeamRecord, self._forget)
        self.tenants: Holders[TenantRecord] = Holders(store, "tenant", TenantRecord, self._forget)

    async def start(self) -> None:
        """Listens for changes."""
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
        """Makes a key. Raises InvalidInput for names that cannot be."""
        expires = time.time() + lifetime.total_seconds() if lifetime else 0.0
        return await self.keys.create(KeyRecord("", tenant, user, team, tier, tuple(scopes), name=name, expires_at=expires, limits=limits))

    async def list_keys(self, tenant: str) -> list[KeyRecord]:
        """Keys of a tenant, oldest first."""
        return await self.keys.list(tenant)

    async def revoke(self, tenant: str, key_id: str) -> None:
        """Ends a key at once, in every process. Raises NotFound for an id that is not the tenant's."""
        await self.keys.delete(key_id, tenant)

    async def erase_user(self, tenant: str, user: str) -> int:
        """Ends a user's keys and removes what is known of them; answers how many records that were. Idempotent.

        The last records of keys that were deleted before end by themselves within 30 days.
        """
        erased = 0
        for record in await self.keys.list(tenant):
            if record.user == user:
                await self.keys.delete(record.key_id, tenant, kept=False)
                erased += 1
        for team in await self.teams.list(tenant):
            if user in team.members:
                await self.teams.update(tenant, team.team, lambda old: replace(old, members=_without(old.members, user)))
                erased += 1
        if await self.users.find(tenant, user) is not None:
            await self.users.delete(tenant, user)
            erased += 1
        return erased

    async def resolve(self, secret: str) -> Principal:
        """The principal of an API key. Raises Unauthenticated when it is unknown, revoked, expired or blocked."""
        known = await self._key(digest_of(secret)) if secret.startswith(PREFIX) and len(secret) < MOST_SECRET_CHARS else None
        if known is None:
            raise _unknown()
        _refuse_ended(known.record, known.ends_at)
        principal = known.principal
        held = self._fresh(principal) or await self._shared((principal, True), partial(self._read_held, principal, known.record))
        _refuse_blocked(held)
        return principal

    async def confirm(self, principal: Principal) -> None:
        """Whether a principal that was stored may still act. Raises Unauthenticated where its key has ended, or it or a holder of it is
        blocked.
        """
        record = await self.keys.current(principal.key_id)
        if record is None or record.tenant != principal.tenant:
            raise _unknown()
        _refuse_ended(record, record.expires_at)
        held = self._fresh(principal) or await self._shared((principal, True), partial(self._read_held, principal, record))
        _refuse_blocked(held)

    async def confirm_holders(self, principal: Principal) -> None:
        """Whether a principal that came without a key may act. Raises Unauthenticated where its tenant, team or user is blocked."""
        held = self._fresh(principal) or await self._shared((principal, False), partial(self._read_held, principal, None))
        if held.blocked:
            raise Unauthenticated(f"the {held.blocked} is blocked", reason="BLOCKED_ACCOUNT")

    async def limits(self, principal: Principal) -> PrincipalLimits:
        """What limits `principal` beside its tier; cached for at most 10 s, changes are pushed.

        It goes by the names in the principal, so it serves those of internal tokens too, of runs whose key was deleted as well.
        """
        held = self._fresh(principal) or await self._shared((principal, False), partial(self._read_held, principal, None))
        return held.limits

    def _fresh(self, principal: Principal) -> _Held | None:
        held = self._held.get((principal.tenant, principal.user, principal.team, principal.key_id))
        return held if held is not None and held.until > time.monotonic() else None

    async def _key(self, digest: str) -> _Known | None:
        now = time.monotonic()
        known = self._known.get(digest)
        if known is not None and known.until > now:
            return known
        if self._unknown.get(digest, 0.0) > now:
            return None
        return await self._shared(digest, partial(self._read_key, digest, now))

    async def _shared(self, what: Hashable, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = self._reads.get(what)
        if task is None:
            task = self._reads[what] = asyncio.create_task(read())
            task.add_done_callback(partial(self._read_ended, what))
        return await asyncio.shield(task)

    def _read_ended(self, what: Hashable, task: asyncio.Task[Any]) -> None:
        if self._reads.get(what) is task:
            del self._reads[what]
        if not task.cancelled():
            task.exception()  # everybody who waited may have left

    async def _read_key(self, digest: str, now: float) -> _Known | None:
        changes = self._changes
        raw = await self._store.get(key_key(digest))
        record = decode(KeyRecord, raw) if raw else None
        ends_at = record.expires_at if record is not None else 0.0
        if record is not None and record.superseded:
            # An old secret within its grace: it is the key that counts, and the key's own end may be nearer.
            record = await self.keys.current(record.key_id)
            ends_at = min(ends_at, record.expires_at or ends_at) if record is not None else 0.0
        until = now + ACCOUNT_CACHE.total_seconds()
        # What was read before a change that may be of this key is good for this call, not for ten seconds.
        keep = changes == self._changes
        if record is None:
            if keep:
                _put(self._unknown, digest, until, UNKNOWN_SIZE)
            return None
        known = _Known(record, record.principal(), ends_at, until)
        if keep:
            _put(self._known, digest, known, CACHE_SIZE)
        return known

    async def _read_held(self, principal: Principal, key: KeyRecord | None) -> _Held:
        changes, now = self._changes, time.monotonic()
        # Nothing stands under an empty name.
        names = [
            holder_key("tenant", principal.tenant),
            holder_key("user", principal.tenant, principal.user),
            holder_key("team", principal.tenant, principal.team),
        ]
        if key is None and principal.key_id:
            names.append(gone_key(principal.key_id))
        raws = await self._store.many(names)
        if key is None and principal.key_id:
            key = await self.keys.current(principal.key_id)
            if key is None and raws[3]:
                key = decode(KeyRecord, raws[3])
            if key is not None and key.tenant != principal.tenant:
                key = None
        tenant = decode(TenantRecord, raws[0]) if raws[0] else None
        user = decode(UserRecord, raws[1]) if raws[1] else None
        team = decode(TeamRecord, raws[2]) if raws[2] else None
        limits = PrincipalLimits(
            key=key.limits if key else NO_LIMITS,
            user=user.limits if user else NO_LIMITS,
            team=team.limits if team else NO_LIMITS,
            tenant=tenant.limits if tenant else NO_LIMITS,
        )
        blocked = next((kind for kind, holder in (("tenant", tenant), ("team", team), ("user", user)) if holder and holder.blocked), "")
        held = _Held(limits, blocked, now + ACCOUNT_CACHE.total_seconds())
        if changes == self._changes:
            _put(self._held, (principal.tenant, principal.user, principal.team, principal.key_id), held, CACHE_SIZE)
        return held

    def _forget(self, changed: str) -> None:
        """`changed` is a digest, or the store key of another record."""
        self._changes += 1
        # Who comes after the change must not be given what was read before it.
        self._reads.clear()
        self._known.pop(changed, None)
        # Changes are rare beside calls, and the records of four holders cost one read.
        self._held.clear()
        if changed.startswith(id_key("")):
            # A key may be known under two secrets while an old one is in its grace.
            key_id = changed.removeprefix(id_key(""))
            for digest in [digest for digest, known in self._known.items() if known.record.key_id == key_id]:
                del self._known[digest]

    def _forget_all(self) -> None:
        self._changes += 1
        self._reads.clear()
        self._known.clear()
        self._unknown.clear()
        self._held.clear()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as subscription:
                    await subscription.subscribe(REVOCATIONS, CHANGES)
                    while True:
                        message = await subscription.get_message(timeout=1.0)
                        if message and message["type"] == "message":
                            self._forget(text(message["data"]))
                        elif message:
                            # It is listened from here on, and not from when it was asked for. What changed while nobody did must not
                            # live on in the caches.
                            self._forget_all()
            except UNAVAILABLE as error:
                log.warning("revocations_interrupted", error=type(error).__name__)
                await asyncio.sleep(1.0)


def _unknown() -> Unauthenticated:
    return Unauthenticated("the API key is not valid", reason="INVALID_API_KEY")


def _refuse_ended(record: KeyRecord, ends_at: float) -> None:
    if ends_at and ends_at <= time.time():
        raise Unauthenticated("the API key has expired", reason="EXPIRED_API_KEY")
    if record.blocked:
        raise Unauthenticated("the API key is blocked", reason="BLOCKED_API_KEY")


def _refuse_blocked(held: _Held) -> None:
    if held.blocked:
        raise Unauthenticated(f"the {held.blocked} of the API key is blocked", reason="BLOCKED_API_KEY")


def _without(members: Mapping[str, str], user: str) -> dict[str, str]:
    return {name: role for name, role in members.items() if name != user}


def _put(cache: OrderedDict, key: object, value: object, most: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > most:
        cache.popitem(last=False)
