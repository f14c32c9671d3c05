"""What befalls the state store under load: real processes, and the oracle afterwards.

Two orchestrators, clients that start runs with tools, watch them through either, and cancel some (those of `make chaos`). Each row
strikes the store, ends the fault, and waits until every accepted run has ended: nothing that was acknowledged is lost, every promise
holds, and a new run is worked on at once. What was seen stands in docs/durability.md.
"""

import asyncio
import shlex
import time

import pytest
import redis
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from scripts import chaos_load
from services.common import embedded, testing
from services.orchestrator.testing.counting import ONCE, RunGates, calls, script
from services.orchestrator.testing.replica_set import replica_set
from tests.system.store_trial import another_primary, trial, whole

# Leases of the orchestrators here, and absences that end them.
LEASE_S, AWAY_S = 1.0, 3.0
pytestmark = [pytest.mark.system, pytest.mark.timeout(170)]


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


async def test_away_for_longer_than_a_lease_more_often_than_a_run_may_lose_its_owner(identities, store, tmp_path):
    async with trial(identities, store.url, tmp_path, none_given_up=True) as tried:
        gate = tried.tools.gate = RunGates()
        gate.of("r-held").close()
        await tried.one.start(script(calls((ONCE, "held")), "done"), run_id="r-held", thread_id="th-held")
        await testing.eventually_async(lambda: tried.tools.effects.get("r-held"), "a step begins that lasts through all of it")
        for how in ("pause", "kill", "pause", "kill"):
            if how == "pause":
                with store.process.standing_still():
                    await asyncio.sleep(AWAY_S)
            else:
                store.process.kill()
                await asyncio.sleep(AWAY_S)
                await asyncio.to_thread(lambda: testing.wait_for_port(store.port, store.start()))
            await tried.accepts()
            # Not one long absence.
            await asyncio.sleep(LEASE_S)
        gate.of("r-held").open()
        held = await tried.one.wait("r-held")
        assert (held.status, held.attempt) == (pb.RUN_STATUS_SUCCEEDED, 1)


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
    async with trial(identities, members.url, tmp_path, others=True, state_replicas=1) as tried:
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


async def test_too_few_replicas(identities, members, tmp_path):
    async with trial(identities, members.url, tmp_path, state_replicas=1) as tried:
        cut_off = await asyncio.to_thread(members.replicas)
        for node in cut_off:
            node.pause()
        # What was asked before may be answered later. Of what is asked from here on nothing is acknowledged, for as long as it lasts.
        async with tried.accepts_none(tried.one), tried.accepts_none(tried.two):
            await asyncio.sleep(3.0)
        for node in cut_off:
            node.go_on()
        await tried.accepts()
