"""A TCP proxy before a gateway that resets each connection some time after it was made, as networks do that nobody can mend."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from services.common import testing

CHUNK = 1 << 16
# A connection lives so long, in seconds: some end before the answer's head, some in the midst of a frame.
LIVES_S = (0.02, 1.2)


class DroppingProxy:
    """`url` leads to the gateway at `port`; `drops` counts the connections that it has reset while something was under way."""

    def __init__(self, port: int, seed: int) -> None:
        self._target, self._random = port, random.Random(seed)
        self._tasks: set[asyncio.Task] = set()
        self.port = testing.free_port()
        self.url, self.drops = f"http://127.0.0.1:{self.port}", 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["DroppingProxy"]:
        """Serves until the end of the context."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [asyncio.create_task(_carry(reader, back)), asyncio.create_task(_carry(there, writer))]
        try:
            await asyncio.wait(ways, timeout=self._random.uniform(*LIVES_S), return_when=asyncio.FIRST_COMPLETED)
            self.drops += not any(way.done() for way in ways)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, back):
                end.transport.abort()
            await asyncio.gather(*ways, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
