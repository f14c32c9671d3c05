"""Where large things are kept that have left the state store: a folder or a bucket, by place and name."""

import hashlib
from collections.abc import Sequence
from typing import Protocol


class BlobsUnavailable(Exception):
    """The store of blobs cannot be used now; the text says why, for the log."""


class Blobs(Protocol):
    """Named contents in places. A place is a path of safe names that nobody outside has chosen. Raises BlobsUnavailable."""

    async def put(self, place: str, name: str, content: bytes) -> None:
        """Keeps a content, whole or not at all; on return it survives a power failure. What had the name before is replaced."""
        ...

    async def get(self, place: str, name: str) -> bytes | None:
        """A content, None where there is none."""
        ...

    async def names(self, place: str) -> list[str]:
        """All names in a place, those too that a `put` which was broken off has left: they begin with the name it was to have and a dot."""
        ...

    async def delete(self, place: str, names: Sequence[str]) -> None:
        """Removes contents of a place; one that is not there changes nothing."""
        ...


def place_of(tenant: str, thread_id: str, kind: str = "") -> str:
    """The place of what a thread has of a kind. Names of callers never become parts of a path."""
    name = hashlib.sha256(f"{tenant}\0{thread_id}".encode()).hexdigest()[:40]
    return f"{name[:2]}/{name}{kind}"
