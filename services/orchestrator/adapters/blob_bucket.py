"""Blobs as objects of a bucket of S3, or of a server that speaks as S3 does."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store

from services.orchestrator.adapters.blobs import BlobsUnavailable

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, S3Config, S3Credential

CONNECT_TIMEOUT = timedelta(seconds=2)
# Server errors, connections that fail and, where nothing can be done twice, timeouts are tried again, after 0.1, 0.2 and 0.4 s.
RETRIES = 3
RETRY_BACKOFF: "BackoffConfig" = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2}
# Rotated files are read again after this time.
CREDENTIALS_KEPT = timedelta(minutes=1)
MOST_SAID = 300
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket and how it is reached.

    endpoint         address of the server, http(s)://host:port; empty: AWS
    path_style       the bucket stands in the path of a request; otherwise its name comes before the host's
    credentials_dir  folder with access_key_id, secret_access_key and perhaps session_token; None: what AWS's variables say
    ca_file          PEM of certificates that the server may be known by besides those of the system
    """

    url: str
    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool = True
    credentials_dir: Path | None = None
    ca_file: Path | None = None

    @property
    def name(self) -> str:
        """The bucket of `s3://bucket/prefix`."""
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        """The prefix of `s3://bucket/prefix`, without slashes around it; may be empty."""
        return urlsplit(self.url).path.strip("/")


class BucketBlobs:
    """Blobs in a bucket. An object is there as a whole or not at all, and durable once its PUT is answered.

    A request that takes longer than `request_timeout_s` has failed, and so has a call that takes longer than `call_timeout_s`, retries
    and all. The signature covers the digest of what is sent, so a server takes nothing that was changed on its way.
    Raises ValueError and OSError for a `ca_file` that has no certificate.
    """

    def __init__(self, bucket: Bucket, *, request_timeout_s: float = 10.0, call_timeout_s: float = 30.0) -> None:
        endpoint = bucket.endpoint.rstrip("/")
        if endpoint and not bucket.path_style:
            endpoint = endpoint.replace("://", f"://{bucket.name}.", 1)
        options: S3Config = {"endpoint": endpoint} if endpoint else {}
        client: ClientConfig = {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": CONNECT_TIMEOUT,
            "timeout": timedelta(seconds=request_timeout_s),
        }
        if bucket.ca_file is not None:
            client["root_certificate"] = bucket.ca_file.read_bytes()
        self._call_timeout_s = call_timeout_s
        self._store = S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            region=bucket.region,
            virtual_hosted_style_request=not bucket.path_style,
            # Many objects in one request are not known to every server that speaks as S3 does.
            disable_bulk_delete=True,
            client_options=client,
            retry_config={"max_retries": RETRIES, "backoff": RETRY_BACKOFF, "retry_timeout": timedelta(seconds=call_timeout_s)},
            credential_provider=_CredentialFiles(bucket.credentials_dir) if bucket.credentials_dir is not None else None,
            config=options,
        )

    async def put(self, place: str, name: str, content: bytes) -> None:
        """As Blobs.put."""
        await self._ask(self._store.put_async(f"{place}/{name}", content, use_multipart=False))

    async def get(self, place: str, name: str) -> bytes | None:
        """As Blobs.get."""
        content = await self._ask(self._read(f"{place}/{name}"))
        if content is None:
            # Of a bucket that is missing the same is said; listing tells them apart.
            await self.names(place)
        return content

    async def names(self, place: str) -> list[str]:
        """As Blobs.names."""
        return await self._ask(self._list(f"{place}/"))

    async def delete(self, place: str, names: Sequence[str]) -> None:
        """As Blobs.delete."""
        await self._ask(self._store.delete_async([f"{place}/{name}" for name in names]))

    async def _read(self, key: str) -> bytes | None:
        try:
            found = await self._store.get_async(key)
        except FileNotFoundError:
            return None
        return bytes(await found.bytes_async())

    async def _list(self, prefix: str) -> list[str]:
        return [str(found["path"]).rpartition("/")[2] async for page in self._store.list(prefix) for found in page]

    async def _ask(self, call: Awaitable[_Answer]) -> _Answer:
        try:
            async with asyncio.timeout(self._call_timeout_s):
                return await call
        except (BaseError, OSError) as error:
            # The library's text goes on over many lines, with what it retried.
            said = str(error).partition("\n")[0][:MOST_SAID] or "no answer in time"
            raise BlobsUnavailable(f"{type(error).__name__}: {said}") from error


class _CredentialFiles:
    """Credentials from the files of a mounted Secret, which may be rotated at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self) -> "S3Credential":
        token = self._folder / "session_token"
        return {
            "access_key_id": (self._folder / "access_key_id").read_text().strip(),
            "secret_access_key": (self._folder / "secret_access_key").read_text().strip(),
            "token": token.read_text().strip() if token.exists() else None,
            "expires_at": datetime.now(UTC) + CREDENTIALS_KEPT,
        }
