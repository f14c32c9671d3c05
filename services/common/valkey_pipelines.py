"""The batched calls of one client of Valkey: what is called while the store is at work goes together as the next pipeline.

Pipelines go over connections that redis-py has made, with all that leads to a connection (sentinels, login, database), and that are
taken over from then on: answers are parsed where they arrive. A task, a timer and a stream's buffer for each pipeline cost three times
what the calls themselves do.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import redis.asyncio as redis
from hiredis import pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

# Pipelines of one client that may be under way at once, and after how long the next one does not wait for the one before.
MOST_PIPELINES = 32
LONG_S = 0.002


class Loads(Protocol):
    """A library of functions, as `valkey.Library`."""

    @property
    def client(self) -> redis.Redis:
        """What it is called through."""
        ...

    async def load(self) -> None:
        """Brings it into the store."""
        ...


class _Call(NamedTuple):
    library: Loads
    command: tuple
    packed: bytes
    future: asyncio.Future


def missed(answer: Any) -> bool:
    """Whether it says that the store does not have the function."""
    return isinstance(answer, ResponseError) and "Function not found" in str(answer)


class Batches:
    """Calls of whichever library. The more load, the fewer and larger pipelines, which saves more on both sides than anything else that
    can be done about a call. One that has been under way for long is not waited for, up to MOST_PIPELINES and half of the pool, so that
    one that is held up on its way holds up no others.
    """

    _by_client: "WeakKeyDictionary[redis.Redis, Batches]" = WeakKeyDictionary()

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        # Half of the connections are for everything else.
        self._most = max(1, min(MOST_PIPELINES, self._pool.max_connections // 2))
        self._waiting: list[_Call] = []
        self._free: list[_Wire] = []
        self._in_flight = 0
        self._scheduled = False
        # The pipeline that was sent last, and when; 0 once it has its answers.
        self._latest: list[_Call] = []
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Connections of an earlier era are not used again.
        self._era = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, client: redis.Redis) -> "Batches":
        """Those of `client`."""
        found = cls._by_client.get(client)
        if found is None:
            found = cls._by_client[client] = cls(client)
        return found

    def add(self, library: Loads, command: tuple) -> asyncio.Future:
        """The future gets the answer, or the redis error. Raises TypeError here for what cannot be said to the store."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future = loop.create_future()
        self._waiting.append(_Call(library, command, pack_command(command), future))
        if not self._scheduled:
            self._schedule(loop)
        return future

    def leave(self) -> None:
        """Ends connections that are idle, and the others when they have their answers."""
        self._era += 1
        free, self._free = self._free, []
        for wire in free:
            wire.close()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        long_at = self._sent_at + LONG_S
        if not self._in_flight or (self._in_flight < self._most and loop.time() >= long_at):
            self._scheduled = True
            loop.call_soon(self._send, loop)
        elif self._timer is None and self._in_flight < self._most:
            self._timer = loop.call_at(long_at, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiting and not self._scheduled:
            self._schedule(loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        self._in_flight += 1
        self._sent_at = loop.time()
        calls, self._waiting = self._waiting, []
        self._latest = calls
        while self._free:
            wire = self._free.pop()
            if wire.usable(loop):
                wire.send(calls)
                return
            wire.close()
        self._do(self._connect(loop, calls))

    async def _connect(self, loop: asyncio.AbstractEventLoop, calls: list[_Call]) -> None:
        era = self._era
        try:
            connection = await self._pool.get_connection()
        except BaseException as error:
            refused = error if isinstance(error, Exception) else ValkeyConnectionError("interrupted")
            self._ended(loop, None, calls, [refused] * len(calls))
            if not isinstance(error, Exception):
                raise
            return
        _Wire(self._pool, connection, loop, era, self._ended, self._do).send(calls)

    def _ended(self, loop: asyncio.AbstractEventLoop, wire: "_Wire | None", calls: list[_Call], answers: list[Any]) -> None:
        """A pipeline has an answer or an error for each of its calls; `wire` may be used again."""
        self._in_flight -= 1
        if calls is self._latest:
            # Whatever else is under way was sent before it, and is held up.
            self._sent_at = 0.0
        if wire is not None:
            if wire.era == self._era:
                self._free.append(wire)
            else:
                wire.close()
        if self._waiting and not self._scheduled:
            self._schedule(loop)
        again = []
        for call, answer in zip(calls, answers, strict=True):
            if missed(answer):
                again.append(call)
            elif call.future.done():
                continue
            elif isinstance(answer, Exception):
                call.future.set_exception(answer)
            else:
                call.future.set_result(answer)
        if again:
            self._do(self._again(again))

    async def _again(self, calls: Sequence[_Call]) -> None:
        """Calls of functions that the store did not have."""
        try:
            for library in {call.library for call in calls}:
                await library.load()
            for call in calls:
                try:
                    answer = await call.library.client.execute_command(*call.command)
                except ResponseError as error:
                    _fail(call, error)
                else:
                    if not call.future.done():
                        call.future.set_result(answer)
        except BaseException as error:  # handed on, to every caller that has no answer yet
            for call in calls:
                _fail(call, error if isinstance(error, Exception) else ValkeyConnectionError("interrupted"))
            if not isinstance(error, Exception):
                raise

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _fail(call: _Call, error: Exception) -> None:
    if not call.future.done():
        call.future.set_exception(error)


class _Wire(asyncio.Protocol):
    """One connection. At most one pipeline is under way on it."""

    def __init__(
        self,
        pool: Any,
        connection: Any,
        loop: asyncio.AbstractEventLoop,
        era: int,
        ended: Callable[[asyncio.AbstractEventLoop, "_Wire | None", list[_Call], list[Any]], None],
        do: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._pool, self._connection, self._loop, self._ended, self._do = pool, connection, loop, ended, do
        self.era = era
        self._transport = connection._writer.transport
        self._reader = connection._parser._reader
        self._address = connection.host, connection.port
        self._timeout_s: float = connection.socket_timeout
        # Redis-py waits for its own protocol to hear that the connection has ended.
        self._former = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._calls: list[_Call] = []
        self._answers: list[Any] = []
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._last = False
        self._closed = False

    def usable(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it leads to the store, by all that is known here."""
        primary = getattr(self._pool, "master_address", None)
        return not self._closed and self._loop is loop and (primary is None or primary == self._address)

    def send(self, calls: list[_Call]) -> None:
        """All of them in one write."""
        self._calls, self._answers = calls, []
        self._heard_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)
        try:
            self._transport.write(b"".join([call.packed for call in calls]))
        except (RuntimeError, AttributeError, OSError) as error:
            # What uvloop says of a transport that the other side has reset is no OSError.
            self._end(ValkeyConnectionError(f"the connection was lost: {error}"))

    def data_received(self, data: bytes) -> None:
        """As asyncio.Protocol."""
        reader, answers = self._reader, self._answers
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not NOT_ENOUGH_DATA:
                answers.append(answer)
                if isinstance(answer, (ReadOnlyError, ValkeyConnectionError)):
                    # The server was demoted, or is not up yet: its name, or the sentinels, lead elsewhere by now.
                    self._last = True
        except (RedisError, ValueError) as error:
            self._end(error)
            return
        self._heard_at = self._loop.time()
        if len(answers) < len(self._calls):
            return
        if not self._calls or len(answers) > len(self._calls):
            self._end(ValkeyConnectionError("the store sent what nobody asked for"))
            return
        calls, self._calls, self._answers = self._calls, [], []
        if self._last:
            self.close()
        self._ended(self._loop, None if self._last else self, calls, answers)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio.Protocol."""
        with suppress(Exception):
            self._former.connection_lost(exc)
        self._end(ValkeyConnectionError(f"the connection was lost: {exc}" if exc else "the store closed the connection"))

    def _look(self) -> None:
        self._timer = None
        if not self._calls or self._closed:
            return
        wait_s = self._heard_at + self._timeout_s - self._loop.time()
        if wait_s > 0:
            self._timer = self._loop.call_later(wait_s, self._look)
        else:
            self._end(ValkeyTimeoutError("the store did not answer in time"))

    def _end(self, error: Exception) -> None:
        calls, self._calls = self._calls, []
        answers, self._answers = self._answers[: len(calls)], []
        self.close()
        if calls:
            self._ended(self._loop, None, calls, [*answers, *[error] * (len(calls) - len(answers))])

    def close(self) -> None:
        """Ends the connection; its place in the pool is free."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._loop.is_closed():
            self._transport.abort()
            self._do(self._give_back())

    async def _give_back(self) -> None:
        await self._connection.disconnect(nowait=True)
        await self._pool.release(self._connection)
