"""Session windows in Valkey: the last turns by the time they ended, each run once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import orjson
import redis.asyncio as redis

from services.common.errors import IdempotencyMismatch, NotFound
from services.common.valkey import UNAVAILABLE, Library, store_unavailable
from services.memory.adapters.keys import tag
from services.memory.ports import Turn


class ValkeySessions:
    """Sessions belong to the tenant and the user that appended first; nobody else sees that they exist."""

    def __init__(self, client: redis.Redis, window_turns: int, ttl_s: float) -> None:
        self._library = Library(client, Path(__file__).with_name("sessions.lua"))
        self._window_turns = window_turns
        self._ttl_ms = int(ttl_s * 1000)

    def _keys(self, tenant: str, session: str) -> list[str]:
        own = tag("session", tenant, session)
        return [f"memory:session:{own}", f"memory:session:{own}:turns", f"memory:session:{own}:seen"]

    async def append(self, tenant: str, user: str, session: str, turns: Sequence[Turn], key: str, print_: str) -> int:
        """See `Sessions`. Raises IdempotencyMismatch when `key` was used with another fingerprint."""
        field = f"key:{hashlib.sha256(key.encode()).hexdigest()}" if key else ""
        args: list = [user, self._window_turns, self._ttl_ms, field, print_]
        for turn in turns:
            args += [turn.run_id, turn.ended_ms, _packed(turn)]
        try:
            verdict, count = await self._library.batched("memory_session_append_v1", self._keys(tenant, session), args)
        except UNAVAILABLE as error:
            raise store_unavailable() from error
        if verdict == b"foreign":
            raise NotFound("no such session")
        if verdict == b"mismatch":
            raise IdempotencyMismatch("the idempotency key was used before with other turns")
        return int(count)

    async def window(self, tenant: str, user: str, session: str) -> list[Turn] | None:
        """See `Sessions`."""
        try:
            found = await self._library.batched("memory_session_window_v1", self._keys(tenant, session)[:2], [user])
        except UNAVAILABLE as error:
            raise store_unavailable() from error
        return None if found is None else [_unpacked(raw) for raw in found]

    async def reset(self, tenant: str, user: str, session: str) -> int | None:
        """See `Sessions`."""
        try:
            count = int(await self._library.call("memory_session_reset_v1", self._keys(tenant, session)[:2], [user]))
        except UNAVAILABLE as error:
            raise store_unavailable() from error
        return None if count < 0 else count


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
