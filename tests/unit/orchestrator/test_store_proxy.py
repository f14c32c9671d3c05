"""The proxy that faults are put into: what it does to a real connection to a real store."""

import asyncio
from contextlib import suppress

import pytest
import uvloop
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

from services.common.errors import Overloaded
from services.common.valkey import connect
from services.orchestrator.adapters.store import Store
from services.orchestrator.testing.store_proxy import before_store


@pytest.fixture
async def through(state_url):
    async with before_store(state_url) as proxy:
        client = connect(proxy.url, timeout_s=0.3)
        yield proxy, client
        await client.aclose()


async def test_a_cut_resets_what_is_there_and_refuses_what_is_new(through):
    proxy, client = through
    assert await client.set("a", 1)
    proxy.cut()
    for _ in range(2):
        with pytest.raises(ValkeyConnectionError):
            await client.get("a")
    proxy.restore()
    assert await client.get("a") == b"1"


async def test_frozen_it_carries_nothing_and_later_everything(through, valkey):
    proxy, client = through
    await client.ping()
    proxy.freeze()
    with pytest.raises(ValkeyTimeoutError):
        await client.set("a", 1)
    assert await valkey.get("a") is None
    proxy.restore()
    assert await client.set("b", 1)


async def test_a_held_command_does_not_reach_the_store_before_its_release(through, valkey):
    proxy, client = through
    held = proxy.hold(b"SET", b"slow")
    asked = asyncio.create_task(client.set("slow", 1))
    await held.reached()
    assert await client.set("quick", 1)
    assert await valkey.get("slow") is None
    held.release()
    assert await asked


async def test_a_held_answer_is_that_of_a_command_that_was_done(through, valkey):
    proxy, client = through
    held = proxy.hold(b"INCR", b"n", answer=True)
    asked = asyncio.create_task(client.incr("n"))
    await held.reached()
    assert await valkey.get("n") == b"1"
    assert not asked.done()
    held.release()
    assert await asked == 1


async def test_a_process_that_starts_while_its_store_is_away_is_told_so_and_does_not_end(through):
    proxy, client = through
    store = Store(client, "early")
    proxy.cut()
    with pytest.raises(Overloaded):
        await store.load()
    proxy.restore()
    await store.load()


def test_a_write_to_a_connection_that_was_reset_just_now_is_a_store_that_is_away(_state_server):
    """With uvloop, as services run: its transport has an error of its own for that."""

    async def write() -> None:
        client = connect(_state_server)
        connection = await client.connection_pool.get_connection()
        await connection.connect()
        connection._writer.transport.abort()
        await asyncio.sleep(0.01)
        with pytest.raises(ValkeyConnectionError):
            await connection.send_packed_command(b"PING\r\n")
        await client.aclose()

    uvloop.run(write())


async def test_a_write_to_a_connection_that_another_task_gives_up_is_a_store_that_is_away(valkey):
    connection = await valkey.connection_pool.get_connection()
    await connection.connect()
    writing = asyncio.create_task(connection.send_packed_command(b"PING\r\n"))
    await asyncio.sleep(0)
    await connection.disconnect(nowait=True)
    # Whether it was written before depends on the interpreter; any other error is a defect.
    with suppress(ValkeyConnectionError):
        await writing
