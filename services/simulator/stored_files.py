"""Files that clients upload for batches and batches leave behind; in memory, and bounded."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.simulator.refusals import Refused

MAX_FILES = 1_000
MAX_FILE_BYTES = 50 * 1024 * 1024
MAX_STORED_BYTES = 256 * 1024 * 1024
_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?\bboundary="?([^";,]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb'\bname="([^"]*)"')
_FILE_NAME = re.compile(rb'\bfilename="([^"]*)"')


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file. `created_s` is the epoch."""

    id: str
    name: str
    purpose: str
    created_s: int
    content: bytes

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_s,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": None,
        }


class FileStore:
    """All files by id."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}
        self._stored_bytes = 0

    def add(self, file_id: str, name: str, purpose: str, content: bytes) -> StoredFile:
        """Keep a file; raises Refused (400) where there is no room for it."""
        if len(self._files) >= MAX_FILES or self._stored_bytes + len(content) > MAX_STORED_BYTES:
            raise Refused("There is no room for more files; delete some.", code="storage_full")
        stored = StoredFile(file_id, name, purpose, int(time.time()), content)
        self._files[file_id] = stored
        self._stored_bytes += len(content)
        return stored

    def get(self, file_id: str) -> StoredFile:
        """The file; raises Refused (404) where there is none."""
        stored = self._files.get(file_id)
        if stored is None:
            raise Refused(f"No such File object: {file_id[:100]}", status=404, param="id")
        return stored

    def remove(self, file_id: str) -> None:
        """Forget the file; raises Refused (404) where there is none."""
        self._stored_bytes -= len(self.get(file_id).content)
        del self._files[file_id]

    def all(self) -> Iterable[StoredFile]:
        """Every file, oldest first."""
        return self._files.values()


@dataclass(frozen=True, slots=True)
class Upload:
    """What a form brought."""

    name: str
    purpose: str
    content: bytes


def parse_upload(content_type: str, body: bytes) -> Upload:
    """The fields `file` and `purpose` of a multipart form; raises Refused (400)."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise Refused("Could not parse multipart form.")
    fields: dict[bytes, tuple[bytes, bytes]] = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + found.group(1).encode("latin-1"))[1:]:
        head, blank, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if blank and name:
            file_name = _FILE_NAME.search(head)
            fields[name.group(1)] = (file_name.group(1) if file_name else b"", content)
    if b"purpose" not in fields:
        raise Refused("'purpose' is a required property", param="purpose")
    if b"file" not in fields:
        raise Refused("'file' is a required property", param="file")
    purpose = fields[b"purpose"][1].decode("utf-8", "replace")
    if purpose not in ("batch", "user_data"):
        raise Refused("'purpose' must be batch or user_data here.", param="purpose")
    name_bytes, content = fields[b"file"]
    return Upload(name_bytes.decode("utf-8", "replace") or "upload", purpose, content)


def listed(items: Iterable[Mapping[str, Any]], *, limit: int, after: str | None) -> dict[str, Any]:
    """OpenAI's list object: newest first, from behind `after`."""
    newest = list(items)[::-1]
    if after is not None:
        start = next((index for index, item in enumerate(newest) if item["id"] == after), len(newest) - 1) + 1
        newest = newest[start:]
    page = newest[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, **ends, "has_more": len(newest) > len(page)}
