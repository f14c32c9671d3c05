"""The state stores of `make chaos`, and how they are struck: one Valkey with its file, or a primary with replicas and a sentinel."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import redis

from services.common import embedded, testing
from services.orchestrator.testing.replica_set import Node, replica_set

# How long a primary that hangs does so: longer than it takes to be replaced.
HANGS_S = (4.0, 7.0)


class Store(ABC):
    """What orchestrators keep their state in. `struck_ms`: from when to when it was; `settings`: of the orchestrators, for this store."""

    url: str
    settings: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.struck_ms: list[tuple[int, int]] = []

    async def strike(self) -> None:
        """Returns when it is well again."""
        began = int(time.time() * 1000)
        await self._strike()
        self.struck_ms.append((began, int(time.time() * 1000)))

    @abstractmethod
    async def _strike(self) -> None: ...

    @abstractmethod
    def end(self) -> None:
        """Ends its processes."""


class Single(Store):
    """A Valkey that is killed and comes back with what it had."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._port = folder, testing.free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process = self._start()

    def _start(self) -> testing.Process:
        process = testing.Process(embedded.valkey_state_command(self._port, self._folder), log=self._folder / "valkey.log")
        testing.wait_for_port(self._port, process)
        return process

    async def _strike(self) -> None:
        self._process.kill()
        self._process = await asyncio.to_thread(self._start)

    def end(self) -> None:
        """As Store.end."""
        self._process.stop()


class Members(Store):
    """A primary and two replicas: the primary is killed, hangs, or hands over; another one is promoted, and it comes back as a replica."""

    settings: Mapping[str, int] = {"state_replicas": 1}

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._members = self._stack.enter_context(replica_set(folder / "set"))
        self.url = self._members.url

    async def _strike(self) -> None:
        how = random.choice(("kill", "pause", "hand over"))
        lost = await asyncio.to_thread(self._members.primary)
        if how == "kill":
            lost.process.kill()
        elif how == "pause":
            lost.pause()
        else:
            await testing.eventually_async(self._handed_over, "the sentinel hands over", every_s=0.2)
        await asyncio.sleep(random.uniform(*HANGS_S) if how == "pause" else 0.0)
        await testing.eventually_async(lambda: self._replaced(lost), "another primary", every_s=0.1)
        if how == "kill":
            await asyncio.to_thread(lost.start)
        elif how == "pause":
            lost.go_on()
        await testing.eventually_async(self._whole, "every replica follows", every_s=0.2)

    async def _handed_over(self) -> bool:
        """False while it refuses, because it has just done so."""
        try:
            await asyncio.to_thread(self._members.hand_over)
        except redis.ResponseError:
            return False
        return True

    async def _replaced(self, lost: Node) -> bool:
        return await asyncio.to_thread(self._members.primary) is not lost

    async def _whole(self) -> bool:
        return await asyncio.to_thread(self._members.whole)

    def end(self) -> None:
        """As Store.end."""
        self._stack.close()
