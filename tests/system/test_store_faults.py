"""What befalls the state store under load: real processes, and the oracle afterwards.

Two orchestrators, clients that start runs with tools, watch them through either, and cancel some (those of `make chaos`). Each row
strikes the store, ends the fault, and waits until every accepted run has ended: nothing that was acknowledged is lost, every promise
holds, and a new run is worked on at once. What was seen stands in docs/durability.md.
"""

import asyncio
import shlex
import time
from contextlib import asynccontextmanager

import pytest
import redis

from scripts import chaos_load
from scripts.chaos import defects_of
from scripts.chaos_load import Load
from services.common import embedded, testing
from services.common.errors import BulkheadError
from services.orchestrator.testing.counting import CountingTools, script
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import LOST, write_config
from services.orchestrator.testing.replica_set import replica_set
from services.orchestrator.testing.replicas import Replica

pytestmark = [pytest.mark.system, pytest.mark.timeout(170)]
CONCURRENT = 10
ASKS_FIRST_S = 2.0


class Trial:
    """The orchestrators on one store, their clients, and what came of it."""

    def __init__(self, replicas, behind):
        self.replicas, self.load = replicas, Load(replicas, behind)
        self._clients = []

    async def begin(self):
        self._clients = [asyncio.create_task(self.load.keep_asking()) for _ in range(CONCURRENT)]
        await self.accepts()
        await asyncio.sleep(ASKS_FIRST_S)

    async def accepts(self, within_s=30.0):
        """Returns when a run was accepted and has ended that was asked for now."""
        before = time.monotonic()
        async with asyncio.timeout(within_s):
            run = await self.load.anywhere(lambda client: client.start(script("hi")))
            ended = await self.load.anywhere(lambda client: client.get(run.run_id))
            while not ended.HasField("ended_at"):
                await asyncio.sleep(0.05)
                ended = await self.load.anywhere(lambda client: client.get(run.run_id))
        return time.monotonic() - before

    async def refused(self, within_s=20.0):
        """Returns when a run is refused for the store's sake. Nothing is acknowledged that is not kept."""
        client = self.replicas[0].client

        async def refuses():
            try:
                with client.calling(timeout_s=4.0):
                    await client.start(script("hi"))
            except BulkheadError as error:
                if error.code.name not in LOST:
                    raise
                return error.code.name == "UNAVAILABLE"
            return False

        await testing.eventually_async(refuses, "new runs are refused", within_s)

    async def judged(self):
        self.load.asking = False
        await asyncio.gather(*self._clients)
        await self.load.judged()
        assert self.load.broken == []
        assert not self.load.statuses["not ended in time"]
        assert self.load.statuses["succeeded"] > CONCURRENT
        for replica in self.replicas:
            assert defects_of(replica.process.log) == []


@asynccontextmanager
async def trial(identities, state_url, folder, **fields):
    config = write_config(folder / "config")
    # Owners are lost here by no fault of theirs, and each stays within its own process.
    fields = {"watch_heartbeat_s": 0.5, "crash_budget": 50, "log_level": "WARNING", **fields}
    async with fakes(identities, made=Fakes(tools=CountingTools())) as behind:
        one, two = (Replica(name, identities, behind, config, folder, state_url, **fields) for name in ("one", "two"))
        async with one.there(), two.there():
            made = Trial([one, two], behind)
            await made.begin()
            try:
                yield made
                await made.judged()
            finally:
                made.load.asking = False


@pytest.fixture(autouse=True)
def judged_soon(monkeypatch):
    """No process stands still here, so no write comes late."""
    monkeypatch.setattr(chaos_load, "JUDGED_AFTER_S", 2.0)


class Single:
    """One Valkey on its own disk, which may have a limit."""

    def __init__(self, folder):
        folder.mkdir()
        self._folder, self.port = folder, testing.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = self.start()

    def start(self, most_kib=0):
        command = embedded.valkey_state_command(self.port, self._folder)
        if most_kib:
            # A file that may not grow is what a full disk is to the server: the write fails, and the process is not killed for it.
            command = ["sh", "-c", f"trap '' XFSZ; ulimit -f {most_kib * 2}; exec {shlex.join(command)}"]
        self.process = testing.Process(command, log=self._folder / "valkey.log")
        return self.process

    def written_kib(self):
        return max(path.stat().st_size for path in self._folder.rglob("*.aof")) // 1024

    def client(self):
        return redis.Redis(port=self.port, socket_timeout=5)


@pytest.fixture
def store(tmp_path):
    made = Single(tmp_path / "store")
    testing.wait_for_port(made.port, made.process)
    yield made
    made.process.kill()


async def test_killed_and_back_from_its_file(identities, store, tmp_path):
    async with trial(identities, store.url, tmp_path) as tried:
        for away_s in (0.0, 2.0, 0.0):
            store.process.kill()
            await asyncio.sleep(away_s)
            await asyncio.to_thread(lambda: testing.wait_for_port(store.port, store.start()))
            await tried.accepts()
    assert tried.load.gaps == 0


async def test_a_disk_that_is_full(identities, store, tmp_path):
    async with trial(identities, store.url, tmp_path) as tried:
        store.process.kill()
        full_kib = store.written_kib() + 64
        for _ in range(3):
            # Whoever supervises it starts it again, and it ends again as soon as it cannot keep what it is told.
            store.start(full_kib)
            await asyncio.to_thread(store.process.wait)
        assert "AOF" in store.process.output()
        await tried.refused()
        await asyncio.to_thread(lambda: testing.wait_for_port(store.port, store.start()))
        await tried.accepts()


async def test_memory_that_is_full(identities, store, tmp_path):
    async with trial(identities, store.url, tmp_path) as tried:
        with store.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"])
            await tried.refused()
            # What was accepted goes on to its end, and what is kept can be read.
            await testing.eventually_async(lambda: not tried.load.at_work, "what was accepted ends while memory is full")
            client.config_set("maxmemory", 0)
        await tried.accepts()


async def test_a_primary_that_has_become_a_replica_and_answers_readonly(identities, store, tmp_path):
    async with trial(identities, store.url, tmp_path) as tried:
        with store.client() as client:
            for _ in range(2):
                client.execute_command("REPLICAOF", "127.0.0.1", testing.free_port())
                await tried.refused()
                client.execute_command("REPLICAOF", "NO", "ONE")
                await tried.accepts()


async def test_latency(identities, store, tmp_path):
    async with trial(identities, store.url, tmp_path) as tried:
        for latency_s in (0.05, 0.3):
            for replica in tried.replicas:
                replica.proxy.latency_s = latency_s
            await asyncio.sleep(4.0)
            await tried.accepts()
        # Longer than an answer is waited for, and than a lease.
        for replica in tried.replicas:
            replica.proxy.freeze()
        await asyncio.sleep(4.0)
        for replica in tried.replicas:
            replica.proxy.restore()
        await tried.accepts()


@pytest.fixture
def members(tmp_path):
    with replica_set(tmp_path / "set") as made:
        yield made


async def test_a_failover(identities, members, tmp_path):
    async with trial(identities, members.url, tmp_path, state_replicas=1) as tried:
        took = {}
        for strike in ("kill", "pause", "hand over"):
            lost = await asyncio.to_thread(members.primary)
            began = time.monotonic()
            if strike == "kill":
                lost.process.kill()
            elif strike == "pause":
                lost.pause()
            else:
                await asyncio.to_thread(members.hand_over)
            await another_primary(members, lost)
            took[strike] = round(time.monotonic() - began, 1)
            await tried.accepts()
            took[f"{strike}, a run accepted and ended"] = round(time.monotonic() - began, 1)
            if strike == "kill":
                await asyncio.to_thread(lost.start)
            elif strike == "pause":
                lost.go_on()
            await whole(members)
        print("seconds since the strike:", took)
    print("logs that skipped ahead:", tried.load.gaps)
    assert tried.load.gaps


async def another_primary(members, lost):
    async def promoted():
        return await asyncio.to_thread(members.primary) is not lost

    await testing.eventually_async(promoted, "another primary", every_s=0.1)


async def whole(members):
    async def follow():
        return await asyncio.to_thread(members.whole)

    await testing.eventually_async(follow, "every replica follows", every_s=0.2)


async def test_too_few_replicas(identities, members, tmp_path):
    async with trial(identities, members.url, tmp_path, state_replicas=1) as tried:
        cut_off = await asyncio.to_thread(members.replicas)
        for node in cut_off:
            node.pause()
        await tried.refused()
        # Not one run is acknowledged for as long as it lasts.
        accepted = tried.load.acknowledged
        await asyncio.sleep(3.0)
        await tried.refused()
        assert tried.load.acknowledged == accepted
        for node in cut_off:
            node.go_on()
        await tried.accepts()
