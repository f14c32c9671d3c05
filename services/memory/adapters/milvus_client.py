"""The connection to Milvus or Milvus Lite: calls with a bound, errors of one kind, DDL in a thread.

pymilvus takes most of a second and 60 MB to import, so it is imported in a thread at the first use. Its async client
does what is small; its sync client, in a thread, does DDL, because Milvus Lite answers UNIMPLEMENTED to what the async one
asks for while it creates an index, and inserts, because packing some hundred rows takes a tenth of a second.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from services.memory.ports import IndexUnavailable

# A released collection must be loaded before it can be read: Milvus Lite comes back from a restart with all released.
NOT_LOADED = 101
NOT_FOUND = (4, 100)
CONNECT_FAILED = 2
CONNECT_TIMEOUT_S = 2.0
DDL_TIMEOUT_S = 30.0
# After a failed connection, calls fail at once for this long instead of each waiting for its own bound.
PAUSE_S = 1.0
# pymilvus pings each 10 s even without a call, which a gRPC server with default settings, such as Milvus Lite's, answers by
# closing the connection; and a channel that waits for two minutes to connect again would outlive an outage by as much.
GRPC_OPTIONS = {
    "grpc.keepalive_time_ms": 300_000,
    "grpc.keepalive_permit_without_calls": 0,
    "grpc.enable_retries": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
}
log = structlog.get_logger("bulkhead.memory.milvus")


class CollectionMissing(IndexUnavailable):
    """The collection is not there (any more)."""


class MilvusConnection:
    """One lazily made connection; every method raises IndexUnavailable when Milvus cannot answer."""

    def __init__(self, uri: str, token: str) -> None:
        self._uri = uri
        self._token = token
        self._client: Any = None
        self._sync: Any = None
        self._connecting = asyncio.Lock()
        self._paused_until = 0.0
        self.is_lite = False

    async def check(self) -> bool:
        """Readiness check: whether Milvus answers; ends the pause after a failure."""
        self._paused_until = 0.0
        client = await self.connect()
        await self._bounded("check", client.get_server_version, CONNECT_TIMEOUT_S, (), {})
        return True

    async def call(self, method: str, collection: str, *args: Any, timeout_s: float, **options: Any) -> Any:
        """Calls `method` of the async client on a collection, loading the collection when that is what it lacks."""
        client = await self.connect()
        bound = getattr(client, method)
        try:
            return await self._bounded(method, bound, timeout_s, (collection, *args), options)
        except _Released:
            await self.ddl(lambda sync: sync.load_collection(collection, timeout=DDL_TIMEOUT_S))
            return await self._bounded(method, bound, timeout_s, (collection, *args), options)

    async def ddl(self, work: Callable[[Any], Any]) -> Any:
        """Runs `work(sync client)` in a thread."""
        return await self._in_thread("ddl", work, DDL_TIMEOUT_S)

    async def write(self, method: str, collection: str, rows: list[dict[str, Any]], timeout_s: float) -> None:
        """Inserts or upserts rows."""
        try:
            await self._in_thread(method, lambda client: getattr(client, method)(collection, rows, timeout=timeout_s), timeout_s)
        except _Released as error:
            raise IndexUnavailable("the collection is not loaded") from error

    async def _in_thread(self, name: str, work: Callable[[Any], Any], timeout_s: float) -> Any:
        await self.connect()

        async def run() -> Any:
            async with self._connecting:
                if self._sync is None:
                    self._sync = await asyncio.to_thread(self._make_sync)
            return await asyncio.to_thread(work, self._sync)

        return await self._bounded(name, run, timeout_s, (), {}, passes_timeout=False)

    async def close(self) -> None:
        """Ends the connection."""
        if self._client is not None:
            await self._client.close()
        if self._sync is not None:
            await asyncio.to_thread(self._sync.close)

    async def connect(self) -> Any:
        """The client; connects at the first use."""
        if self._client is not None:
            return self._client
        if time.monotonic() < self._paused_until:
            raise IndexUnavailable("milvus could not be reached a moment ago")
        async with self._connecting:
            if self._client is None:
                made = await asyncio.to_thread(self._make)
                try:
                    version = await self._bounded("connect", made.get_server_version, CONNECT_TIMEOUT_S, (), {})
                except IndexUnavailable:
                    await made.close()
                    raise
                self.is_lite = "lite" in str(version)
                self._client = made
                log.info("milvus_connected", version=str(version), lite=self.is_lite)
        return self._client

    def _make(self) -> Any:
        from pymilvus import AsyncMilvusClient

        # It logs each failed call with two tracebacks; ours is one line with the code.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        # Not from pymilvus' pool, which outlives us and would hand a channel of one event loop to another.
        options = {"dedicated": True, "grpc_options": GRPC_OPTIONS}
        return AsyncMilvusClient(uri=self._uri, token=self._token, timeout=CONNECT_TIMEOUT_S, **options)

    def _make_sync(self) -> Any:
        from pymilvus import MilvusClient

        options = {"dedicated": True, "grpc_options": GRPC_OPTIONS}
        return MilvusClient(uri=self._uri, token=self._token, timeout=CONNECT_TIMEOUT_S, **options)

    async def _bounded(
        self, name: str, function: Callable[..., Any], timeout_s: float, args: tuple, options: dict, *, passes_timeout: bool = True
    ) -> Any:
        from pymilvus.exceptions import MilvusException

        if time.monotonic() < self._paused_until:
            raise IndexUnavailable("milvus could not be reached a moment ago")
        if passes_timeout:
            options = {**options, "timeout": timeout_s}
        try:
            # pymilvus repeats a failed call until its own timeout; a little more lets its better message come first.
            async with asyncio.timeout(timeout_s + 0.25):
                return await function(*args, **options)
        except MilvusException as error:
            code = error.code
            if code == NOT_LOADED:
                raise _Released(str(code)) from error
            if code in NOT_FOUND:
                raise CollectionMissing(str(code)) from error
            self._failed(name, code, error.message, pause=code in (CONNECT_FAILED, grpc.StatusCode.UNAVAILABLE))
            raise IndexUnavailable(f"milvus refused {name} ({code})") from error
        except grpc.RpcError as error:
            code = error.code()
            self._failed(name, code.name, error.details() or "", pause=code == grpc.StatusCode.UNAVAILABLE)
            raise IndexUnavailable(f"milvus failed {name} ({code.name})") from error
        except (TimeoutError, OSError) as error:
            self._failed(name, type(error).__name__, "", pause=isinstance(error, ConnectionError))
            raise IndexUnavailable(f"milvus did not answer {name}") from error

    def _failed(self, name: str, code: Any, message: str, *, pause: bool) -> None:
        if pause:
            self._paused_until = time.monotonic() + PAUSE_S
        log.warning("milvus_call_failed", call=name, code=str(code), detail=message[:300])


class _Released(IndexUnavailable):
    """The collection must be loaded first."""
