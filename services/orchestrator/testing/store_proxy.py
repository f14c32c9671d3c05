"""A TCP proxy before the state store, of one process: it can cut its connections, swallow or delay what they
carry, and hold one command.

A pipeline is many commands, of runs that have nothing to do with each other. What is held is the one command that fits: those before it
in its pipeline reach the store, and their answers the process; those behind it on the same connection wait, as they do where a network
loses a packet. Nothing else of the process waits.

Faults are put where a process ends, on its wire, so that the product needs no hooks for them:

    held = proxy.hold(b"run_write_v1", b"run_finished", answer=True)    # the store gets the end of the run, its process no answer
    await held.reached()
    process.kill()
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK = 1 << 20


@dataclass
class Hold:
    """One place where a command stops that has all `parts`. `answer`: it reaches the store, and its answer waits; else it waits itself.
    `late`: it is still delivered when its sender has hung up meanwhile, as a network may do. `once`: those that come after the first one
    that fits go by."""

    parts: tuple[bytes, ...]
    answer: bool = False
    late: bool = True
    once: bool = False
    caught: asyncio.Event = field(default_factory=asyncio.Event)
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    def fits(self, command: bytes) -> bool:
        """Whether it is for this. A library of functions names them all and is no call."""
        if self._free.is_set() or (self.once and self.caught.is_set()):
            return False
        return b"FUNCTION" not in command and all(part in command for part in self.parts)

    def release(self) -> None:
        """Lets it go on, and all that come after."""
        self._free.set()

    async def reached(self, within_s: float = 20.0) -> None:
        """Returns when something stands here. Raises TimeoutError, naming what does not come."""
        try:
            async with asyncio.timeout(within_s):
                await self.caught.wait()
        except TimeoutError:
            raise TimeoutError(f"nothing came with {self.parts}") from None

    async def passed(self) -> None:
        """Returns after `release`."""
        await self._free.wait()


class Values:
    """Cuts a stream of the store's protocol, whichever way it goes, into its values: commands, or their answers."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Those that are whole now."""
        data, at, found = self._rest + data, 0, []
        while (end := _end(data, at)) > 0:
            found.append(data[at:end])
            at = end
        self._rest = data[at:]
        return found


def _end(data: bytes, at: int) -> int:
    """Where the value that begins at `at` ends; -1 while not all of it is there."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return -1
    end = line + 2
    if data[at : at + 1] == b"$":
        length = int(data[at + 1 : line])
        # An absent value has a length of -1 and no end of its own.
        end += length + 2 if length >= 0 else 0
    elif data[at : at + 1] == b"*":
        for _ in range(int(data[at + 1 : line])):
            end = _end(data, end)
            if end < 0:
                return -1
    return end if end <= len(data) else -1


class _Link:
    """One connection and its way on."""

    def __init__(self, here: asyncio.StreamWriter, there: asyncio.StreamWriter) -> None:
        self.here, self.there = here, there
        # What is held, by the number of its answer on this connection.
        self.answers_held: dict[int, list[Hold]] = {}

    def abort(self) -> None:
        self.here.transport.abort()
        self.there.transport.abort()


class StoreProxy:
    """Stands between one process and the store. `url` is what the process is given."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.url = ""
        self._links: set[_Link] = set()
        self._holds: list[Hold] = []
        self._refusing = False
        # What is carried takes up to so long, in seconds, each way.
        self.latency_s = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()

    def hold(self, *parts: bytes, answer: bool = False, late: bool = True, once: bool = False) -> Hold:
        """Stops every command that holds all `parts`, or `once` the first, from now until its release."""
        held = Hold(parts, answer, late, once)
        self._holds.append(held)
        return held

    def cut(self) -> None:
        """Resets all connections and refuses new ones."""
        self._refusing = True
        for link in list(self._links):
            link.abort()

    def freeze(self) -> None:
        """Keeps the connections and carries nothing more, as a network does that has lost its way."""
        self._flowing.clear()

    def restore(self) -> None:
        """Ends `cut`, `freeze` and latency."""
        self._refusing, self.latency_s = False, 0.0
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        if self._refusing:
            writer.transport.abort()
            return
        try:
            from_store, to_store = await asyncio.open_connection(self._target.hostname, self._target.port, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, to_store)
        self._links.add(link)
        pumps = [asyncio.create_task(self._commands(reader, link)), asyncio.create_task(self._answers(from_store, link))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            link.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _commands(self, reader: asyncio.StreamReader, link: _Link) -> None:
        number = itertools.count()

        def stops(command: bytes) -> list[Hold]:
            fitting, at = [held for held in self._holds if held.fits(command)], next(number)
            if answers := [held for held in fitting if held.answer]:
                link.answers_held[at] = answers
            return [held for held in fitting if not held.answer]

        await self._pump(reader, link.there, stops)

    async def _answers(self, reader: asyncio.StreamReader, link: _Link) -> None:
        number = itertools.count()
        await self._pump(reader, link.here, lambda _: link.answers_held.pop(next(number), []))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stops: Callable[[bytes], list[Hold]]) -> None:
        values = Values()
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                arrived = [(value, stops(value)) for value in values.feed(data)]
                for held in itertools.chain.from_iterable(holds for _, holds in arrived):
                    # It is here and goes no further, also where another one before it is what it waits for.
                    held.caught.set()
                ready: list[bytes] = []
                for value, holds in arrived:
                    if holds:
                        await self._carry(ready, writer)
                    for held in holds:
                        await held.passed()
                        if reader.at_eof() and not held.late:
                            return
                    ready.append(value)
                await self._carry(ready, writer)

    async def _carry(self, ready: list[bytes], on: asyncio.StreamWriter) -> None:
        if ready:
            await self._pass()
            on.write(b"".join(ready))
            ready.clear()
            await on.drain()

    async def _pass(self) -> None:
        if self.latency_s:
            await asyncio.sleep(random.uniform(0.2, 1.0) * self.latency_s)  # noqa: S311 - jitter
        await self._flowing.wait()

    def end(self) -> None:
        """Ends the connections and whatever waits."""
        for held in self._holds:
            held.release()
        self.restore()
        for link in list(self._links):
            link.abort()


@asynccontextmanager
async def before_store(url: str) -> AsyncIterator[StoreProxy]:
    """A proxy before the store at `url`."""
    proxy = StoreProxy(url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=CHUNK)
    proxy.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    try:
        yield proxy
    finally:
        server.close()
        proxy.end()
