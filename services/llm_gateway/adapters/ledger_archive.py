"""Ledgers as files: `<folder>/<tenant>/<YYYY-MM-DD>.jsonl`, one line of JSON a line of the ledger, each exactly once.

archive = LedgerArchive(state, Path("/var/lib/bulkhead/ledger"))
await archive.start()

Each line carries its `cursor`; the last whole line of the newest file says where to go on, so that no second record of the progress
can disagree with the files. Users stand there under the pseudonyms of the ledger: who is erased there is erased here.
"""

import asyncio
import fcntl
import hashlib
import os
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import orjson
import redis.asyncio as redis
import structlog
from redis.exceptions import RedisError

from services.common.tasks import end
from services.common.valkey import Library
from services.common.valkey_replicas import Lasting
from services.llm_gateway.accounting.plans import prefix
from services.llm_gateway.adapters.ledger import LEDGERS

WRITTEN_AT_ONCE = 1_000
# File systems take 255 bytes.
MOST_FOLDER_CHARS = 240
log = structlog.get_logger("bulkhead.purse")


class LedgerArchive:
    """Copies ledgers into files every `every_s` seconds. One process writes a folder; another one with it waits for the lock.

    It must not fall further behind than the ledger is long (LedgerBounds.lines): what was trimmed is in no file. A line is copied once
    `replicas` have it: one that is lost with its primary is booked anew, under a number of its own.
    """

    def __init__(self, client: redis.Redis, folder: Path, *, every_s: float = 10.0, replicas: int = 0) -> None:
        self._client = client
        self._lasting = Lasting(Library(client, Path(__file__).with_name("purse.lua")), replicas)
        self._folder = folder
        self._every_s = every_s
        self._cursors: dict[str, str] = {}
        self._lock: TextIO | None = None
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        """Starts copying. Raises OSError for a folder that cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._task = asyncio.create_task(self._run(), name="ledger-archive")

    async def stop(self) -> None:
        """Copies what is there, and ends."""
        await end((self._task,))
        try:
            await self.copy()
        except (RedisError, OSError) as error:
            log.warning("ledger_archive_failed", error=type(error).__name__)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _run(self) -> None:
        while True:
            try:
                await self.copy()
            except (RedisError, OSError) as error:
                # The files are read again before the next attempt: they may hold part of what was written.
                self._cursors.clear()
                log.warning("ledger_archive_failed", error=type(error).__name__)
            await asyncio.sleep(self._every_s)

    async def copy(self) -> int:
        """Copies what is new; answers how many lines that were. Raises redis errors and OSError."""
        if not self._locked():
            return 0
        copied = 0
        for name in sorted(await self._client.smembers(LEDGERS)):
            copied += await self._copy(name.decode())
        return copied

    def _locked(self) -> bool:
        if self._lock is None:
            lock = (self._folder / ".lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                return False
            self._lock = lock
        return True

    async def _copy(self, tenant: str) -> int:
        folder, copied = self._folder / _folder_name(tenant), 0
        if tenant not in self._cursors:
            self._cursors[tenant] = await asyncio.to_thread(_last_cursor, folder)
        while True:
            cursor = self._cursors[tenant]
            entries = await self._client.xrange(prefix(tenant) + "ledger", f"({cursor}" if cursor else "-", "+", WRITTEN_AT_ONCE)
            if not entries:
                return copied
            if self._lasting.replicas:
                await self._lasting.submit("purse_look_v1", [prefix(tenant) + "user:"], [b"\x00"])
            # A cancellation must not come between the writing and the knowledge of it.
            await asyncio.shield(asyncio.to_thread(_append, folder, entries))
            self._cursors[tenant] = entries[-1][0].decode()
            copied += len(entries)


def _folder_name(tenant: str) -> str:
    """Percent-encoded, no step upwards and no hidden name; of what is too long for a file system the beginning and a digest."""
    name = quote(tenant, safe=" ")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) <= MOST_FOLDER_CHARS:
        return name
    digest = hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()
    return f"{name[: MOST_FOLDER_CHARS - len(digest) - 1]}-{digest}"


def _day(id_: bytes) -> str:
    return datetime.fromtimestamp(int(id_.partition(b"-")[0]) / 1000, UTC).date().isoformat()


def _append(folder: Path, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for day, lines in groupby(entries, key=lambda entry: _day(entry[0])):
        with (folder / f"{day}.jsonl").open("ab") as file:
            file.write(b"".join(_line(id_, fields[b"l"]) for id_, fields in lines))
            file.flush()
            os.fsync(file.fileno())


def _line(id_: bytes, line: bytes) -> bytes:
    return b'{"cursor":"%b","at":%b,' % (id_, id_.partition(b"-")[0]) + line[1:] + b"\n"


def _last_cursor(folder: Path) -> str:
    """Where the files of a tenant end; half a line, which a crash has left, is cut off."""
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) != len(raw):
            os.truncate(path, len(whole))
        if whole:
            return orjson.loads(whole[whole.rfind(b"\n", 0, -1) + 1 :])["cursor"]
    return ""
