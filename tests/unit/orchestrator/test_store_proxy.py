"""The proxy that faults are put into: what it does to a real connection to a real store."""

import asyncio
from contextlib import suppress

import pytest
import uvloop
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

from services.common import testing
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


def sets(client, *names):
    """A pipeline that gives each of the names its own value, on its way."""
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.set(name, f"of {name}")
    return asyncio.create_task(pipeline.execute())


async def test_of_a_pipeline_the_command_that_fits_is_held_and_what_stands_behind_it(through, valkey):
    proxy, client = through
    held = proxy.hold(b"SET", b"slow")
    asked = sets(client, "before", "slow", "behind")
    await held.reached()
    await testing.eventually_async(lambda: valkey.get("before"), "what stands before it is done")
    assert await valkey.mget("slow", "behind") == [None, None]
    held.release()
    assert await asked == [True, True, True]


async def test_commands_of_a_pipeline_that_have_what_fits_between_them_are_not_held(through):
    proxy, client = through
    held = proxy.hold(b"SET", b"one", b"of two")
    assert await sets(client, "one", "two") == [True, True]
    assert not held.caught.is_set()


@pytest.mark.parametrize("answer", [False, True])
async def test_a_pipeline_stands_at_all_the_places_that_it_comes_by(through, valkey, answer):
    proxy, client = through
    places = [proxy.hold(b"SET", name, answer=answer) for name in (b"one", b"two")]
    asked = sets(client, "one", "two")
    await asyncio.gather(*(held.reached() for held in places))
    assert (await valkey.exists("one", "two"), asked.done()) == (2 if answer else 0, False)
    for held in places:
        held.release()
    assert await asked == [True, True]


async def test_commands_and_answers_that_come_in_pieces_are_carried_whole(through):
    proxy, client = through
    long = "x" * 3_000_000
    assert await client.set("long", long)
    assert await client.lpush("list", long, "", long) == 3
    held = proxy.hold(b"GET", b"long", answer=True)
    asked = asyncio.create_task(client.get("long"))
    await held.reached()
    assert await client.lrange("list", 0, -1) == [long.encode(), b"", long.encode()]
    assert await client.get("nothing") is None
    held.release()
    assert await asked == long.encode()


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
