"""Segments as files of a local folder, or of one that all replicas mount."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from services.common.errors import Overloaded
from services.orchestrator.segments import Segment, damaged

_PART = ".part"
_Answer = TypeVar("_Answer")
log = structlog.get_logger("bulkhead.segments")


class SegmentFiles:
    """SegmentStore on a folder. A file is written under another name, synced, and then takes its place at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Makes the folder and writes to it once. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = self._folder / f"{secrets.token_hex(8)}{_PART}"
        probe.touch(mode=0o600)
        probe.unlink()

    async def put(self, tenant: str, thread_id: str, segment: Segment, content: bytes) -> None:
        """As SegmentStore.put."""
        await self._disk(lambda: _write(self._path(tenant, thread_id), segment, content))

    async def get(self, tenant: str, thread_id: str, segment: Segment) -> bytes | None:
        """As SegmentStore.get."""
        return await self._disk(lambda: _read(self._path(tenant, thread_id) / segment.encode()))

    async def drop(self, tenant: str, thread_id: str, before: int) -> None:
        """As SegmentStore.drop."""
        await self._disk(lambda: _drop(self._path(tenant, thread_id), before))

    def _path(self, tenant: str, thread_id: str) -> Path:
        # Names of callers never become parts of a path.
        name = hashlib.sha256(f"{tenant}\0{thread_id}".encode()).hexdigest()[:40]
        return self._folder / name[:2] / name

    async def _disk(self, work: Callable[[], _Answer]) -> _Answer:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            log.warning("segments_unavailable", error=type(error).__name__, errno=error.errno)
            raise Overloaded(
                "the store of older events cannot be used", reason="SEGMENTS_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "segments"}
            ) from error


def _write(folder: Path, segment: Segment, content: bytes) -> None:
    made = [parent for parent in (folder, folder.parent) if not parent.is_dir()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f"{segment.encode()}.{secrets.token_hex(4)}{_PART}"
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / segment.encode())
    finally:
        # After a success it has another name by now.
        part.unlink(missing_ok=True)
    for changed in (folder, *(parent.parent for parent in made)):
        _sync(changed)
    if _read(folder / segment.encode()) != content:
        # The log is deleted on the strength of this file.
        raise damaged(segment)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _drop(folder: Path, before: int) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if Segment.decode(path.name.partition(".")[0]).last < before:
            path.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        # Not empty: there are later segments.
        _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
