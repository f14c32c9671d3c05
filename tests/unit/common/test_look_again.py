"""Looking for the primary anew, beside calls that go on."""

import asyncio

from services.common import testing
from services.common.valkey import connect, look_again


async def test_no_call_meets_a_connection_that_is_being_closed(state_url):
    client = connect(state_url, timeout_s=testing.PATIENCE_S)
    await client.delete("counted")
    looking, told = True, 0

    async def counts():
        nonlocal told
        while looking:
            await client.incr("counted")
            told += 1

    counting = [asyncio.create_task(counts()) for _ in range(20)]
    for _ in range(100):
        await look_again(client)
        await asyncio.sleep(0)
    looking = False
    await asyncio.gather(*counting)
    assert told == int(await client.get("counted"))
    assert len(client.connection_pool._available_connections) == len(set(client.connection_pool._available_connections)) <= 21
    await client.aclose()


async def test_idle_connections_are_ended(state_url):
    client = connect(state_url, timeout_s=testing.PATIENCE_S)
    first = await client.client_id()
    await look_again(client)
    assert await client.client_id() != first
    await client.aclose()
