"""The folder of one batch while it runs: its input, and a journal of each epoch. All files of a tenant are on one disk.

Methods that touch the disk block and belong into a thread, but for those of the journal, which brings its own.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from services.common.errors import NotFound
from services.common.tasks import end
from services.llm_gateway.adapters.file_store import DiskContents, sync_folder, tenant_folder, told
from services.llm_gateway.batches import journal as journals
from services.llm_gateway.batches.journal import Entry, Found, Results
from services.llm_gateway.batches.ports import LeaseLost
from services.llm_gateway.batches.requests import Scan, scanned, split_lines
from services.llm_gateway.batches.threads import DiskThreads

_JOURNAL = re.compile(r"(\d+)\.journal\Z")
# How long a journal that could not be written waits before it tries again.
FULL_PAUSE_S = 1.0
log = structlog.get_logger("bulkhead.batches")


class Workspace:
    """What the disk holds of one batch."""

    def __init__(self, contents: DiskContents, tenant: str, batch_id: str) -> None:
        self._contents = contents
        self._tenant = tenant
        self.folder = tenant_folder(contents.folder, tenant) / "running" / batch_id
        self._input = self.folder / "input.jsonl"
        self._journals: list[Path] = []

    def begin(self, input_file_id: str) -> None:
        """Takes the input: what happens to the uploaded file from here on does not matter. Raises NotFound."""
        with told():
            if self._input.exists():
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            source = self._contents.path(self._tenant, input_file_id)
            if not source.exists():
                raise NotFound("the input file is gone")
            try:
                os.link(source, self._input)
            except FileExistsError:
                return
            except OSError:
                # A file system without links.
                part = self.folder / "input.part"
                shutil.copyfile(source, part)
                part.rename(self._input)
            sync_folder(self.folder)

    def scan(self, endpoint: str) -> Scan:
        """Reads the whole input."""
        with told(), self._input.open("rb") as file:
            return scanned(split_lines(file), endpoint)

    def line(self, offset: int, length: int) -> bytes:
        """One request of the input."""
        with told(), self._input.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def results(self, total: int) -> Results:
        """Reads the journals of all epochs, the oldest first."""
        found = Results(total)
        with told():
            numbered = [(int(match[1]), path) for path in self.folder.iterdir() if (match := _JOURNAL.match(path.name))]
            self._journals = [path for _, path in sorted(numbered)]
            for number, path in enumerate(self._journals):
                with path.open("rb") as file:
                    for entry in journals.read(file):
                        found.add(number, entry)
        return found

    def journal(self, epoch: int, results: Results) -> "JournalFile":
        """Begins the journal of this epoch; its entries go to `results` once they are on the disk."""
        path = self.folder / f"{epoch}.journal"
        with told():
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            sync_folder(self.folder)
        self._journals.append(path)
        return JournalFile(self._contents.threads, file, len(self._journals) - 1, results)

    def merged(self, scan: Scan, results: Results, wants_failed: bool) -> Generator[tuple[int, bytes | None], None, None]:
        """Pairs of line and result in the order of the input: those that failed, or those that did not. A line without any is failed,
        and its result None.
        """
        open_files: dict[int, BinaryIO] = {}
        try:
            for number in range(len(scan)):
                place = results.place(number)
                if place is None:
                    if wants_failed:
                        yield number, None
                    continue
                journal, offset, length, failed = place
                if failed is not wants_failed:
                    continue
                if journal not in open_files:
                    open_files[journal] = self._journals[journal].open("rb")
                open_files[journal].seek(offset)
                yield number, open_files[journal].read(length)
        finally:
            for file in open_files.values():
                file.close()

    def scratch(self, name: str) -> BinaryIO:
        """An empty file for what goes to a provider."""
        with told():
            return (self.folder / name).open("w+b")

    def remove(self) -> None:
        """Forgets it all."""
        shutil.rmtree(self.folder, ignore_errors=True)


class JournalFile:
    """Appends entries; those that come together share one sync. An entry counts when `append` has returned."""

    def __init__(self, threads: DiskThreads, file: int, number: int, results: Results) -> None:
        self._threads = threads
        self._file = file
        self._number = number
        self._results = results
        self._size = 0
        self._waiting: list[tuple[bytes, asyncio.Future]] = []
        self._writer: asyncio.Task | None = None
        self._closed = False

    async def append(self, entry: Entry) -> None:
        """Returns when the entry is on the disk. A full disk is waited for. Raises LeaseLost after `close`."""
        if self._closed:
            raise LeaseLost
        future: asyncio.Future = asyncio.get_running_loop().create_future()
        self._waiting.append((entry.packed(), future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="batch-journal")
        await future

    async def close(self) -> None:
        """Ends it; what waits for the disk is given up."""
        self._closed = True
        await end((self._writer,))
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(LeaseLost())
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    async def _write(self) -> None:
        while self._waiting:
            batch = self._waiting[:]
            data = b"".join(packed for packed, _ in batch)
            try:
                await self._threads.run(self._synced, data)
            except OSError as error:
                log.error("batch_journal_blocked", error=error.strerror, again_in_s=FULL_PAUSE_S)
                await asyncio.sleep(FULL_PAUSE_S)
                continue
            del self._waiting[: len(batch)]
            for packed, future in batch:
                (found,) = journals.read([packed])
                placed = Found(found.number, found.failed, found.usage, self._size + found.offset, found.length)
                self._results.add(self._number, placed)
                self._size += len(packed)
                if not future.done():
                    future.set_result(None)

    def _synced(self, data: bytes) -> None:
        try:
            view, at = memoryview(data), self._size
            while view:
                wrote = os.pwrite(self._file, view, at)
                view, at = view[wrote:], at + wrote
            os.fdatasync(self._file)
        except OSError:
            # What was written of it must not stand before what is written next.
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
