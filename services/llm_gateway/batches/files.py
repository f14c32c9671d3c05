"""Files as use cases. Callers see the files of their tenant; whatever else an id may name is not there."""

import asyncio
import hashlib
import sys
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from services.common.errors import InvalidInput, NotFound, Overloaded
from services.common.identity import Principal
from services.llm_gateway.batches.ports import Contents, FileRecords, Page
from services.llm_gateway.batches.records import INPUT, FileRecord

# OpenAI's limits.
MOST_LISTED = 10_000
MAX_NAME = 255
# An upload of which nothing has come for this long, or whose process died, is swept away. While it comes, that is put off each minute.
ABANDONED = timedelta(minutes=15)
PUT_OFF_S = 60.0
SWEPT_AT_ONCE = 100
# An upload is counted in steps of this many bytes, each before it is written.
STEP_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileRules:
    """How large a file may be, and how long it is kept where nobody says otherwise; what all files of a tenant may take up."""

    most_bytes: int = 200 * 1024 * 1024
    kept: timedelta = timedelta(days=30)
    tenant_bytes: int = 10 * 1024**3
    tenant_files: int = 10_000


@dataclass(frozen=True, slots=True)
class FileTerms:
    """What an upload is for, and how long it is kept; 0 for the rule's time."""

    purpose: str = INPUT
    kept_s: int = 0


def file_name() -> str:
    """A new id."""
    return f"file-{uuid.uuid4().hex}"


def derived_name(prefix: str, *parts: str) -> str:
    """An id that the same parts lead to again, and nobody guesses whose it is."""
    return prefix + hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


class Files:
    """Stores, lists and removes files. Everything raises Overloaded without a store or with a disk that is full."""

    def __init__(self, contents: Contents, records: FileRecords, rules: FileRules = FileRules()) -> None:
        self._contents = contents
        self._records = records
        self.rules = rules

    async def create(
        self, principal: Principal, name: str, pieces: AsyncIterable[bytes], terms: Callable[[], FileTerms], *, file_id: str = ""
    ) -> FileRecord:
        """Stores an upload whole, or nothing of it. `terms` are asked for behind the last piece.

        Raises InvalidInput for a purpose that is none or a tenant without room (FILE_QUOTA_EXCEEDED), ContentTooLarge.
        """
        tenant, file_id = principal.tenant, file_id or file_name()
        await self._announce(tenant, file_id)
        try:
            counted = self._counted(tenant, file_id, self._announced(tenant, file_id, pieces))
            size = await self._contents.write(tenant, file_id, counted, self.rules.most_bytes)
            asked = terms()
            if asked.purpose != INPUT:
                raise InvalidInput.field("purpose", f"must be {INPUT}")
            record = self._record(principal, file_id, name, asked.purpose, size, await self._records.now_ms(), asked.kept_s)
            await self._records.put(record)
        except (Exception, asyncio.CancelledError):
            # Where this fails as well, the sweep finds what was announced. The record may be there: its answer was lost.
            with suppress(Overloaded):
                await self._remove(tenant, file_id)
            raise
        await self._records.settle_due(tenant, file_id, record.expires_ms)
        return record

    async def write_result(
        self, principal: Principal, file_id: str, name: str, purpose: str, pieces: AsyncIterable[bytes], kept_s: int
    ) -> FileRecord:
        """Writes the content of a result file. Its record is for the caller to store, and then to call `kept`, or `discard`."""
        await self._announce(principal.tenant, file_id)
        size = await self._contents.write(principal.tenant, file_id, self._announced(principal.tenant, file_id, pieces), sys.maxsize)
        # Results count, and are never refused: they were paid for.
        await self._records.hold(principal.tenant, file_id, size)
        return self._record(principal, file_id, name, purpose, size, await self._records.now_ms(), kept_s)

    async def kept(self, record: FileRecord) -> None:
        """The record of a result file is stored."""
        await self._records.settle_due(record.tenant, record.id, record.expires_ms)

    async def discard(self, record: FileRecord) -> None:
        """The content of a result file is nobody's."""
        await self._gone(record.tenant, record.id)

    async def keep(self, tenant: str, file_id: str, batch_id: str) -> None:
        """A batch takes the content, and counts for it from the moment on in which the file is deleted."""
        await self._records.keep(tenant, file_id, batch_id)

    async def leave(self, tenant: str, batch_id: str) -> None:
        """The batch needs its content no more."""
        await self._records.leave(tenant, batch_id)

    async def _announce(self, tenant: str, file_id: str) -> None:
        await self._records.announce(tenant, file_id, await self._records.now_ms() + int(ABANDONED.total_seconds() * 1000))

    async def _announced(self, tenant: str, file_id: str, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The pieces; as long as they come, no sweep takes the file for one that nobody finishes."""
        again_at = time.monotonic() + PUT_OFF_S
        async for piece in pieces:
            if time.monotonic() >= again_at:
                await self._announce(tenant, file_id)
                again_at = time.monotonic() + PUT_OFF_S
            yield piece

    async def _counted(self, tenant: str, file_id: str, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The pieces, each counted before it is handed on. Raises InvalidInput where the tenant has no room for it."""
        held, gathered, waiting = 0, [], 0
        await self._hold(tenant, file_id, 0)
        async for piece in pieces:
            gathered.append(piece)
            waiting += len(piece)
            if waiting >= STEP_BYTES:
                held += waiting
                await self._hold(tenant, file_id, held)
                yield b"".join(gathered)
                gathered, waiting = [], 0
        if waiting:
            await self._hold(tenant, file_id, held + waiting)
            yield b"".join(gathered)

    async def _hold(self, tenant: str, file_id: str, size_bytes: int) -> None:
        rules = self.rules
        if not await self._records.hold(tenant, file_id, size_bytes, rules.tenant_bytes, rules.tenant_files):
            raise InvalidInput(
                f"You have exceeded your file storage quota. Organizations are limited to {rules.tenant_bytes} bytes and "
                f"{rules.tenant_files} files. Delete old files, or upload a smaller one.",
                reason="FILE_QUOTA_EXCEEDED",
                metadata={"param": "file"},
            )

    def _record(self, principal: Principal, file_id: str, name: str, purpose: str, size: int, now_ms: int, kept_s: int) -> FileRecord:
        expires_ms = now_ms + (kept_s or int(self.rules.kept.total_seconds())) * 1000
        return FileRecord(file_id, principal.tenant, principal.user, principal.key_id, name[:MAX_NAME], purpose, size, now_ms, expires_ms)

    async def get(self, tenant: str, file_id: str) -> FileRecord:
        """A file of the tenant. Raises NotFound."""
        record = await self._records.get(tenant, file_id)
        if record is None or (record.expires_ms and record.expires_ms <= await self._records.now_ms()):
            raise NotFound("no such file", reason="FILE_NOT_FOUND", metadata={"param": "id"})
        return record

    async def list(self, tenant: str, *, after: str = "", limit: int = MOST_LISTED, purpose: str = "", ascending: bool = False) -> Page:
        """Files of the tenant, newest first unless `ascending`. Raises InvalidInput."""
        if not 1 <= limit <= MOST_LISTED:
            raise InvalidInput.field("limit", f"must be from 1 to {MOST_LISTED}")
        return await self._records.list(tenant, after=after, limit=limit, purpose=purpose, ascending=ascending)

    async def content(self, tenant: str, file_id: str) -> tuple[FileRecord, AsyncIterator[bytes]]:
        """A file and the pieces of its content. Raises NotFound."""
        record = await self.get(tenant, file_id)
        return record, self._contents.read(tenant, file_id)

    async def delete(self, tenant: str, file_id: str) -> None:
        """Removes a file. A batch that has begun over it goes on. Raises NotFound."""
        await self.get(tenant, file_id)
        await self._remove(tenant, file_id)

    async def erase(self, tenant: str, user: str) -> int:
        """Removes all files that a user has uploaded, or that batches made for them; answers how many."""
        records = await self._records.of_user(tenant, user)
        for record in records:
            await self._remove(tenant, record.id)
        return len(records)

    async def sweep(self) -> int:
        """Removes files whose time has come, and what is left of uploads that were broken off; answers how many."""
        removed = 0
        for tenant, file_id in await self._records.due(SWEPT_AT_ONCE):
            record, now_ms = await self._records.get(tenant, file_id), await self._records.now_ms()
            if record is not None and (not record.expires_ms or record.expires_ms > now_ms):
                await self._records.settle_due(tenant, file_id, record.expires_ms)
                continue
            await self._remove(tenant, file_id)
            removed += 1
        return removed

    async def _remove(self, tenant: str, file_id: str) -> None:
        # The record goes first: nobody finds a file whose content is gone. The entry of what is due goes last, so that a
        # removal that was broken off is gone on with.
        await self._records.delete(tenant, file_id)
        await self._gone(tenant, file_id)

    async def _gone(self, tenant: str, file_id: str) -> None:
        await self._contents.delete(tenant, file_id)
        await self._records.free(tenant, file_id)
        await self._records.settle_due(tenant, file_id, 0)
