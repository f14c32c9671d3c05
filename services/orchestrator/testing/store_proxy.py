"""A TCP proxy before the state store, of one process: it can cut its connections, swallow or delay what they
carry, and hold one command.

Faults are put where a process ends, on its wire, so that the product needs no hooks for them:

    held = proxy.hold(b"run_write_v1", b"run_finished", answer=True)    # the store gets the end of the run, its process no answer
    await held.reached()
    process.kill()
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK = 1 << 20


@dataclass
class Hold:
    """One place where a command stops. `answer`: it reaches the store, and its answer waits; else it waits itself. `late`: it is still
    delivered when its sender has hung up meanwhile, as a network may do."""

    parts: tuple[bytes, ...]
    answer: bool = False
    late: bool = True
    caught: asyncio.Event = field(default_factory=asyncio.Event)
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    def fits(self, data: bytes) -> bool:
        """Whether it is for this. A library of functions names them all and is no call."""
        return not self._free.is_set() and b"FUNCTION" not in data and all(part in data for part in self.parts)

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

    async def pass_by(self) -> None:
        """Returns after `release`."""
        self.caught.set()
        await self._free.wait()


class _Link:
    """One connection and its way on."""

    def __init__(self, here: asyncio.StreamWriter, there: asyncio.StreamWriter) -> None:
        self.here, self.there = here, there
        self.answers_held: list[Hold] = []

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

    def hold(self, *parts: bytes, answer: bool = False, late: bool = True) -> Hold:
        """Stops every command that holds all `parts`, from now until its release."""
        held = Hold(parts, answer, late)
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
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                fitting = [held for held in self._holds if held.fits(data)]
                for held in fitting:
                    # Calls of several runs share a pipeline: it stands at all of these places at once.
                    if not held.answer:
                        held.caught.set()
                for held in fitting:
                    if held.answer:
                        link.answers_held.append(held)
                    else:
                        await held.pass_by()
                        if reader.at_eof() and not held.late:
                            return
                await self._pass()
                link.there.write(data)
                await link.there.drain()

    async def _answers(self, reader: asyncio.StreamReader, link: _Link) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                while link.answers_held:
                    await link.answers_held.pop().pass_by()
                await self._pass()
                link.here.write(data)
                await link.here.drain()

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
