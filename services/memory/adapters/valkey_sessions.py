"""Session windows in Valkey: the last turns by the time they ended, each run once."""

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import orjson
import redis.asyncio as redis

from services.common.envelope import Envelope, is_sealed
from services.common.errors import IdempotencyMismatch, NotFound, Overloaded
from services.common.valkey import Library
from services.common.valkey_replicas import refusals
from services.memory.adapters.keys import tag
from services.memory.ports import Turn

# Longer than a turn may be on its way: an outbox that cannot reach this service tries once a minute, and goes with its thread.
TOMBSTONE_KEPT = timedelta(days=2)
KIND = "session"


class ValkeySessions:
    """Sessions belong to the tenant and the user that appended first; nobody else sees that they exist."""

    def __init__(self, client: redis.Redis, window_turns: int, ttl_s: float, envelope: Envelope | None = None) -> None:
        """`envelope` encrypts what is said, where there is one."""
        self._client, self._envelope = client, envelope
        self._library = Library(client, Path(__file__).with_name("sessions.lua"))
        self._window_turns = window_turns
        self._ttl_ms = int(ttl_s * 1000)

    def _keys(self, tenant: str, session: str) -> list[str]:
        own = tag("session", tenant, session)
        return [f"memory:session:{own}", f"memory:session:{own}:turns", f"memory:session:{own}:seen"]

    async def append(self, tenant: str, user: str, session: str, turns: Sequence[Turn], key: str, print_: str) -> int:
        """See `Sessions`. Raises IdempotencyMismatch when `key` was used with another fingerprint."""
        field = f"key:{hashlib.sha256(key.encode()).hexdigest()}" if key else ""
        args = [user, self._window_turns, self._ttl_ms, field, print_, *await self._arguments(tenant, user, turns)]
        async with refusals(self._client):
            # A session that is listed and not there is harmless; one that is there and not listed would outlive its user's erasure.
            await self._list(tenant, user, session)
            verdict, count = await self._library.batched("memory_session_append_v1", self._keys(tenant, session), args)
        if verdict == b"foreign":
            raise NotFound("no such session")
        if verdict == b"mismatch":
            raise IdempotencyMismatch("the idempotency key was used before with other turns")
        return int(count)

    async def replace(self, tenant: str, user: str, session: str, turns: Sequence[Turn], forgotten: Sequence[str], as_of: int = 0) -> int:
        """See `Sessions`."""
        args = [user, self._window_turns, self._ttl_ms, as_of, len(forgotten), *forgotten]
        args += await self._arguments(tenant, user, turns)
        async with refusals(self._client):
            await self._list(tenant, user, session)
            verdict, count = await self._library.call("memory_session_replace_v1", self._keys(tenant, session), args)
        if verdict in (b"foreign", b"deleted"):
            raise NotFound("no such session")
        return int(count)

    async def delete(self, tenant: str, user: str, session: str) -> int | None:
        """See `Sessions`."""
        args = [user, int(TOMBSTONE_KEPT.total_seconds() * 1000)]
        async with refusals(self._client):
            count = int(await self._library.call("memory_session_delete_v1", self._keys(tenant, session), args))
        return None if count < 0 else count

    async def window(self, tenant: str, user: str, session: str) -> list[Turn] | None:
        """See `Sessions`."""
        async with refusals(self._client):
            found = await self._library.batched("memory_session_window_v1", self._keys(tenant, session)[:2], [user])
        if found is None:
            return None
        if self._envelope is not None:
            opened = await asyncio.gather(*(self._envelope.open(tenant, KIND, raw) for raw in found))
            found = [raw for raw in opened if raw is not None]
        elif any(map(is_sealed, found)):
            raise Overloaded("sessions are encrypted, and this process has no keys", reason="ENVELOPE_KEY_MISSING", retry_after_s=5.0)
        return [_unpacked(raw) for raw in found]

    async def reset(self, tenant: str, user: str, session: str, ended_before_ms: int = 0) -> int | None:
        """See `Sessions`."""
        async with refusals(self._client):
            args = [user, ended_before_ms or ""]
            count = int(await self._library.call("memory_session_reset_v1", self._keys(tenant, session)[:2], args))
        return None if count < 0 else count

    async def _arguments(self, tenant: str, user: str, turns: Sequence[Turn]) -> list:
        packed = [_packed(turn) for turn in turns]
        if self._envelope is not None:
            packed = await self._envelope.seal_all(tenant, user, [(KIND, raw) for raw in packed])
        return [part for turn, raw in zip(turns, packed, strict=True) for part in (turn.run_id, turn.ended_ms, raw)]

    async def _list(self, tenant: str, user: str, session: str) -> None:
        await self._library.batched("memory_session_list_v1", [_listed(tenant, user)], [session, self._ttl_ms])

    async def erase(self, tenant: str, user: str, sessions: Sequence[str]) -> int:
        """See `Sessions`."""
        async with refusals(self._client):
            listed = [member.decode() for member in await self._client.zrange(_listed(tenant, user), 0, -1)]
            names = sorted({*listed, *sessions})
            done = await asyncio.gather(
                *(self._library.batched("memory_session_erase_v1", self._keys(tenant, session), [user]) for session in names)
            )
            await self._client.delete(_listed(tenant, user))
        return sum(map(int, done))


def _listed(tenant: str, user: str) -> str:
    return f"memory:sessions:{tag('sessions', tenant, user)}"


def _packed(turn: Turn) -> bytes:
    return orjson.dumps(
        {
            "v": 1,
            "run": turn.run_id,
            "user": turn.user_text,
            "assistant": turn.assistant_text,
            "ended_ms": turn.ended_ms,
            "tools": turn.tool_calls_json.decode("utf-8", "replace"),
        }
    )


def _unpacked(raw: bytes) -> Turn:
    data = orjson.loads(raw)
    return Turn(data["run"], data["user"], data["assistant"], data["ended_ms"], data["tools"].encode())
