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
from redis.exceptions import AskError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

# Pipelines of one client that may be under way at once.
MOST_PIPELINES = 32
# The next one waits for the one before at least for so long, at most for so long, and for twice what they have taken lately: what a
# busy store takes for each says nothing of one that is held up on its way, and what an idle one takes says it soon.
LEAST_WAIT_S = 0.002
MOST_WAIT_S = 0.02
# How many pipelines "lately" is.
LATELY = 16


class Loads(Protocol):
    """A library of functions, as `valkey.Library`."""

    async def load(self) -> None:
        """Brings it into the store."""
        ...


class Tail(Protocol):
    """What ends each pipeline. Calls whose tails are equal go together."""

    @property
    def commands(self) -> tuple[tuple, ...]:
        """Of the store."""
        ...

    def judged(self, answer: Any, last: Any) -> Any:
        """What a call is answered with, of which the store answered this, and `last` to the last of the commands; an error is raised."""
        ...


class _Call(NamedTuple):
    library: Loads
    packed: bytes
    future: asyncio.Future
    # Whether its library was loaded for it; a function that is missing still is the store's error.
    loaded: bool = False


def missed(answer: Any) -> bool:
    """Whether it says that the store does not have the function."""
    return isinstance(answer, ResponseError) and "Function not found" in str(answer)


class Batches:
    """Calls of whichever library. The more load, the fewer and larger pipelines, which saves more on both sides than anything else that
    can be done about a call. One that has been under way for long is not waited for, up to MOST_PIPELINES and half of the pool, so that
    one that is held up on its way holds up no others.
    """

    _by_client: "WeakKeyDictionary[redis.Redis, Batches]" = WeakKeyDictionary()

    def __init__(self, pool: Any, tail: Tail | None = None) -> None:
        self._pool = pool
        self._tail = tail
        commands = tail.commands if tail is not None else ()
        self._tail_length, self._packed_tail = len(commands), b"".join(map(pack_command, commands))
        self._ending: dict[Tail, Batches] = {}
        # Half of the connections are for everything else; a quarter of them for what a tail holds up.
        self._most = max(1, min(MOST_PIPELINES, self._pool.max_connections // (4 if commands else 2)))
        self._waiting: list[_Call] = []
        self._free: list[_Wire] = []
        self._in_flight = 0
        self._scheduled = False
        # The pipeline that was sent last, and when; 0 once it has its answers.
        self._latest: list[_Call] = []
        self._sent_at = 0.0
        # What pipelines that were answered have taken, the latest of them counting most.
        self._usual_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Connections of an earlier era are not used again.
        self._era = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, client: redis.Redis) -> "Batches":
        """Those of `client`."""
        found = cls._by_client.get(client)
        if found is None:
            found = cls._by_client[client] = cls(client.connection_pool)
        return found

    def ending(self, tail: Tail) -> "Batches":
        """Those of the same client whose pipelines end with `tail`, by which each call is judged."""
        found = self._ending.get(tail)
        if found is None:
            found = self._ending[tail] = Batches(self._pool, tail)
        return found

    def add(self, library: Loads, command: tuple) -> asyncio.Future:
        """The future gets the answer, or the redis error. Raises TypeError here for what cannot be said to the store."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future = loop.create_future()
        self._waiting.append(_Call(library, pack_command(command), future))
        if not self._scheduled:
            self._schedule(loop)
        return future

    def leave(self) -> None:
        """Ends connections that are idle, and the others when they have their answers."""
        self._era += 1
        free, self._free = self._free, []
        for wire in free:
            wire.close()
        for others in self._ending.values():
            others.leave()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        long_at = self._sent_at + min(max(LEAST_WAIT_S, 2 * self._usual_s), MOST_WAIT_S)
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
            self._ended(loop, None, calls, [refused] * (len(calls) + self._tail_length))
            if not isinstance(error, Exception):
                raise
            return
        _Wire(self._pool, connection, loop, era, self._ended, self._do, self._packed_tail, self._tail_length).send(calls)

    def _ended(self, loop: asyncio.AbstractEventLoop, wire: "_Wire | None", calls: list[_Call], answers: list[Any]) -> None:
        """A pipeline has an answer or an error for each of its calls; `wire` may be used again."""
        self._in_flight -= 1
        if calls is self._latest:
            # Whatever else is under way was sent before it, and is held up.
            self._sent_at = 0.0
        if wire is not None:
            self._usual_s += (min(wire.heard_at - wire.sent_at, MOST_WAIT_S) - self._usual_s) / LATELY
            if wire.era == self._era:
                self._free.append(wire)
            else:
                wire.close()
        if self._waiting and not self._scheduled:
            self._schedule(loop)
        if self._tail is not None:
            answers = _judged(self._tail, answers[: len(calls)], answers[len(calls) :])
        again = []
        for call, answer in zip(calls, answers, strict=True):
            if missed(answer) and not call.loaded:
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
        """Calls of functions that the store did not have, after their libraries are loaded."""
        try:
            for library in {call.library for call in calls}:
                await library.load()
        except BaseException as error:  # handed on, to every caller that has no answer yet
            for call in calls:
                _fail(call, error if isinstance(error, Exception) else ValkeyConnectionError("interrupted"))
            if not isinstance(error, Exception):
                raise
            return
        self._waiting += [call._replace(loaded=True) for call in calls]
        if not self._scheduled:
            self._schedule(asyncio.get_running_loop())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _judged(tail: Tail, answers: list[Any], ending: list[Any]) -> list[Any]:
    error = next((answer for answer in ending if isinstance(answer, Exception)), None)
    return [answer if isinstance(answer, Exception) else error or tail.judged(answer, ending[-1]) for answer in answers]


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
        tail: bytes = b"",
        tail_answers: int = 0,
    ) -> None:
        self._tail, self._tail_answers = tail, tail_answers
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
        # When the pipeline was sent, and when something of its answers came.
        self.sent_at = self.heard_at = 0.0
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
        self.sent_at = self.heard_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)
        try:
            self._transport.write(b"".join([call.packed for call in calls]) + self._tail)
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
                if isinstance(answer, (ReadOnlyError, AskError, ValkeyConnectionError)):
                    # The server was demoted, or is not up yet: its name, or the sentinels, lead elsewhere by now.
                    self._last = True
        except (RedisError, ValueError) as error:
            self._end(error)
            return
        self.heard_at = self._loop.time()
        expected = len(self._calls) + self._tail_answers
        if self._calls and len(answers) < expected:
            return
        if not self._calls or len(answers) > expected:
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
        wait_s = self.heard_at + self._timeout_s - self._loop.time()
        if wait_s > 0:
            self._timer = self._loop.call_later(wait_s, self._look)
        else:
            self._end(ValkeyTimeoutError("the store did not answer in time"))

    def _end(self, error: Exception) -> None:
        calls, self._calls = self._calls, []
        expected = len(calls) + self._tail_answers
        answers, self._answers = self._answers[:expected], []
        self.close()
        if calls:
            self._ended(self._loop, None, calls, [*answers, *[error] * (expected - len(answers))])

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
