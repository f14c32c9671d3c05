"""Tool executors on a replica set: no call that must not be made twice is begun on what a promotion would lose."""

import asyncio

import pytest
import redis

from services.common import testing
from services.common.errors import Overloaded
from services.orchestrator.testing.replica_set import replica_set
from tests.integration.tool_executor.harness import DONE, RUNNING, executor, http_tool, outside_server, write_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture
def caller(identities):
    with testing.calling(identities):
        yield


@pytest.fixture
async def outside():
    async with outside_server() as made:
        yield made


@pytest.fixture
def config(tmp_path, outside):
    folder = tmp_path / "config"
    write_config(folder, [http_tool(outside, "order", "/order"), http_tool(outside, "read", "/read", annotations={"read_only": True})])
    return folder


def orders(outside):
    return sum(seen.path == "/order" for seen in outside.seen)


async def test_a_call_is_refused_before_its_tool_is_asked_while_the_replica_stands_still(tmp_path, config, identities, caller, outside):
    with replica_set(tmp_path / "set", nodes=2) as servers:
        (replica,) = servers.replicas()
        for node in servers.nodes:
            # The primary goes on taking writes: it is the executor that asks for the replica.
            with redis.Redis(port=node.port) as client:
                client.config_set("min-replicas-to-write", 0)
        async with executor(config, servers.url, identities, state_replicas=1) as tools:
            assert (await _taken(tools, 1, "with")).outcome == DONE
            replica.pause()
            try:
                with pytest.raises(Overloaded) as caught:
                    await tools.result("order", {"n": 2}, "without")
                assert caught.value.reason == "STORE_UNAVAILABLE"
                assert orders(outside) == 1
                assert (await tools.result("read", {"n": 2}, "harmless")).outcome == DONE
                assert (await tools.result("order", {"n": 1}, "with")).replayed
            finally:
                replica.go_on()
            # The claim that did not count was given up.
            result = await _taken(tools, 2, "without")
            assert (result.outcome, result.replayed) == (DONE, False)
            assert orders(outside) == 2


async def _taken(tools, n, key):
    """The result of a call that is taken as soon as a replica follows; after a full copy that is when it has written all of it."""
    async with asyncio.timeout(testing.PATIENCE_S):
        while True:
            try:
                return await tools.result("order", {"n": n}, key)
            except Overloaded:
                await asyncio.sleep(0.1)


async def test_a_call_at_work_is_known_after_its_primary_is_lost(tmp_path, config, identities, caller, outside):
    with replica_set(tmp_path / "set") as servers:
        async with executor(config, servers.url, identities, state_replicas=1) as tools:
            await _taken(tools, 0, "before")
            outside.gate.clear()
            call = asyncio.create_task(tools.result("order", {"n": 1}, "k"))
            await testing.eventually_async(lambda: orders(outside) == 2, "the tool is asked")
            lost = await asyncio.to_thread(servers.primary)
            lost.process.kill()
            await testing.eventually_async(lambda: _other(servers, lost), "another is the primary")
            async with executor(config, servers.url, identities, state_replicas=1) as other:
                assert (await _known(other)).outcome == RUNNING
                again = asyncio.create_task(other.result("order", {"n": 1}, "k"))
                outside.gate.set()
                assert {(await each).output_json for each in (call, again)} == {b'{"number":2}'}
                assert (await other.known("k")).outcome == DONE
            assert orders(outside) == 2


async def _other(servers, lost):
    node = await asyncio.to_thread(servers.primary)
    return node is not lost and (await asyncio.to_thread(node.info)).get("connected_slaves", 0) > 0


async def _known(tools):
    async with asyncio.timeout(testing.PATIENCE_S):
        while True:
            try:
                return await tools.known("k")
            except Overloaded:
                await asyncio.sleep(0.1)
