"""L3: answers in a folder. They survive a restart; the folder has a bound in bytes; a full disk is no caller's error.

One file a record: `<folder>/<tenant digest>/<key>-<owner>-<end in seconds of the epoch>`, written beside its place and moved
there, behind a digest of its content: what a crash left half written is a miss. Names hold all that must be known to look
up, to throw out and to erase, so that only a hit reads a file. All file work runs on one thread. Several processes may share
a folder: each sees what the others wrote when it looks through the folder again, which it does now and then.
"""

import asyncio
import hashlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from services.common.errors import Overloaded
from services.llm_gateway.cache_telemetry import counted

log = structlog.get_logger("bulkhead.llm")
MAX_BYTES = 1024 * 1024 * 1024
MAX_PENDING = 256
# A read that takes longer is a miss: the disk must not be slower than the model.
READ_TIMEOUT_S = 0.25
# After a failed write (a full disk, most likely) nothing is written for a while.
PAUSE_S = 30.0
RESCAN_WRITES = 512
_DIGEST = 16
_TEMPORARY = ".tmp"
T = TypeVar("T")
_Place = tuple[str, str]


@dataclass(slots=True)
class _File:
    owner: str
    ends: int
    size: int

    def name(self, key: str) -> str:
        return f"{key}-{self.owner}-{self.ends}"


class DiskCache:
    """A level of the cache in `folder`, which is made. Call `start` before use and `stop` after."""

    name = "disk"

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk-cache")
        # Only the thread touches these two.
        self._files: OrderedDict[_Place, _File] = OrderedDict()
        self._size = 0
        self._since_scan = 0
        self._pending = 0
        self._silent_until = 0.0

    @property
    def size(self) -> int:
        """Bytes that are known to be kept."""
        return self._size

    async def start(self) -> None:
        """Looks through the folder. Raises OSError when it cannot be made or read."""
        await self._run(self._scan)

    async def stop(self) -> None:
        """Finishes what is being written."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def get(self, tenant: str, keys: Sequence[str]) -> list[bytes | None] | None:
        """Records by key; None when the disk is too slow."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await self._run(self._read, _tenant(tenant), keys)
        except (OSError, TimeoutError):
            counted(self.name, "error")
            return None

    def put(self, tenant: str, entries: Sequence[tuple[str, bytes]], owner: str, keep_s: float) -> None:
        """Keeps records; does not wait."""
        if self._pending >= MAX_PENDING or time.monotonic() < self._silent_until:
            counted(self.name, "refused", len(entries))
            return
        self._pending += 1
        ends = int(self._clock() + keep_s) + 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._write, _tenant(tenant), entries, owner, ends)
        future.add_done_callback(self._written)

    def _written(self, future: "asyncio.Future[None]") -> None:
        self._pending -= 1
        error = None if future.cancelled() else future.exception()
        if error is None:
            counted(self.name, "stored")
            return
        if not isinstance(error, OSError):
            raise error
        self._silent_until = time.monotonic() + PAUSE_S
        counted(self.name, "error")
        log.warning("disk_cache_failed", error=type(error).__name__, code=error.errno, pause_s=PAUSE_S)

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes the records of an owner, those of other processes too. Raises Overloaded when the disk fails."""
        try:
            return await self._run(self._erase, _tenant(tenant), owner)
        except OSError as error:
            raise Overloaded("the disk cache cannot be written", reason="STORE_UNAVAILABLE", metadata={"store": "disk"}) from error

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    # On the thread.

    def _scan(self) -> None:
        # Answers are nobody else's to read on the machine.
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found: list[tuple[float, _Place, _File]] = []
        now = self._clock()
        for tenant in self._folder.iterdir():
            if not tenant.is_dir():
                continue
            for entry in os.scandir(tenant):
                # A file that went away meanwhile is none, and one with another name is not ours.
                with suppress(OSError, ValueError):
                    state = entry.stat()
                    if entry.name.endswith(_TEMPORARY):
                        # Of a process that is gone; a write takes no minute.
                        if now - state.st_mtime > 60:
                            os.unlink(entry.path)
                        continue
                    key, owner, ends = entry.name.split("-")
                    found.append((state.st_mtime, (tenant.name, key), _File(owner, int(ends), state.st_size)))
        found.sort(key=lambda item: item[0])
        self._files, self._size, self._since_scan = OrderedDict(), 0, 0
        for _, place, file in found:
            self._drop(place)  # an older file of another process under the same key
            self._files[place] = file
            self._size += file.size
            if file.ends <= now:
                self._drop(place)
        self._make_room()

    def _read(self, tenant: str, keys: Sequence[str]) -> list[bytes | None]:
        return [self._read_one((tenant, key)) for key in keys]

    def _read_one(self, place: _Place) -> bytes | None:
        file = self._files.get(place)
        if file is None:
            return None
        if file.ends > self._clock():
            with suppress(OSError):
                raw = self._path(place, file).read_bytes()
                if hashlib.blake2b(raw[_DIGEST:], digest_size=_DIGEST).digest() == raw[:_DIGEST]:
                    self._files.move_to_end(place)
                    return raw[_DIGEST:]
        self._drop(place)
        return None

    def _write(self, tenant: str, entries: Sequence[tuple[str, bytes]], owner: str, ends: int) -> None:
        (self._folder / tenant).mkdir(parents=True, exist_ok=True, mode=0o700)
        for key, record in entries:
            place, file = (tenant, key), _File(owner, ends, len(record) + _DIGEST)
            if file.size > self._max_bytes // 8:
                continue
            self._drop(place)
            temporary = self._folder / tenant / f"{secrets.token_hex(8)}{_TEMPORARY}"
            try:
                temporary.write_bytes(hashlib.blake2b(record, digest_size=_DIGEST).digest() + record)
                temporary.replace(self._path(place, file))
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self._files[place] = file
            self._size += file.size
            self._since_scan += 1
        if self._since_scan >= RESCAN_WRITES:
            self._scan()
        self._make_room()

    def _make_room(self) -> None:
        while self._size > self._max_bytes and self._files:
            self._drop(next(iter(self._files)))

    def _erase(self, tenant: str, owner: str) -> int:
        self._scan()
        found = [place for place, file in self._files.items() if place[0] == tenant and file.owner == owner]
        for place in found:
            self._path(place, self._files[place]).unlink(missing_ok=True)
            self._drop(place)
        return len(found)

    def _drop(self, place: _Place) -> None:
        file = self._files.pop(place, None)
        if file is not None:
            self._size -= file.size
            with suppress(OSError):
                self._path(place, file).unlink(missing_ok=True)

    def _path(self, place: _Place, file: _File) -> Path:
        return self._folder / place[0] / file.name(place[1])


def _tenant(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]
