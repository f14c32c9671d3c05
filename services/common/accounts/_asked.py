"""Changes of keys that a caller asks for: only while the caller's own key is good, and once under an idempotency key."""

from collections.abc import Callable
from dataclasses import dataclass

import orjson
from redis.asyncio.client import Pipeline

from services.common.accounts._records import KeyRecord, decode, is_over
from services.common.accounts._store import id_key, key_key, once_key, text
from services.common.errors import Conflict, IdempotencyMismatch, PermissionDenied, Unauthenticated
from services.common.idempotency import KEPT

# Keys of a tenant that callers may come to; whoever has the store itself is not bound.
MOST_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for a change of a key, and whether they may.

    `key_id` and `digest` are of the caller's key and of the secret that they came with, empty for a caller who has none. `allow` is given
    the record of that key, None without one, and the key that is about to be made, or changed as it is now; it raises what refuses. It runs
    in the step that writes, so what it looks at holds then, and it may run again. `once` names the request among those of its tenant, empty
    for one that is done as often as it comes; `print_` is a digest of what it asks for.
    """

    tenant: str
    allow: Callable[[KeyRecord | None, KeyRecord], None]
    key_id: str = ""
    digest: str = ""
    once: str = ""
    print_: str = ""


class DoneBefore(Conflict):
    """The same was asked for before under this idempotency key, about the key `key_id`. Its secret was told then and is kept nowhere."""

    default_reason = "DONE_BEFORE"

    def __init__(self, key_id: str) -> None:
        super().__init__("this was done before")
        self.key_id = key_id


async def admitted(pipeline: Pipeline, asked: Asked) -> KeyRecord | None:
    """The record of the caller's key, watched; None for a caller without one.

    Raises DoneBefore and IdempotencyMismatch, Unauthenticated where the key has ended, PermissionDenied for a secret that was replaced:
    until it ends it does what it did, and gets nothing that would last longer.
    """
    if asked.once:
        await pipeline.watch(once_key(asked.tenant, asked.once))
        if raw := await pipeline.get(once_key(asked.tenant, asked.once)):
            before = orjson.loads(raw)
            if before["print"] != asked.print_:
                raise IdempotencyMismatch("the idempotency key was used before with another body")
            raise DoneBefore(before["key_id"])
    if not asked.key_id:
        return None
    await pipeline.watch(id_key(asked.key_id))
    digest = await pipeline.get(id_key(asked.key_id))
    if digest is not None and text(digest) != asked.digest:
        raise PermissionDenied("this secret was replaced: keys are changed with the new one", reason="SECRET_REPLACED")
    record = None
    if digest is not None:
        await pipeline.watch(key_key(text(digest)))
        raw = await pipeline.get(key_key(text(digest)))
        record = decode(KeyRecord, raw) if raw else None
    if record is None or record.tenant != asked.tenant or record.blocked or is_over(record):
        raise Unauthenticated("the API key is not valid", reason="INVALID_API_KEY")
    return record


def note(pipeline: Pipeline, asked: Asked, key_id: str) -> None:
    """Queues the record that it was done: digests and an id, and nothing of what is answered."""
    if asked.once:
        done = orjson.dumps({"print": asked.print_, "key_id": key_id})
        pipeline.set(once_key(asked.tenant, asked.once), done, ex=KEPT)
