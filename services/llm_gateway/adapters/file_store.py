"""Contents of files, in a folder that all replicas share. Implements batches.ports.Contents.

<folder>/<digest of the tenant>/<file id>            a content; it is there whole, or not at all
<folder>/<digest of the tenant>/running/<batch id>/  what a batch needs while it runs (batch_workspace.py)
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from services.common.errors import BulkheadError, NotFound, Overloaded
from services.llm_gateway.batches.ports import ContentTooLarge
from services.llm_gateway.batches.threads import DiskThreads

# Small parts of an upload are gathered, so that each hop to a thread writes something worth it.
GATHERED_BYTES = 1024 * 1024
READ_BYTES = 256 * 1024
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
# EFBIG is the limit of one file (RLIMIT_FSIZE, or of the file system).
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PART = ".part"


def storage_error(error: OSError) -> BulkheadError:
    """The domain error of a disk that does not take or give what it should."""
    if error.errno in _FULL:
        # The failure class tells SDKs that sending it all again at once is no use.
        return Overloaded(
            "there is no room for more files on the gateway's disk", reason="STORAGE_FULL", metadata={"failure_class": "storage_full"}
        )
    return Overloaded("the gateway's disk cannot be used", reason="STORAGE_UNAVAILABLE", retry_after_s=5.0)


@contextmanager
def told() -> Iterator[None]:
    """Turns errors of the disk into domain errors."""
    try:
        yield
    except OSError as error:
        raise storage_error(error) from error


def tenant_folder(folder: Path, tenant: str) -> Path:
    """Where a tenant's files are; names of tenants never become parts of a path."""
    return folder / hashlib.sha256(tenant.encode()).hexdigest()[:32]


def sync_folder(folder: Path) -> None:
    """Makes sure that the names in a folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DiskContents:
    """Contents as files. Every write goes to a name of its own, is synced, and then takes its place at once."""

    def __init__(self, folder: Path, threads: DiskThreads) -> None:
        self.folder = folder
        self.threads = threads

    def path(self, tenant: str, file_id: str) -> Path:
        """Where a content stands. Raises NotFound for what can be no id."""
        if not _ID.match(file_id):
            raise NotFound("no such file")
        return tenant_folder(self.folder, tenant) / file_id

    async def write(self, tenant: str, file_id: str, pieces: AsyncIterable[bytes], most: int) -> int:
        """As Contents.write."""
        path = self.path(tenant, file_id)
        part = path.with_name(f"{file_id}.{secrets.token_hex(4)}{_PART}")
        with told():
            file = await self.threads.run(_opened, part)
        try:
            size, gathered, waiting = 0, [], 0
            with told():
                async for piece in pieces:
                    size += len(piece)
                    if size > most:
                        raise ContentTooLarge
                    gathered.append(piece)
                    waiting += len(piece)
                    if waiting >= GATHERED_BYTES:
                        await self.threads.run(_write_all, file, b"".join(gathered))
                        gathered, waiting = [], 0
                await self.threads.run(_completed, file, b"".join(gathered), part, path)
            return size
        finally:
            file.close()
            # After a success it has another name by now.
            with suppress(OSError):
                part.unlink()

    async def read(self, tenant: str, file_id: str) -> AsyncIterator[bytes]:
        """As Contents.read."""
        path = self.path(tenant, file_id)
        file = await self.threads.run(_open, path)
        try:
            with told():
                while piece := await self.threads.run(file.read, READ_BYTES):
                    yield piece
        finally:
            file.close()

    async def delete(self, tenant: str, file_id: str) -> bool:
        """As Contents.delete."""
        return await self.threads.run(_deleted, self.path(tenant, file_id))


def _opened(path: Path) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _open(path: Path) -> FileIO:
    with told():
        try:
            return FileIO(path, "rb")
        except FileNotFoundError:
            raise NotFound("the file has no content any more") from None


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _completed(file: FileIO, rest: bytes, part: Path, path: Path) -> None:
    _write_all(file, rest)
    os.fsync(file.fileno())
    part.rename(path)
    sync_folder(path.parent)


def _deleted(path: Path) -> bool:
    with told():
        if path.parent.is_dir():
            for part in path.parent.glob(f"{path.name}.*{_PART}"):
                part.unlink(missing_ok=True)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True
