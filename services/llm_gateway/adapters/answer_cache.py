"""L2: answers and questions in the Valkey for what may be lost, shared by all replicas.

It fails open: an answer that is not there within 50 ms is a miss, and a store that failed three times in a row is left alone
for a while, so that a slow store does not slow calls. Keys of a tenant: `llmc:{tenant}:…`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from services.common.valkey import UNAVAILABLE, Library, store_unavailable
from services.llm_gateway.adapters.store_breaker import StoreBreaker
from services.llm_gateway.cache_telemetry import counted

TIMEOUT_S = 0.05
# After so many failures in a row nothing is asked for the pause; then one call finds out.
FAILURES = 3
PAUSE_S = 5.0
# Writes under way; what comes on top is lost rather than held in memory.
MAX_WRITES = 256
MAX_SCOPE_QUESTIONS = 128
MAX_TENANT_QUESTIONS = 2_000
_ERASE_TIMEOUT_S = 5.0
_GLOB = re.compile(r"[\\*?\[\]]")


class AnswerCache:
    """A level of the cache, and the place of questions. `client` should have a socket timeout near `timeout_s`."""

    name = "l2"

    def __init__(self, client: redis.Redis, *, timeout_s: float = TIMEOUT_S, pause_s: float = PAUSE_S) -> None:
        self._client = client
        self._library = Library(client, Path(__file__).with_name("answer_cache.lua"))
        self._timeout_s = timeout_s
        self._breaker = StoreBreaker("cached answers", after=FAILURES, pause_s=pause_s)
        self._writes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Loads the functions, so that the first call need not; a store that is away is no obstacle."""
        await self._asked(self._library.load, patience_s=1.0)

    async def stop(self) -> None:
        """Waits a moment for what is being written."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=1.0)

    @property
    def away(self) -> bool:
        """Whether the store is being left alone."""
        return self._breaker.open

    async def get(self, tenant: str, keys: Sequence[str]) -> list[bytes | None] | None:
        """Records by key; None when the store is away."""
        names = [_record(tenant, key) for key in keys]
        found = await self._asked(lambda: self._library.batched("cache_get_v1", names, [_owned(tenant, "")]))
        return None if found is None else list(found)

    def put(self, tenant: str, entries: Sequence[tuple[str, bytes]], owner: str, keep_s: float) -> None:
        """Keeps records of one owner; does not wait."""
        names = [_owned(tenant, owner), *(_record(tenant, key) for key, _ in entries)]
        args = [owner, _ms(keep_s), *(record for _, record in entries)]
        self._write(lambda: self._library.batched("cache_put_v1", names, args))

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes the records of an owner, and sweeps up those that its index has lost. Raises Overloaded."""
        try:
            async with asyncio.timeout(_ERASE_TIMEOUT_S):
                count = int(await self._library.call("cache_erase_v1", [_owned(tenant, owner)], []))
                stats = await self._client.info("stats")
                if int(stats.get("evicted_keys", 0)):
                    count += await self._sweep(tenant, owner)
        except (*UNAVAILABLE, TimeoutError) as error:
            raise store_unavailable("cache") from error
        return count

    async def _sweep(self, tenant: str, owner: str) -> int:
        count = 0
        async for name in self._client.scan_iter(match=_GLOB.sub(r"\\\g<0>", _record(tenant, "")) + "*", count=1_000):
            held = await self._client.hget(name, "o")
            if held is not None and held.decode() == owner:
                count += int(await self._client.unlink(name))
        return count

    async def asked(self, tenant: str, scope: str) -> list[bytes]:
        """All questions of a scope; none when the store is away."""
        found = await self._asked(lambda: self._client.hvals(_scope(tenant, scope)))
        return [] if found is None else list(found)

    def keep(self, tenant: str, scope: str, name: str, question: bytes, owner: str, keep_s: float) -> None:
        """Keeps a question; the least used ones give way."""
        keys = [_scope(tenant, scope), _scope(tenant, scope) + ":use", _questions(tenant), _owned_questions(tenant, owner)]
        args = [name, question, _ms(keep_s), MAX_SCOPE_QUESTIONS, MAX_TENANT_QUESTIONS, _scope(tenant, ""), scope]
        self._write(lambda: self._library.batched("cache_ask_v1", keys, args))

    def touch(self, tenant: str, scope: str, name: str) -> None:
        """Says that a question was of use."""
        keys = [_scope(tenant, scope) + ":use", _questions(tenant)]
        self._write(lambda: self._library.batched("cache_touch_v1", keys, [name, scope]))

    async def erase_questions(self, tenant: str, owner: str) -> int:
        """Deletes the questions of an owner. Raises Overloaded."""
        keys = [_owned_questions(tenant, owner), _questions(tenant)]
        try:
            async with asyncio.timeout(_ERASE_TIMEOUT_S):
                return int(await self._library.call("cache_erase_questions_v1", keys, [_scope(tenant, "")]))
        except (*UNAVAILABLE, TimeoutError) as error:
            raise store_unavailable("cache") from error

    def _write(self, command: Callable[[], Awaitable[Any]]) -> None:
        if self.away or len(self._writes) >= MAX_WRITES:
            counted(self.name, "refused")
            return
        task = asyncio.ensure_future(self._written(command))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _written(self, command: Callable[[], Awaitable[Any]]) -> None:
        if await self._asked(command, patience_s=1.0) is not None:
            counted(self.name, "stored")

    async def _asked(self, command: Callable[[], Awaitable[Any]], patience_s: float | None = None) -> Any:
        """What the store answers; None when it fails or takes too long."""
        if not self._breaker.admit():
            return None
        try:
            async with asyncio.timeout(patience_s or self._timeout_s):
                answer = await command()
        except (RedisError, OSError, TimeoutError):
            self._breaker.failed()
            counted(self.name, "error")
            return None
        self._breaker.succeeded()
        return answer


def _record(tenant: str, key: str) -> str:
    return f"llmc:{{{tenant}}}:a:{key}"


def _owned(tenant: str, owner: str) -> str:
    return f"llmc:{{{tenant}}}:o:{owner}"


def _scope(tenant: str, scope: str) -> str:
    return f"llmc:{{{tenant}}}:q:{scope}"


def _questions(tenant: str) -> str:
    return f"llmc:{{{tenant}}}:questions"


def _owned_questions(tenant: str, owner: str) -> str:
    return f"llmc:{{{tenant}}}:oq:{owner}"


def _ms(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
