"""The ways between the servers of a replica set, their sentinels and their clients: a process of its own, in which each direction of each
way can be cut.

A way that is cut keeps its connections and carries nothing, as a network that has lost its way: what was under way arrives when it is
whole again, and a connection that was begun meanwhile was never made. Servers are known by the address that they connect from
(`bind-source-addr`), clients by the port that they connect to; as servers announce one port to all, what sentinels tell a client of is
renamed on its way. No rights are needed for any of it: all of 127.0.0.0/8 is this machine.
"""

import asyncio
import json
import socket
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path

import uvloop

from services.common import testing
from services.orchestrator.testing.store_proxy import CHUNK, Values

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Way:
    """From the port `listens` to the server at (`host`, `port`) in the place `to`, for one place or, where `of` is '', for all that are
    known by their address. `renamed`: ports that answers tell of, and what they are told as."""

    listens: int
    to: str
    host: str
    port: int
    of: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)


class Network:
    """Starts the process and says what is cut. The places are the sides of its ways."""

    def __init__(self, addresses: Mapping[str, str], ways: Iterable[Way], log: Path) -> None:
        """`addresses` leads from those that servers connect from to their places."""
        ways = list(ways)
        self._places = frozenset([*addresses.values(), *(way.of for way in ways if way.of)])
        self._cut: set[tuple[str, str]] = set()
        port = testing.free_port()
        wanted = {"control": port, "addresses": dict(addresses), "ways": [asdict(way) for way in ways]}
        self._process = testing.Process(testing.python("-m", __name__, json.dumps(wanted)), log=log)
        testing.wait_for_port(port, self._process)
        self._control = socket.create_connection((LOOPBACK, port), testing.PATIENCE_S)

    def cut(self, senders: Collection[str], receivers: Collection[str]) -> None:
        """Nothing that the one send reaches the others any more; what those send still arrives."""
        self._say(self._cut | {(one, other) for one in senders for other in receivers})

    def part(self, *sides: Collection[str]) -> None:
        """The sides hear nothing of each other, nor of the places that are in none of them, which are one side more."""
        every = [*sides, self._places.difference(*sides)]
        self._say({(a, b) for one, other in permutations(every, 2) for a in one for b in other})

    def heal(self) -> None:
        """Everything reaches everything."""
        self._say(set())

    def _say(self, cut: set[tuple[str, str]]) -> None:
        self._cut = cut
        self._control.sendall(json.dumps(sorted(cut)).encode() + b"\n")
        answer = self._control.recv(16)
        assert answer == b"done\n", answer

    def end(self) -> None:
        """Ends all of it."""
        self._control.close()
        self._process.kill()


class _Carrier:
    """The process's side."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._cut: set[tuple[str, str]] = set()
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task] = set()

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes orders: what is cut from now on, a line each."""
        while line := await reader.readline():
            async with self._changed:
                self._cut = {(one, other) for one, other in json.loads(line)}
                self._changed.notify_all()
            writer.write(b"done\n")
        writer.close()

    async def _whole(self, *directions: tuple[str, str]) -> None:
        if self._cut.isdisjoint(directions):
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._cut.isdisjoint(directions))

    async def carry(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        here = way.of or self._addresses[writer.get_extra_info("peername")[0]]
        there, back = (here, way.to), (way.to, here)
        if not self._cut.isdisjoint({there, back}):
            await self._whole(there, back)
            writer.transport.abort()
            return
        try:
            answers, onward = await asyncio.open_connection(way.host, way.port, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, onward, there, {})),
            asyncio.create_task(self._pump(answers, writer, back, way.renamed)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            onward.transport.abort()
            writer.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[str, str], renamed: Mapping[str, str]
    ) -> None:
        values = Values()
        # Each behind its length, as the protocol writes it; ports here are all of five digits.
        names = [(b"$5\r\n%s\r\n" % old.encode(), b"$5\r\n%s\r\n" % new.encode()) for old, new in renamed.items()]
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if names:
                    data = b"".join(values.feed(data))
                    for old, new in names:
                        data = data.replace(old, new)
                await self._whole(way)
                writer.write(data)
                await writer.drain()
        # Nor does the end arrive.
        await self._whole(way)


async def _serve(wanted: Mapping) -> None:
    carrier = _Carrier(wanted["addresses"])
    for way in (Way(**fields) for fields in wanted["ways"]):
        await asyncio.start_server(lambda r, w, way=way: carrier.carry(way, r, w), LOOPBACK, way.listens, limit=CHUNK)
    await asyncio.start_server(carrier.obey, LOOPBACK, wanted["control"])
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(json.loads(sys.argv[1])))
