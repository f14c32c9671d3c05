"""Notices of a thread that several watch, some of whom leave before their turn."""

import asyncio

import pytest

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.adapters.notices import Notices, Told
from services.orchestrator.adapters.store_keys import channel_of
from services.orchestrator.testing.runs import new_ref


@pytest.fixture
async def notices(state_url):
    """Notices that listen, and what they have told of appends."""
    client = connect(state_url)
    found, told, listening = Notices(client, "one"), [], asyncio.Event()
    await found.start(Told(lambda _, seq: told.append(seq), lambda _: None, lambda _: None, listening.set))
    await asyncio.wait_for(listening.wait(), 30)
    yield found, told, client
    await found.close()
    await client.aclose()


async def test_a_watcher_who_leaves_at_once_takes_nothing_from_the_next(notices):
    found, told, client = notices
    ref = new_ref()
    async with found._in_use:
        first, second = (asyncio.create_task(found.follow(ref)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    await second
    await client.publish(channel_of(ref), "7 two")
    await testing.eventually_async(lambda: told == [7], "the second watcher hears of an append")


async def test_a_thread_that_is_left_is_left_also_where_whoever_leaves_is_cancelled(notices):
    found, _, client = notices
    ref = new_ref()
    await found.follow(ref)
    async with found._in_use:
        leaving = asyncio.create_task(found.unfollow(ref))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

    async def left():
        return (await client.pubsub_numsub(channel_of(ref)))[0][1] == 0

    await testing.eventually_async(left, "nobody subscribes to it")
