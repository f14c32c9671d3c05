"""Pages of a list that fit into one message, however large what is listed."""

from collections.abc import Callable
from typing import Generic, TypeVar

Entry = TypeVar("Entry")

# A message holds 4 MiB.
MOST_PAGE_BYTES = 3 * 1024 * 1024


class Page(Generic[Entry]):
    """At most `size` entries that `weigh` at most MOST_PAGE_BYTES together; one alone is never too much."""

    def __init__(self, size: int, weigh: Callable[[Entry], int]) -> None:
        self.entries: list[Entry] = []
        self._size, self._weigh, self._bytes = size, weigh, 0

    @property
    def full(self) -> bool:
        """Whether it has as many entries as it may."""
        return len(self.entries) == self._size

    def takes(self, one: Entry) -> bool:
        """Adds an entry; False where it has to stand on the next page."""
        self._bytes += self._weigh(one)
        if self.entries and self._bytes > MOST_PAGE_BYTES:
            return False
        self.entries.append(one)
        return True
