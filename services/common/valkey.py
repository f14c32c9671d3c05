"""Valkey: connections with the timeouts we mean, libraries of Lua functions, and calls batched by loop tick."""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import redis.asyncio as redis
from hiredis import pack_command
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

from services.common.errors import Overloaded
from services.common.settings import StartRefused
from services.common.valkey_pipelines import Batches, missed

# What callers may catch as "the store is away"; everything else from redis is a defect of ours.
# AskError is MOVED as well: a cluster says so where another server has taken this one's place.
UNAVAILABLE = (ValkeyConnectionError, ValkeyTimeoutError, ReadOnlyError, AskError, OSError)

PLAIN, SECURE, SENTINELS = "redis://", "rediss://", "redis+sentinel://"
SENTINEL_PORT = 26379

# What may wait in a connection's buffer before a writer waits for it: the high water mark of asyncio's transports.
_UNSENT_BYTES = 64 * 1024


class _Connection(redis.Connection):
    """Writes commands with hiredis: the same bytes for a fifth of the CPU."""

    def pack_command(self, *args: Any) -> list[bytes]:
        return [pack_command((*args[0].split(), *args[1:]))]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            if not self.is_connected or self._writer.transport.get_write_buffer_size() > _UNSENT_BYTES:
                await super().send_packed_command(command, check_health)
                return
            # As there, but for the task that it makes for each write, to bound a wait that there is none of here. A connection that has
            # been lost is told by the reading of the answer.
            self._writer.writelines([command] if isinstance(command, bytes) else command)
        except (RuntimeError, AttributeError) as error:
            # What uvloop says of a transport that the other side has reset, where asyncio has an OSError; and what redis-py says of a
            # connection that another task, its listener, gave up a moment before.
            await self.disconnect(nowait=True)
            if "closed" not in str(error) and "writelines" not in str(error):
                raise
            raise ValkeyConnectionError("the connection was reset") from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (ReadOnlyError, AskError):
            self.mark_for_reconnect()
            raise

    def is_quiet(self) -> bool:
        """Whether it is connected, and nothing of an earlier call is on its way."""
        if not self.is_connected or not self._parser._connected:
            return False
        stream = self._parser._stream
        if stream.exception() is not None or self._writer.transport.is_closing():
            return False
        return not (self._parser._reader.has_data() or stream._buffer or stream.at_eof())


class _SecureConnection(_Connection, redis.SSLConnection):
    """The same over TLS."""


class _Lean:
    """For a pool: a connection that is ready is handed out at once. Redis-py takes a lock, asks five recorders and makes a retry of each.

    Nothing is awaited between looking and taking, so that there is nothing to lock.
    """

    async def get_connection(self: Any, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        connection = self.get_available_connection()
        try:
            if not connection.is_quiet():
                await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self: Any, connection: Any) -> None:
        self._in_use_connections.remove(connection)
        if connection.should_reconnect():
            await connection.disconnect()
        self._available_connections.append(connection)


class _Pool(_Lean, redis.ConnectionPool):
    """Connections to one address."""


class _FollowingConnection(SentinelManagedConnection, _Connection):
    """Goes to whoever is the primary when it connects."""


class _FollowingPool(_Lean, SentinelConnectionPool):
    """Connections to the primary that sentinels name."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Also from the sentinels, where all of it ends."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


def connect(url: str, *, timeout_s: float = 2.0, max_connections: int = 64) -> redis.Redis:
    """A client with a pool. `timeout_s` bounds connecting and each answer; no call is repeated behind the caller's back.

    `redis://…` is a store at one address, `rediss://…` one that is reached over TLS.
    `redis+sentinel://[user:password@]host:port,host:port/<primary's name>[/<db>]` asks sentinels, which need no password, for the primary
    with each new connection. Raises ValueError for any other URL.
    """
    bounds: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": Retry(NoBackoff(), 0)}
    options = {**bounds, "socket_keepalive": True, "health_check_interval": 0, "max_connections": max_connections, "protocol": 2}
    if not url.startswith(SENTINELS):
        if not url.startswith((PLAIN, SECURE)):
            raise ValueError(f"the URL of a store begins with {PLAIN}, {SECURE} or {SENTINELS}")
        kind = _SecureConnection if url.startswith(SECURE) else _Connection
        return redis.Redis.from_pool(_Pool(**{**options, **parse_url(url), "connection_class": kind}))
    sentinels, name, access = _sentinels(url)
    asked = Sentinel(sentinels, sentinel_kwargs=bounds)
    return asked.master_for(name, connection_pool_class=_FollowingPool, connection_class=_FollowingConnection, **options, **access)


def _sentinels(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """(addresses of the sentinels, the name they know the primary by, what connecting to it takes)."""
    authority, _, path = url.removeprefix(SENTINELS).partition("/")
    login, _, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")
    name, _, db = path.partition("/")
    addresses = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if not name or not all(address.hostname for address in addresses):
        raise ValueError(f"the URL of a store behind sentinels is {SENTINELS}host:port,host:port/<name of the primary>")
    access = {"username": unquote(user) or None, "password": unquote(password) or None, "db": int(db or 0)}
    return [(str(address.hostname), address.port or SENTINEL_PORT) for address in addresses], name, access


def beside(client: redis.Redis, host: str, port: int) -> redis.Redis:
    """A client of another server of the same store, with all that leads to the one of `client`: login, TLS, timeouts."""
    pool = client.connection_pool
    options = {name: value for name, value in pool.connection_kwargs.items() if name != "connection_pool"}
    kind = _SecureConnection if issubclass(pool.connection_class, redis.SSLConnection) else _Connection
    return redis.Redis.from_pool(_Pool(**{**options, "host": host, "port": port, "connection_class": kind, "max_connections": 2}))


async def look_again(client: redis.Redis) -> None:
    """Ends connections that are idle, so that the next calls go to whoever is the primary by now: one that others have taken the
    place of may not know it for seconds, in which it answers and nothing that it takes lasts."""
    Batches.of(client).leave()
    pool = client.connection_pool
    # Taken out first: a call that got one of them while it is being closed would be told that it failed, whether it was done or not.
    idle, pool._available_connections = pool._available_connections, []
    try:
        await asyncio.gather(*(connection.disconnect() for connection in idle), return_exceptions=True)
    finally:
        pool._available_connections += idle


def store_unavailable(store: str = "state") -> Overloaded:
    """The domain error for a store that cannot be reached."""
    return Overloaded(f"the {store} store cannot be reached", reason="STORE_UNAVAILABLE", retry_after_s=1.0, metadata={"store": store})


class Library:
    """A library of Lua functions in files that are read one after the other; the first begins with `#!lua name=<library>`.

    Function names carry the schema version (`run_claim_v1`). In the store a digest of the code is added to the names of
    library and functions: two versions of a service run their own code side by side, neither evicts the other's, and an
    edited file never runs as what an older process left there. A store that was emptied, or a new primary without the
    library, gets it again at the first call that misses it.
    """

    def __init__(self, client: redis.Redis, *paths: Path) -> None:
        self._client = client
        self._code, self._names = _content_addressed("\n".join(path.read_text(encoding="utf-8") for path in paths))
        self._batches = Batches.of(client)

    @property
    def client(self) -> redis.Redis:
        """The client that the functions are called through."""
        return self._client

    async def load(self) -> None:
        """Loads or replaces the library."""
        await self._client.function_load(self._code, replace=True)

    def command(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> tuple:
        """The FCALL of function `name`, for a pipeline of the caller's."""
        return ("FCALL", self._names[name], len(keys), *keys, *args)

    async def call(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """FCALL, in a round trip of its own. Raises redis errors."""
        command = self.command(name, keys, args)
        try:
            return await self._client.execute_command(*command)
        except ResponseError as error:
            if not missed(error):
                raise
            await self.load()
            return await self._client.execute_command(*command)

    async def batched(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """FCALL in one pipeline with all other batched calls of the client: fewer system calls under load.

        The calls are not a transaction; each succeeds or fails alone. A cancelled caller's call is still made.
        """
        return await self._batches.add(self, self.command(name, keys, args))

    async def batched_command(self, *command: Any) -> Any:
        """A command of the store itself among the batched calls; its answer is as the store gives it, a map as a list of names and
        values. Raises redis errors."""
        return await self._batches.add(self, command)

    def submit(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> asyncio.Future:
        """As `batched`, without waiting: the future gets the answer, or the redis error. Whoever ends it before is left alone."""
        return self._batches.add(self, self.command(name, keys, args))


_LIBRARY_NAME = re.compile(r"\A#!lua name=(\w+)")
_FUNCTION_NAME = re.compile(r"""(register_function\s*(?:\(\s*|\{[^}]*?function_name\s*=\s*)['"])(\w+)(?=['"])""")


def _content_addressed(code: str) -> tuple[str, dict[str, str]]:
    """The code with a digest of itself in every name that the store sees, and the store's name of each function."""
    digest = hashlib.sha256(code.encode()).hexdigest()[:12]
    names = {match[2]: f"{match[2]}_{digest}" for match in _FUNCTION_NAME.finditer(code)}
    code = _FUNCTION_NAME.sub(lambda match: f"{match[1]}{names[match[2]]}", code)
    return _LIBRARY_NAME.sub(rf"#!lua name=\1_{digest}", code), names


class SeveralShards(ValkeyConnectionError):
    """The store is a cluster of several shards: keys of one thread or tenant are at one of them, and a client goes to one only."""

    def __init__(self, shards: int) -> None:
        super().__init__(
            f"the store is a cluster of {shards} shards, and a store of one shard is needed: a primary with replicas, or a cluster whose"
            " slots are all at one primary"
        )
        self.shards = shards


async def ping(client: redis.Redis) -> bool:
    """Readiness check of a store. Raises SeveralShards, and what UNAVAILABLE names."""
    pong = await client.ping()
    try:
        told = await client.execute_command("CLUSTER INFO")
    except AskError:
        raise
    except ResponseError:
        # It is no cluster; or the command is not allowed, and whoever asks for a key of another shard is refused.
        return bool(pong)
    shards = int(told.get("cluster_size", 0))
    if shards > 1:
        raise SeveralShards(shards)
    return bool(pong)


async def refuse_shards(client: redis.Redis, variable: str = "BULKHEAD_STATE_URL") -> None:
    """For the start of a service. Raises StartRefused for a store of several shards; that one is away is told by readiness."""
    try:
        await ping(client)
    except SeveralShards as error:
        raise StartRefused([f"{variable}: {error}"]) from error
    except (*UNAVAILABLE, ResponseError):
        return
