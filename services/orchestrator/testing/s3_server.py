"""A server that speaks as S3 does, as a process of its own, and a proxy before it that has faults.

The server checks signatures, and keeps an object as a file of its key.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.common import testing

BUCKET, KEY, SECRET = "segments-of-tests", "a-key-of-tests", "a-secret-of-tests"
_AWAY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass
class S3Server:
    """A running server with one bucket, and what is needed to use it."""

    port: int
    folder: Path
    credentials: Path
    process: testing.Process

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def objects(self) -> list[Path]:
        """The files of all objects."""
        return sorted(path for path in (self.folder / BUCKET).rglob("*") if path.is_file() and ".nanio" not in str(path))

    def settings(self, prefix: str, endpoint: str = "") -> dict:
        """Settings of an orchestrator whose segments are here."""
        return {
            "segments_url": f"s3://{BUCKET}/{prefix}", "segments_endpoint": endpoint or self.endpoint,
            "segments_credentials_dir": self.credentials,
        }  # fmt: skip


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server with an empty bucket; what it keeps lies below `folder`."""
    (folder / "data" / BUCKET).mkdir(parents=True)
    port, credentials = testing.free_port(), credentials_in(folder / "credentials")
    command = testing.python("-m", "nanio", "serve", "--data-dir", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port))
    process = testing.Process(command, env={"NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET}, log=folder / "s3.log")
    try:
        testing.wait_for_port(port, process)
        yield S3Server(port, folder / "data", credentials, process)
    finally:
        process.stop()


def credentials_in(folder: Path, key: str = KEY, secret: str = SECRET) -> Path:
    """A folder as a Secret would be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "access_key_id").write_text(f"{key}\n")
    (folder / "secret_access_key").write_text(secret)
    return folder


@dataclass
class Faults:
    """What a proxy does to the requests that come, in turn; as it is told nothing, it passes them on.

    away: answered 503 and not passed on. silent: passed on, never answered. torn: half of the answer's body, then the end.
    """

    endpoint: str
    next: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)


@asynccontextmanager
async def faulty(server: S3Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[Faults]:
    """A proxy before the server, one request a connection; with `tls` it is reached over that."""
    tasks: set[asyncio.Task] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await _one(reader, writer)
        writer.close()
        tasks.discard(task)

    async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(_length(head))
        fault = made.next.pop(0) if made.next else ""
        made.seen.append(f"{head.split(b' ', 1)[0].decode()} {fault}".strip())
        if fault == "away":
            writer.write(_AWAY)
            return
        to, back = await asyncio.open_connection("127.0.0.1", server.port)
        back.write(head[:-2] + b"connection: close\r\n\r\n" + body)
        answer = await to.read()
        back.close()
        if fault == "silent":
            await asyncio.Event().wait()
        if fault == "torn":
            start = answer.index(b"\r\n\r\n") + 4
            answer = answer[: start + (len(answer) - start) // 2]
        writer.write(answer)
        await writer.drain()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made = Faults(f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    try:
        yield made
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
