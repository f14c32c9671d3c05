"""Making, changing, rotating and ending API keys. Secrets are stored as hashes only."""

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from redis.asyncio.client import Pipeline

from services.common.accounts._asked import MOST_KEYS, Asked, admitted, note
from services.common.accounts._records import IssuedKey, KeyRecord, TeamRecord, decode, encode
from services.common.accounts._store import (
    CHANGES,
    REVOCATIONS,
    Store,
    alias_key,
    gone_key,
    holder_key,
    id_key,
    key_key,
    keys_key,
    once_key,
    text,
)
from services.common.errors import BulkheadError, Conflict, NotFound, Overloaded
from services.common.tasks import Whole

PREFIX = "bh_"
ID_PREFIX = "key_"
HINT_CHARS = 4
# Runs that a deleted key began may go on, and stay within its limits.
KEPT_AFTER_DELETE = timedelta(days=30)
# Between two reads of one call.
MOST_ROTATIONS = 10
Change = Callable[[KeyRecord], KeyRecord]


def digest_of(secret: str) -> str:
    """Under what a secret is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """Key records. `forget` is told of every digest and store key that changed, before the call returns."""

    def __init__(self, store: Store, forget: Callable[[str], None]) -> None:
        self._store = store
        self._forget = forget
        self._whole = Whole()

    async def create(self, record: KeyRecord, *, strict: bool = False, asked: Asked | None = None) -> IssuedKey:
        """Stores `record` as a new key: id, times and hint are made here.

        With `strict` the name must be unique within the tenant, and the team have a record: without one it would have no limits.
        Raises InvalidInput; Conflict for a name that is taken and a team that is blocked, NotFound for an unknown team. With `asked` also
        what `admitted` and `asked.allow` raise, and Conflict for a tenant that has too many keys.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        record = replace(
            record, key_id=ID_PREFIX + secrets.token_hex(8), created_at=now, updated_at=now, hint=secret[-HINT_CHARS:], superseded=False
        )
        record.check()
        digest = digest_of(secret)

        async def write(pipeline: Pipeline) -> None:
            if asked is not None:
                asked.allow(await admitted(pipeline, asked), record)
                await _refuse_many(pipeline, record.tenant)
            claimed = strict and record.name
            if claimed:
                await self._refuse_taken(pipeline, record)
            if strict and record.team:
                await _refuse_team(pipeline, record)
            pipeline.multi()
            pipeline.set(key_key(digest), encode(record))
            pipeline.set(id_key(record.key_id), digest)
            pipeline.sadd(keys_key(record.tenant), record.key_id)
            if claimed:
                pipeline.hset(alias_key(record.tenant), record.name, record.key_id)
            if asked is not None:
                note(pipeline, asked, record.key_id)

        try:
            await self._store.transaction(write)
        except Overloaded:
            # The primary may have it all the same: nobody knows its secret, and whoever asks again would find the name taken.
            with suppress(BulkheadError):
                await self._whole(self.delete(record.key_id, record.tenant, kept=False, undone=asked))
            raise
        return IssuedKey(secret, record)

    async def find(self, key_id: str, tenant: str) -> KeyRecord:
        """The record of a key. Raises NotFound for an id that is not the tenant's."""
        record = await self.current(key_id)
        if record is None or record.tenant != tenant:
            raise NotFound("no such key")
        return record

    async def current(self, key_id: str) -> KeyRecord | None:
        """The record of a key of whatever tenant, None without one."""
        for _ in range(MOST_ROTATIONS):
            digest = await self._store.get(id_key(key_id))
            if digest is None:
                return None
            raw = await self._store.get(key_key(text(digest)))
            record = decode(KeyRecord, raw) if raw else None
            if record is not None and not record.superseded:
                return record
            # The key was rotated, or deleted, between the two reads.
        return None

    async def find_id(self, reference: str, tenant: str, *, to_change: bool = True) -> str:
        """The id of a key that is named by its id, its secret, or the SHA-256 of its secret. Raises NotFound.

        That refuses a change for good, unless the key is not `to_change`: so it is told once replicas have what was read.
        """
        if reference.startswith(ID_PREFIX):
            record = await self.current(reference)
        else:
            digest = digest_of(reference) if reference.startswith(PREFIX) else reference
            raw = await self._store.get(key_key(digest)) if len(digest) == 64 and digest.isalnum() else None
            record = decode(KeyRecord, raw) if raw else None
        if record is None or record.tenant != tenant:
            if to_change:
                await self._store.confirm()
            raise NotFound("no such key")
        return record.key_id

    async def find_name(self, name: str, tenant: str) -> str:
        """The id of the key with this name. Raises NotFound when none or several have it."""
        if (claimed := await self._store.field(alias_key(tenant), name)) is not None:
            return claimed
        found = [record.key_id for record in await self.list(tenant) if record.name == name]
        if len(found) != 1:
            raise NotFound("no key has this name" if not found else "several keys have this name")
        return found[0]

    async def list(self, tenant: str) -> list[KeyRecord]:
        """Keys of a tenant, oldest first."""
        digests = await self._store.many([id_key(key_id) for key_id in await self._store.members(keys_key(tenant))])
        raws = await self._store.many([key_key(text(digest)) for digest in digests if digest])
        return sorted((decode(KeyRecord, raw) for raw in raws if raw), key=lambda record: (record.created_at, record.key_id))

    async def update(self, key_id: str, tenant: str, change: Change, *, strict: bool = False, asked: Asked | None = None) -> KeyRecord:
        """Applies `change` to the record as it is now; it may run again when another was faster, and may raise.

        Id, tenant and creation stay. `strict` and `asked` are as in `create`. Raises NotFound, InvalidInput, Conflict.
        """

        async def write(pipeline: Pipeline, digest: str, old: KeyRecord) -> KeyRecord:
            new = replace(change(old), key_id=old.key_id, tenant=old.tenant, created_at=old.created_at, updated_at=time.time())
            new.check()
            renamed = new.name != old.name
            freed = renamed and await self._holds_name(pipeline, old)
            if renamed and strict and new.name:
                await self._refuse_taken(pipeline, new)
            if strict and new.team and new.team != old.team:
                await _refuse_team(pipeline, new)
            pipeline.multi()
            pipeline.set(key_key(digest), encode(new))
            if freed:
                pipeline.hdel(alias_key(tenant), old.name)
            if renamed and strict and new.name:
                pipeline.hset(alias_key(tenant), new.name, key_id)
            return new

        return await self._change(key_id, tenant, write, asked)

    async def rotate(
        self,
        key_id: str,
        tenant: str,
        *,
        grace: timedelta | None = None,
        change: Change | None = None,
        asked: Asked | None = None,
    ) -> IssuedKey:
        """A new secret for the same key: its id, limits and what it has spent stay. The old one ends after `grace`.

        Without a grace every earlier one ends at once, those too that rotations before have left one: so a leak is ended whichever secret
        it was. `change` may change all but the name. `asked` is as in `create`. Raises NotFound, InvalidInput, Conflict.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        fresh = digest_of(secret)

        async def write(pipeline: Pipeline, digest: str, old: KeyRecord) -> KeyRecord:
            now = time.time()
            new = replace(change(old) if change else old, key_id=key_id, tenant=tenant, created_at=old.created_at)
            ended = list(old.earlier) if grace is None else []
            earlier = {one: ends for one, ends in old.earlier.items() if ends > now and grace is not None}
            ends = now + grace.total_seconds() if grace is not None else 0.0
            if ends:
                earlier[digest] = ends
            new = replace(new, updated_at=now, hint=secret[-HINT_CHARS:], superseded=False, name=old.name, earlier=earlier)
            new.check()
            if new.team and new.team != old.team:
                await _refuse_team(pipeline, new)
            pipeline.multi()
            for one in ended:
                pipeline.delete(key_key(one))
                pipeline.publish(REVOCATIONS, one)
            if not ends:
                pipeline.delete(key_key(digest))
            else:
                # A version that knows no rotation takes this for a key of its own, which ends in time as well.
                old = replace(old, superseded=True, expires_at=min(old.expires_at or ends, ends), earlier={})
                pipeline.set(key_key(digest), encode(old), exat=int(ends) + 1)
            pipeline.set(key_key(fresh), encode(new))
            pipeline.set(id_key(key_id), fresh)
            return new

        return IssuedKey(secret, await self._change(key_id, tenant, write, asked))

    async def delete(
        self, key_id: str, tenant: str, *, kept: bool = True, asked: Asked | None = None, undone: Asked | None = None
    ) -> KeyRecord:
        """Ends a key and every secret of it at once, in every process. Its limits are `kept` for runs that go on.

        `asked` is as in `create`; the request `undone`, which made the key, may be done again. Raises NotFound, Conflict.
        """

        async def write(pipeline: Pipeline, digest: str, old: KeyRecord) -> KeyRecord:
            freed = await self._holds_name(pipeline, old)
            pipeline.multi()
            # A secret within its grace finds its key by the id, which is gone with the record.
            pipeline.delete(key_key(digest), id_key(key_id))
            if undone is not None and undone.once:
                pipeline.delete(once_key(tenant, undone.once))
            pipeline.srem(keys_key(tenant), key_id)
            if kept:
                pipeline.set(gone_key(key_id), encode(old), ex=KEPT_AFTER_DELETE)
            if freed:
                pipeline.hdel(alias_key(tenant), old.name)
            return old

        return await self._change(key_id, tenant, write, asked)

    async def _change(
        self, key_id: str, tenant: str, write: Callable[[Pipeline, str, KeyRecord], Awaitable[KeyRecord]], asked: Asked | None
    ) -> KeyRecord:
        """Runs `write` with the digest and the record of a key as they are now, and tells every process of it."""

        async def change(pipeline: Pipeline) -> tuple[str, KeyRecord]:
            caller = await admitted(pipeline, asked) if asked is not None else None
            digest, old = await _watched(pipeline, key_id, tenant)
            if asked is not None:
                asked.allow(caller, old)
            record = await write(pipeline, digest, old)
            if asked is not None:
                note(pipeline, asked, key_id)
            pipeline.publish(REVOCATIONS, digest)
            pipeline.publish(CHANGES, id_key(key_id))
            return digest, record

        digest, record = await self._store.transaction(change)
        self._forget(digest)
        self._forget(id_key(key_id))
        return record

    async def _holds_name(self, pipeline: Pipeline, record: KeyRecord) -> bool:
        if not record.name:
            return False
        await pipeline.watch(alias_key(record.tenant))
        holder = await pipeline.hget(alias_key(record.tenant), record.name)
        return holder is not None and text(holder) == record.key_id

    async def _refuse_taken(self, pipeline: Pipeline, record: KeyRecord) -> None:
        await pipeline.watch(alias_key(record.tenant))
        holder = await pipeline.hget(alias_key(record.tenant), record.name)
        if holder is not None and text(holder) != record.key_id:
            raise Conflict("another key has this name", reason="NAME_TAKEN")


async def _watched(pipeline: Pipeline, key_id: str, tenant: str) -> tuple[str, KeyRecord]:
    await pipeline.watch(id_key(key_id))
    digest = await pipeline.get(id_key(key_id))
    if digest is None:
        raise NotFound("no such key")
    await pipeline.watch(key_key(text(digest)))
    raw = await pipeline.get(key_key(text(digest)))
    record = decode(KeyRecord, raw) if raw else None
    if record is None or record.tenant != tenant:
        raise NotFound("no such key")
    return text(digest), record


async def _refuse_many(pipeline: Pipeline, tenant: str) -> None:
    await pipeline.watch(keys_key(tenant))
    if await pipeline.scard(keys_key(tenant)) >= MOST_KEYS:
        raise Conflict("the tenant has too many keys: some must be ended first", reason="TOO_MANY_KEYS")


async def _refuse_team(pipeline: Pipeline, record: KeyRecord) -> None:
    # Watched: a team that is being ended blocks itself first, so no key slips in between the end of its keys and its own.
    key = holder_key("team", record.tenant, record.team)
    await pipeline.watch(key)
    raw = await pipeline.get(key)
    if raw is None:
        raise NotFound("no such team")
    if decode(TeamRecord, raw).blocked:
        raise Conflict("the team is blocked", reason="TEAM_BLOCKED")
