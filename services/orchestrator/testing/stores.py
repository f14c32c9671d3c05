"""The stores that a conformance test runs against: in memory, Valkey, Valkey as a cluster of one node. All with a clock to step."""

import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol
from unittest import mock

import redis

from services.common import embedded, testing
from services.common.valkey import Library, connect
from services.orchestrator.adapters import store_base
from services.orchestrator.adapters.segment_log import SegmentLogStore
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.testing.memory_store import MemoryStore
from services.orchestrator.testing.memory_store_runs import ThreadSteps
from services.orchestrator.testing.memory_store_state import Clock, MemoryState

# Valkey's own clock rules how long keys live; a step that is shorter than any life of a key need not touch them.
SHORTEST_LIFE_S = 60
_NOW = re.compile(r"local function now_ms\(\)\n.*?\nend\n", re.DOTALL)
_STEPPED = """local clock = {now_ms}
local function now_ms() return clock end
redis.register_function('test_clock_v1', function(keys, args)
  clock = tonumber(args[1])
  return clock
end)
"""


class Edit(NamedTuple):
    """A change of the Lua text that a test makes on purpose."""

    file: str
    old: str
    new: str


class Backend(Protocol):
    """One store, empty at first, and the processes on it."""

    clock: Clock

    def process(self, instance: str) -> RunStore:
        """The store as the process `instance` sees it."""
        ...

    async def advance(self, seconds: float) -> None:
        """Lets `seconds` pass on the store's clock."""
        ...

    async def expire(self, ref: RunRef, age_s: float) -> bool:
        """As LogArchive.expire: deletes the thread's oldest run and its part of the log."""
        ...


class MemoryBackend:
    """A store in memory; `steps` as of MemoryStore."""

    def __init__(self, steps: type[ThreadSteps]) -> None:
        self.state, self._of_thread = MemoryState(), steps
        self.clock = self.state.clock

    def process(self, instance: str) -> MemoryStore:
        """As Backend.process."""
        return MemoryStore(self.state, instance, self._of_thread)

    async def advance(self, seconds: float) -> None:
        """As Backend.advance."""
        self.clock.advance(seconds)

    async def expire(self, ref: RunRef, age_s: float) -> bool:
        """As Backend.expire."""
        return self._of_thread(self.clock, self.state.thread(ref), ref).expire(int(age_s * 1000))


class ValkeyBackend:
    """The Lua code in `lua`, which has a clock to step, on the Valkey of `client`."""

    def __init__(self, client: "redis.asyncio.Redis", lua: Path) -> None:
        self.client, self._lua, self.clock = client, lua, Clock()

    def process(self, instance: str, replicas: int = 0) -> Store:
        """As Backend.process; `replicas` as of Store."""
        with mock.patch.object(store_base, "LUA", self._lua):
            return Store(self.client, instance, replicas)

    async def expire(self, ref: RunRef, age_s: float) -> bool:
        """As Backend.expire."""
        with mock.patch.object(store_base, "LUA", self._lua):
            archive = SegmentLogStore(self.client, "archive")
        return await archive.expire(ref, age_s)

    async def advance(self, seconds: float) -> None:
        """As Backend.advance."""
        self.clock.advance(seconds)
        await set_clock(self.process("clock")._library, self.clock)
        if seconds >= SHORTEST_LIFE_S:
            async for key in self.client.scan_iter(count=1000):
                left_ms = await self.client.pttl(key)
                if left_ms > 0:
                    await self.client.pexpire(key, max(left_ms - round(seconds * 1000), 0))


async def set_clock(library: Library, clock: Clock) -> None:
    """Sets the clock of a library whose text went through `with_clock`."""
    await library.call("test_clock_v1", [], [clock.now_ms])


def with_clock(lua: str) -> str:
    """The same Lua code with a clock that stands still until a test sets it."""
    found, count = _NOW.subn(_STEPPED.format(now_ms=Clock().now_ms), lua)
    assert count == 1, "the Lua code asks for the time in one site"
    return found


@contextmanager
def stepped_lua(edits: Sequence[Edit] = ()) -> Iterator[Path]:
    """A folder with the Lua code of the store, its clock under the test's rule, and `edits` made."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-lua-") as temporary:
        folder = Path(shutil.copytree(store_base.LUA, Path(temporary) / "lua"))
        texts = {path.name: path.read_text() for path in folder.glob("*.lua")}
        texts["tenant.lua"] = with_clock(texts["tenant.lua"])
        for edit in edits:
            assert texts[edit.file].count(edit.old) == 1, f"{edit.file} has changed: {edit.old!r} stands there not once"
            texts[edit.file] = texts[edit.file].replace(edit.old, edit.new)
        for name, text in texts.items():
            (folder / name).write_text(text)
        yield folder


class Site(NamedTuple):
    """Where stores can be opened: the `url` of a Valkey and the folder of its Lua code, or in memory (`steps` as of MemoryStore)."""

    name: str
    url: str = ""
    lua: Path | None = None
    steps: type[ThreadSteps] = ThreadSteps

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        """An empty store; what was in the same place before is gone."""
        if self.lua is None:
            yield MemoryBackend(self.steps)
            return
        client = connect(self.url, timeout_s=testing.PATIENCE_S)
        try:
            await client.flushdb()
            backend = ValkeyBackend(client, self.lua)
            await backend.advance(0)
            yield backend
        finally:
            await client.aclose()


@contextmanager
def cluster_of_one() -> Iterator[str]:
    """URL of a Valkey in cluster mode that holds every slot: it refuses a call over two hash tags, declared or not."""
    port = testing.free_port()
    with tempfile.TemporaryDirectory(prefix="bulkhead-valkey-") as temporary:
        command = embedded.valkey_state_command(port, Path(temporary))
        command += ["--cluster-enabled", "yes", "--cluster-port", str(testing.free_port())]
        process = testing.Process(command, log=Path(temporary) / "valkey.log")
        try:
            testing.wait_for_port(port, process)
            with redis.Redis(port=port) as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
                testing.eventually(lambda: client.cluster("INFO")["cluster_state"] == "ok", "the cluster takes writes")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.stop()
