"""The levels of the cache as one: memory first, then the store that replicas share, then the disk."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from services.llm_gateway.cache_telemetry import counted
from services.llm_gateway.caching_memory import MemoryCache
from services.llm_gateway.caching_records import Record, decode

# How long an answer in memory is taken without a look at the shared store, where another replica may have erased it.
TRUSTED_S = 30.0
MAX_RECORD_BYTES = 1024 * 1024


class Level(Protocol):
    """A level behind the memory. It never raises: what is away is a miss, and what cannot be kept is lost."""

    name: str

    async def get(self, tenant: str, keys: Sequence[str]) -> list[bytes | None] | None:
        """Records by key; None when the level is away."""
        ...

    def put(self, tenant: str, entries: Sequence[tuple[str, bytes]], owner: str, keep_s: float) -> None:
        """Keeps records of one owner for so many seconds. Does not wait."""
        ...

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes what is kept of an owner; answers how many records. Raises Overloaded when it cannot be done now."""
        ...


class Levels:
    """Records by tenant and key over all levels. `clock` is in seconds of the epoch."""

    def __init__(
        self,
        memory: MemoryCache,
        shared: Level | None = None,
        disk: Level | None = None,
        *,
        clock: Callable[[], float] = time.time,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self._memory = memory
        self._shared = shared
        self._disk = disk
        self.clock = clock
        self._max_record_bytes = max_record_bytes

    async def get(self, tenant: str, keys: Sequence[str]) -> list[Record | None]:
        """The newest known record of each key, expired ones included: whether it is fresh is for the caller to say."""
        now, at = time.monotonic(), self.clock()
        found: list[Record | None] = [None] * len(keys)
        asked: list[int] = []
        for place, key in enumerate(keys):
            known = self._memory.get(tenant, key)
            if known is None:
                asked.append(place)
                continue
            found[place], since = known
            # What has expired here, another replica may have made anew.
            if self._shared is not None and (now - since > TRUSTED_S or known[0].fresh_until <= at):
                asked.append(place)
        if len(asked) < len(keys):
            counted("l1", "hit", len(keys) - len(asked))
        for level in (self._shared, self._disk):
            if not asked or level is None:
                continue
            asked = await self._ask(level, tenant, keys, found, asked)
        return found

    async def _ask(self, level: Level, tenant: str, keys: Sequence[str], found: list[Record | None], asked: list[int]) -> list[int]:
        """Looks for `asked` in one level; answers what is still to be looked for."""
        records = await level.get(tenant, [keys[place] for place in asked])
        if records is None:
            # Away: what the memory has is better than nothing.
            return [place for place in asked if found[place] is None]
        missing, now = [], time.monotonic()
        for place, raw in zip(asked, records, strict=True):
            record = decode(raw) if raw is not None else None
            if record is not None:
                found[place] = record
                self._memory.put(tenant, keys[place], record, now)
                continue
            missing.append(place)
            if level is self._shared and found[place] is not None:
                found[place] = None
                self._memory.drop(tenant, keys[place])
        counted(level.name, "hit", len(asked) - len(missing))
        counted(level.name, "miss", len(missing))
        return missing

    def put(self, tenant: str, entries: Sequence[tuple[str, Record]], keep_s: float) -> None:
        """Keeps records, all of one owner, for so many seconds in every level."""
        now = time.monotonic()
        kept = []
        for key, record in entries:
            if len(record.body) <= self._max_record_bytes:
                self._memory.put(tenant, key, record, now)
                kept.append((key, record))
        if not kept:
            counted("l1", "refused", len(entries))
            return
        if self._shared is not None or self._disk is not None:
            encoded = [(key, record.encode()) for key, record in kept]
            for level in (self._shared, self._disk):
                if level is not None:
                    level.put(tenant, encoded, kept[0][1].owner, keep_s)

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes what is kept of an owner; answers the most that any level held. Raises Overloaded when a level is away."""
        counts = [self._memory.erase(tenant, owner)]
        for level in (self._disk, self._shared):
            if level is not None:
                counts.append(await level.erase(tenant, owner))
        return max(counts)
