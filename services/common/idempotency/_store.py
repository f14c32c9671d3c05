"""Claims on idempotency keys, one Lua function each for begin, finish and abandon."""

import asyncio
import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import redis.asyncio as redis

from services.common.errors import Conflict, IdempotencyMismatch, Overloaded
from services.common.valkey import Library
from services.common.valkey_replicas import Lasting, asked

KEPT = timedelta(hours=24)


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
    """Claims in the state store. A claim, an answer and what refuses a caller count once `replicas` have them on disk.

    All methods raise Overloaded while the store is away, or refuses for now.
    """

    def __init__(self, client: redis.Redis, replicas: int = 0) -> None:
        self._lasting = Lasting(Library(client, Path(__file__).with_name("idempotency.lua")), replicas)
        self._giving_back: set[asyncio.Task[None]] = set()

    async def begin(self, tenant: str, method: str, key: str, print_: str, *, lease_s: float = 30.0, when_full: bool = False) -> Claim:
        """Claims `key`. An empty key claims nothing and is always free. With `when_full` it is claimed also where the store's memory is
        full: for steps of runs that were accepted, for what makes room, and where whoever does the work refuses what is new by itself.

        Raises IdempotencyMismatch for another fingerprint, Conflict while another holder's lease runs.
        A holder that died leaves the key free again when its lease has run out; whoever is refused, or cancelled meanwhile, before.
        """
        if not key:
            return Claim("", "", None)
        name = f"idem:{{{tenant}}}:{method}:{hashlib.sha256(key.encode()).hexdigest()}"
        token = secrets.token_hex(8)
        args = [print_, token, int(lease_s * 1000), int(KEPT.total_seconds() * 1000)]
        begun = self._lasting.submit("idempotency_begin_of_run_v1" if when_full else "idempotency_begin_v1", [name], args)
        try:
            verdict, value = await asked(self._lasting.library.client, asyncio.shield(begun))
        except (Overloaded, asyncio.CancelledError):
            # The primary may have the claim all the same: nobody holds this token, and the next caller would find the key taken.
            task = asyncio.get_running_loop().create_task(self._give_back(begun, Claim(name, token, None)))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)
            raise
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
        return bool(await self._lasting.passing("idempotency_renew_v1", [claim.key], [claim.token, int(lease_s * 1000)]))

    async def finish(self, claim: Claim, answer: bytes, *, owner: str = "", kept: timedelta = KEPT) -> bool:
        """Stores the answer for `kept`; False when the claim was lost to another holder meanwhile.

        `owner` stands for the person whose data the answer may hold, and is what `erase` finds it by.
        """
        if not claim.key:
            return True
        keys = [claim.key, _owned(claim.key.partition(":{")[2].partition("}")[0], owner)] if owner else [claim.key]
        return bool(await self._lasting.call("idempotency_finish_v1", keys, [claim.token, answer, int(kept.total_seconds() * 1000)]))

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes the answers of an owner; answers how many there were."""
        return int(await self._lasting.call("idempotency_erase_v1", [_owned(tenant, owner)], []))

    async def abandon(self, claim: Claim) -> None:
        """Gives the key back after work that had no effect."""
        if claim.key:
            await self._lasting.passing("idempotency_abandon_v1", [claim.key], [claim.token])

    async def _give_back(self, begun: asyncio.Future, claim: Claim) -> None:
        # Not before the claim was made, or refused.
        await asyncio.wait((begun,))
        if not begun.cancelled():
            begun.exception()  # whoever would have been told has left
        with suppress(Overloaded):
            await self.abandon(claim)


def _owned(tenant: str, owner: str) -> str:
    return f"idem:{{{tenant}}}:of:{hashlib.sha256(owner.encode()).hexdigest()[:32]}"
