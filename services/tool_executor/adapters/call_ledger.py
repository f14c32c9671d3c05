"""The call ledger in the state store: one Lua function each for claiming, renewing, ending and reading a call."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from services.common.valkey import Library
from services.common.valkey_replicas import Lasting, TooFewReplicas, refusals
from services.tool_executor.ports import Entry, Record, Verdict

KEPT = timedelta(hours=24)
_KEPT_MS = int(KEPT.total_seconds() * 1000)


class ValkeyCallLedger:
    """Implements ports.CallLedger. What keeps a call from being made twice counts once `replicas` have it on disk: whoever is promoted
    then knows of it. Of a call that may be made twice nothing is waited for.
    """

    def __init__(self, client: redis.Redis, replicas: int = 0) -> None:
        self._lasting = Lasting(Library(client, Path(__file__).with_name("tool_calls.lua")), replicas)

    async def load(self) -> None:
        """Loads the functions, so that the first call need not. Raises redis errors."""
        await self._lasting.library.load()

    async def begin(self, entry: Entry) -> Record:
        """As the port says."""
        answer = await self._call(
            "tool_call_begin_of_run_v1" if entry.of_run else "tool_call_begin_v1",
            _name(entry.tenant, entry.key),
            [
                entry.fingerprint,
                entry.tool,
                entry.version,
                int(entry.pinned),
                entry.token,
                int(entry.lease_s * 1000),
                _KEPT_MS,
                int(entry.repeatable),
                entry.again,
            ],
            *([_of_user(entry.tenant, entry.user)] if entry.user else []),
            lasting=None if entry.repeatable else _claimed,
        )
        return _record(answer)

    async def renew(self, entry: Entry) -> None:
        """As the port says."""
        await self._call("tool_call_renew_v1", _name(entry.tenant, entry.key), [entry.token, int(entry.lease_s * 1000)])

    async def finish(self, entry: Entry, meta: bytes, output: bytes, *, free: bool) -> bool:
        """As the port says."""
        args = [entry.token, meta, output, int(free), _KEPT_MS]
        # Where nothing has happened, a claim that is all that is left says too much, and nothing is done twice for it.
        lasting = None if entry.repeatable or free else bool
        return bool(await self._call("tool_call_finish_v1", _name(entry.tenant, entry.key), args, lasting=lasting))

    async def read(self, tenant: str, key: str) -> Record | None:
        """As the port says."""
        answer = await self._call("tool_call_read_v1", _name(tenant, key), [])
        return _record(answer) if answer else None

    async def stop(self, tenant: str, key: str, never_begun: bytes, *, for_good: bool) -> Record | None:
        """As the port says."""
        # After a cancel that was acknowledged no call begins, also where it comes late and to whoever was promoted meanwhile.
        lasting = _all if for_good else None
        answer = await self._call("tool_call_stop_v1", _name(tenant, key), [int(for_good), _KEPT_MS, never_begun], lasting=lasting)
        return _record(answer) if answer else None

    async def stopping(self, entry: Entry) -> bool:
        """As the port says."""
        return bool(await self._call("tool_call_stopping_v1", _name(entry.tenant, entry.key), [entry.token]))

    async def erase(self, tenant: str, user: str) -> int:
        """As the port says."""
        return int(await self._call("tool_call_erase_v1", _of_user(tenant, user), []))

    async def _call(self, function: str, name: str, args: Sequence[Any], *more: str, lasting: Callable[[Any], bool] | None = None) -> Any:
        """`lasting`: whether an answer stands for a write that replicas must have. Raises Overloaded where too few have it."""
        keys = [name, *more]
        if lasting is None:
            return await self._lasting.passing(function, keys, args)
        async with refusals(self._lasting.library.client):
            try:
                return await self._lasting.submit(function, keys, args)
            except TooFewReplicas as few:
                if lasting(few.answer):
                    raise
                return few.answer


def _all(answer: Any) -> bool:
    return True


def _claimed(answer: Sequence[bytes]) -> bool:
    return answer[0] == b"claimed"


def _name(tenant: str, key: str) -> str:
    # The tenant is the hash tag, as for every idempotency record: what belongs to one tenant is atomic together.
    return f"tool_calls:{{{tenant}}}:{hashlib.sha256(key.encode()).hexdigest()}"


def _of_user(tenant: str, user: str) -> str:
    return f"tool_calls:{{{tenant}}}:of:{hashlib.sha256(user.encode()).hexdigest()[:32]}"


def _record(answer: Sequence[bytes]) -> Record:
    verdict, tool, version, started_at, left, meta, output = answer
    return Record(
        Verdict(verdict.decode()), tool.decode(), version.decode(), int(started_at) / 1000, float(left) / 1000, bytes(meta), bytes(output)
    )
