"""L1: answers in this process, least recently used out first, bounded in entries and in bytes."""

from collections import OrderedDict

from services.llm_gateway.caching_records import Record

MAX_ENTRIES = 1_000
MAX_BYTES = 64 * 1024 * 1024


class MemoryCache:
    """Records by (tenant, key). An entry larger than an eighth of the whole is not taken."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        # With the time of `time.monotonic()` at which the entry was last known to stand in the shared store.
        self._entries: OrderedDict[tuple[str, str], tuple[Record, float]] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tenant: str, key: str) -> tuple[Record, float] | None:
        """The record and when it was put here."""
        found = self._entries.get((tenant, key))
        if found is not None:
            self._entries.move_to_end((tenant, key))
        return found

    def put(self, tenant: str, key: str, record: Record, now: float) -> None:
        """Keeps a record."""
        self.drop(tenant, key)
        if record.size > self._max_bytes // 8 or not self._max_entries:
            return
        self._entries[(tenant, key)] = (record, now)
        self.size += record.size
        while len(self._entries) > self._max_entries or self.size > self._max_bytes:
            _, (oldest, _) = self._entries.popitem(last=False)
            self.size -= oldest.size

    def drop(self, tenant: str, key: str) -> None:
        """Forgets a record."""
        found = self._entries.pop((tenant, key), None)
        if found is not None:
            self.size -= found[0].size

    def erase(self, tenant: str, owner: str) -> int:
        """Forgets every record of an owner; answers how many there were."""
        found = [place for place, (record, _) in self._entries.items() if place[0] == tenant and record.owner == owner]
        for place in found:
            self.drop(*place)
        return len(found)
