"""Claims on idempotency keys, one Lua function each for begin, finish and abandon."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import redis.asyncio as redis

from services.common.errors import Conflict, IdempotencyMismatch
from services.common.valkey import UNAVAILABLE, Library, store_unavailable

KEPT = timedelta(hours=24)
MAX_KEY = 255


def fingerprint(*parts: str | bytes) -> str:
    """A digest of the canonical body; parts are length-prefixed, so that no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Claim:
    """What `begin` found: a stored answer, or the right (until the lease ends) to do the work."""

    key: str
    token: str
    answer: bytes | None


class IdempotencyStore:
    """Claims in the state store."""

    def __init__(self, client: redis.Redis) -> None:
        self._library = Library(client, Path(__file__).with_name("idempotency.lua"))

    async def begin(self, tenant: str, method: str, key: str, print_: str, *, lease_s: float = 30.0) -> Claim:
        """Claims `key`. An empty key claims nothing and is always free.

        Raises IdempotencyMismatch for another fingerprint, Conflict while another holder's lease runs, Overloaded without a store.
        A holder that died leaves the key free again when its lease has run out.
        """
        if not key:
            return Claim("", "", None)
        name = f"idem:{{{tenant}}}:{method}:{hashlib.sha256(key.encode()).hexdigest()}"
        token = secrets.token_hex(8)
        args = [print_, token, int(lease_s * 1000), int(KEPT.total_seconds() * 1000)]
        try:
            verdict, value = await self._library.batched("idempotency_begin_v1", [name], args)
        except UNAVAILABLE as error:
            raise store_unavailable() from error
        verdict = verdict.decode() if isinstance(verdict, bytes) else verdict
        if verdict == "mismatch":
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        if verdict == "busy":
            raise Conflict(
                "a call with this idempotency key is still at work", reason="IDEMPOTENCY_IN_FLIGHT", retry_after_s=float(value) / 1000
            )
        return Claim(name, token, value if verdict == "done" else None)

    async def renew(self, claim: Claim, *, lease_s: float = 30.0) -> bool:
        """Holds the claim for another lease; False when it was lost to another holder meanwhile."""
        if not claim.key:
            return True
        try:
            return bool(await self._library.batched("idempotency_renew_v1", [claim.key], [claim.token, int(lease_s * 1000)]))
        except UNAVAILABLE as error:
            raise store_unavailable() from error

    async def finish(self, claim: Claim, answer: bytes, *, owner: str = "") -> bool:
        """Stores the answer; False when the claim was lost to another holder meanwhile.

        `owner` stands for the person whose data the answer may hold, and is what `erase` finds it by.
        """
        if not claim.key:
            return True
        keys = [claim.key, _owned(claim.key.partition(":{")[2].partition("}")[0], owner)] if owner else [claim.key]
        try:
            return bool(await self._library.batched("idempotency_finish_v1", keys, [claim.token, answer, int(KEPT.total_seconds() * 1000)]))
        except UNAVAILABLE as error:
            raise store_unavailable() from error

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes the answers of an owner; answers how many there were."""
        try:
            return int(await self._library.batched("idempotency_erase_v1", [_owned(tenant, owner)], []))
        except UNAVAILABLE as error:
            raise store_unavailable() from error

    async def abandon(self, claim: Claim) -> None:
        """Gives the key back after work that had no effect."""
        if claim.key:
            try:
                await self._library.batched("idempotency_abandon_v1", [claim.key], [claim.token])
            except UNAVAILABLE as error:
                raise store_unavailable() from error


def _owned(tenant: str, owner: str) -> str:
    return f"idem:{{{tenant}}}:of:{hashlib.sha256(owner.encode()).hexdigest()[:32]}"
