"""`bulkhead ingest`: Markdown and text files into the documents that agents search."""

import asyncio
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.client import Api
from services.cli.connection import Connection
from services.cli.failure import FAILED, CommandFailure, Denied, Unreachable
from services.cli.rendering import print_json_lines
from services.cli.terminal import printable

CONTENT_TYPES = {".md": "text/markdown", ".markdown": "text/markdown", ".txt": "text/plain"}
# What the gateway takes as one document.
MAX_BYTES = 2 * 1024 * 1024
MAX_ID_CHARS = 128
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Source:
    """A file to ingest; `title` is its path as it will be cited, `document_id` stays the same for the same path."""

    path: Path
    title: str

    @property
    def document_id(self) -> str:
        """The path in the letters that an id may have; ingesting the file again replaces the version before."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.title).strip(".-") or "document"
        digest = hashlib.sha256(self.title.encode()).hexdigest()[:8]
        # Where letters were replaced or cut, the digest keeps two paths apart.
        return name if name == self.title and len(name) <= MAX_ID_CHARS else f"{name[: MAX_ID_CHARS - 9]}-{digest}"


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """The files, folders taken with all that is below them but hidden folders. Raises CommandFailure for what is not there."""
    found: dict[Path, Source] = {}
    for path in paths:
        if not path.exists():
            raise CommandFailure(f"{path}: no such file or folder")
        if path.is_file() and path.suffix.lower() not in CONTENT_TYPES:
            raise CommandFailure(f"{path}: only {', '.join(CONTENT_TYPES)} can be ingested")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        for file in files:
            if file.suffix.lower() in CONTENT_TYPES:
                found.setdefault(file.resolve(), Source(file, _title(file)))
    if not found:
        raise CommandFailure(f"no {' or '.join(CONTENT_TYPES)} file in {', '.join(map(str, paths))}")
    return list(found.values())


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _title(file: Path) -> str:
    absolute = file.resolve()
    here = Path.cwd().resolve()
    return (absolute.relative_to(here) if absolute.is_relative_to(here) else Path(absolute.name)).as_posix()[:512]


def ingest(connection: Connection, sources: Sequence[Source], *, as_json: bool = False) -> int:
    """Sends every file; answers the exit status, 1 when one was refused. With `as_json` tells of each as JSON. Raises CommandFailure
    when none can be sent."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("ingesting", total=len(sources))
        sent = asyncio.run(_send_all(connection, sources, lambda: progress.advance(bar)))
    refused = [one for one in sent if one.refused]
    if as_json:
        print_json_lines(one.as_json() for one in sent)
        return FAILED if refused else 0
    for one in refused:
        print(printable(f"{one.source.path}: {one.refused}"), file=sys.stderr)
    done, passages = len(sources) - len(refused), sum(one.passages for one in sent)
    print(f"{done} of {len(sources)} {'document' if len(sources) == 1 else 'documents'} ingested, {passages} passages")
    return FAILED if refused else 0


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a file. `refused` says why not."""

    source: Source
    passages: int = 0
    refused: str = ""

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        source = {"path": str(self.source.path), "document_id": self.source.document_id, "title": self.source.title}
        return {**source, "passages": self.passages, "refused": self.refused or None}


async def _send_all(connection: Connection, sources: Sequence[Source], advance: Callable[[], None]) -> list[Sent]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def send(api: Api, source: Source) -> Sent:
        async with gate:
            try:
                return Sent(source, await _send(api, source))
            except (Unreachable, Denied):
                raise
            except CommandFailure as failure:
                return Sent(source, refused=str(failure))
            finally:
                advance()

    async with Api(connection) as api:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(send(api, source)) for source in sources]
        except* CommandFailure as failures:
            # They all tell the same: the first speaks for them.
            raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _send(api: Api, source: Source) -> int:
    raw = await asyncio.to_thread(source.path.read_bytes)
    if len(raw) > MAX_BYTES:
        raise CommandFailure(f"{len(raw) / 1_048_576:.1f} MiB; a document may have {MAX_BYTES // 1_048_576} MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CommandFailure("is not UTF-8") from None
    if not text.strip():
        raise CommandFailure("is empty")
    content_type = CONTENT_TYPES[source.path.suffix.lower()]
    body = {"title": source.title, "content_type": content_type, "text": text, "document_id": source.document_id}
    document = await api.post("/v1/documents", body)
    return int((document.get("document") or document).get("chunk_count") or 0)
