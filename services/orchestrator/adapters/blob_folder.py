"""Blobs as files of a local folder, or of one that all replicas mount."""

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from services.orchestrator.adapters.blobs import BlobsUnavailable

_PART = ".part"
_Answer = TypeVar("_Answer")


class FolderBlobs:
    """Blobs on a folder. A file is written under another name, synced, and then takes its place at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Makes the folder and writes to it once. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = self._folder / f"{secrets.token_hex(8)}{_PART}"
        probe.touch(mode=0o600)
        probe.unlink()

    async def put(self, place: str, name: str, content: bytes) -> None:
        """As Blobs.put."""
        await _disk(lambda: _write(self._folder / place, name, content))

    async def get(self, place: str, name: str) -> bytes | None:
        """As Blobs.get."""
        return await _disk(lambda: _read(self._folder / place / name))

    async def names(self, place: str) -> list[str]:
        """As Blobs.names."""
        return await _disk(lambda: _list(self._folder / place))

    async def delete(self, place: str, names: Sequence[str]) -> None:
        """As Blobs.delete; a place that is empty then goes as well."""
        await _disk(lambda: _delete(self._folder / place, names))


async def _disk(work: Callable[[], _Answer]) -> _Answer:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise BlobsUnavailable(f"{type(error).__name__}: {error.strerror}") from error


def _write(folder: Path, name: str, content: bytes) -> None:
    made = [parent for parent in (folder, folder.parent) if not parent.is_dir()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f"{name}.{secrets.token_hex(4)}{_PART}"
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / name)
    finally:
        # After a success it has another name by now.
        part.unlink(missing_ok=True)
    for changed in (folder, *(parent.parent for parent in made)):
        _sync(changed)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _list(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []


def _delete(folder: Path, names: Sequence[str]) -> None:
    if not folder.is_dir():
        return
    for name in names:
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        # Not empty, or another has removed it.
        if folder.is_dir():
            _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
