"""`bulkhead blobs`: files that agents are given, and that they make."""

import hashlib
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.cli.client import ask, segment
from services.cli.connection import Connection
from services.cli.failure import CommandFailure, Conflict, UsageProblem
from services.cli.rendering import note, print_answer, print_json, print_thing, when
from services.cli.terminal import confirm, printable

# As much as the API takes.
MOST_BYTES = 25 * 1024 * 1024
ANY = "application/octet-stream"
TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp", ".mp3": "audio/mpeg",
    ".wav": "audio/wav", ".ogg": "audio/ogg", ".oga": "audio/ogg", ".opus": "audio/ogg", ".pdf": "application/pdf",
    ".txt": "text/plain", ".csv": "text/csv", ".md": "text/markdown", ".json": "application/json", ".zip": "application/zip",
}  # fmt: skip
STDIO = "-"
MOST_NAME_CHARS = 200


def upload_blob(
    connection: Connection, source: str, *, name: str = "", mime_type: str = "", thread: str = "", as_json: bool = False
) -> None:
    """Keeps a file, or what comes on stdin for `-`, and prints the id of the blob. Raises CommandFailure."""
    content = _content(source)
    name = name or ("" if source == STDIO else Path(source).name)
    kind = mime_type or TYPES.get(Path(name).suffix.lower(), ANY)
    blob = ask(connection, lambda api: api.upload("/v1/blobs", content, kind, name=name or None, thread_id=thread or None))
    print_answer(blob, blob["blob_id"], as_json)
    if not as_json:
        until = f", kept until {when(blob['expires_at'])} UTC" if blob["expires_at"] else ""
        note(f"{blob['mime_type']}, {blob['size']} bytes{until}")


def show_blob(connection: Connection, blob_id: str, *, as_json: bool = False) -> None:
    """What is known of a blob, as JSON. Raises CommandFailure."""
    print_thing(ask(connection, lambda api: api.get(_path(blob_id))), as_json)


def download_blob(connection: Connection, blob_id: str, *, output: str = "", force: bool = False, as_json: bool = False) -> None:
    """Writes a blob to `output`, to stdout for `-`, without one to a file of its name in the folder that one stands in. A file is there as
    a whole or not at all; one that is there stays, unless `force`. Raises CommandFailure."""
    if as_json and output == STDIO:
        raise UsageProblem("--json and --output - both write to stdout")
    if output == STDIO and sys.stdout.isatty():
        raise UsageProblem("the bytes of a blob are nothing for a terminal: name a file with --output, or pipe it on")
    blob = ask(connection, lambda api: api.get(_path(blob_id)))
    target = None if output == STDIO else Path(output or _file_name(blob))
    if target is not None and target.is_dir():
        target /= _file_name(blob)
    if target is not None and target.is_file() and not force:
        raise Conflict(f"{target} is there already → name another with --output, or say --force")
    content, _ = ask(connection, lambda api: api.download(f"{_path(blob_id)}/content"))
    if hashlib.sha256(content).hexdigest() != blob["sha256"]:
        raise CommandFailure(f"what came of {blob_id} is not what is kept: its SHA-256 is another")
    if target is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    _write(target, content)
    print_answer({**blob, "path": str(target)}, str(target), as_json)


def link_blob(connection: Connection, blob_id: str, *, lifetime_s: float | None = None, as_json: bool = False) -> None:
    """Prints a URL by which anybody has the blob for a while. Raises CommandFailure."""
    body = {} if lifetime_s is None else {"lifetime_s": round(lifetime_s)}
    link = ask(connection, lambda api: api.post(f"{_path(blob_id)}/links", body))
    if as_json:
        print_json(link)
        return
    url = str(link["url"])
    print(printable(connection.url + url if url.startswith("/") else url))
    note(f"whoever has it has the blob, without a key, until {when(link['expires_at'])} UTC")


def delete_blob(connection: Connection, blob_id: str, *, sure: bool = False, as_json: bool = False) -> None:
    """Deletes a blob; unless `sure`, after it was confirmed. Raises CommandFailure."""
    if not sure:
        confirm(f"delete {blob_id}? Events that name it stay, and lead nowhere.")
    ask(connection, lambda api: api.delete(_path(blob_id)))
    print_answer({"blob_id": blob_id, "deleted": True}, f"{blob_id}: deleted", as_json)


def _path(blob_id: str) -> str:
    return f"/v1/blobs/{segment(blob_id)}"


def _content(source: str) -> bytes:
    try:
        if source == STDIO:
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CommandFailure(f"{source} cannot be read: {getattr(error, 'strerror', None) or 'it is no path'}") from None
    if not content:
        raise UsageProblem(f"{source} is empty")
    if len(content) > MOST_BYTES:
        raise UsageProblem(f"{source} is larger than {MOST_BYTES // 1024**2} MiB, which is the most that a blob may have")
    return content


def _file_name(blob: Mapping[str, Any]) -> str:
    """Somebody else, or a model, has chosen the name: no folder of it counts, and no file that it makes is hidden."""
    given = printable(str(blob.get("name") or "")).replace("\\", "/").replace("\n", " ").replace("\t", " ")
    return given.rpartition("/")[2].strip().lstrip(".")[:MOST_NAME_CHARS] or str(blob["blob_id"]).rpartition("/")[2].lstrip(".") or "blob"


def _write(target: Path, content: bytes) -> None:
    part = target.with_name(f".bulkhead-{secrets.token_hex(8)}")
    try:
        if target.exists() and not target.is_file():
            # A device or a pipe is written to and not replaced.
            target.write_bytes(content)
            return
        try:
            part.write_bytes(content)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise CommandFailure(f"{target} cannot be written: {error.strerror}") from None
