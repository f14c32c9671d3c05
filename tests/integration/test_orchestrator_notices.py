"""Threads that are followed, or left, in the moment in which the connection that listens is lost or made."""

import asyncio

import pytest

from services.common import testing
from services.common.valkey import connect
from services.orchestrator.adapters.notices import Notices, Told
from services.orchestrator.adapters.store_keys import channel_of
from services.orchestrator.records import RunRef

REF = RunRef("acme", "t", "r")


class Held:
    """Holds whoever comes first until it is let go."""

    def __init__(self, really):
        self._really, self.reached, self.go_on = really, asyncio.Event(), asyncio.Event()

    async def __call__(self, *args, **options):
        if not self.reached.is_set():
            self.reached.set()
            await self.go_on.wait()
        return await self._really(*args, **options)


def nothing(*_):
    """Nobody is told."""


@pytest.fixture
async def listening(state_url):
    """Notices that have not begun, their client, and the appends that they told of."""
    client, told = connect(state_url), []
    notices = Notices(client, "here")
    yield notices, client, told
    await notices.close()
    await client.aclose()


async def begin(notices, told):
    await notices.start(Told(lambda ref, seq: told.append((ref, seq)), nothing, nothing, nothing))


async def hears(valkey, told):
    """An append of another process is told of."""

    async def heard():
        await valkey.publish(channel_of(REF), "7 elsewhere")
        return told

    await testing.eventually_async(heard, "an append is told of")
    assert told[0] == (REF, 7)


async def test_a_thread_that_is_followed_while_the_connection_is_given_up(listening, valkey):
    notices, _, told = listening
    await begin(notices, told)
    pubsub = await testing.eventually_async(lambda: notices._pubsub, "it listens")
    held = pubsub.connection.connect = Held(pubsub.connection.connect)
    following = asyncio.create_task(notices.follow(REF))
    await held.reached.wait()
    await valkey.client_kill_filter(_type="pubsub")
    await testing.eventually_async(lambda: notices._pubsub is None, "the connection is given up")
    held.go_on.set()
    await following
    await hears(valkey, told)


async def test_a_thread_that_is_followed_while_the_connection_is_made(listening, valkey):
    notices, client, told = listening
    held = client.connection_pool.get_connection = Held(client.connection_pool.get_connection)
    await begin(notices, told)
    await held.reached.wait()
    following = asyncio.create_task(notices.follow(REF))
    await testing.eventually_async(lambda: channel_of(REF) in notices._threads, "it is to be followed")
    held.go_on.set()
    await following
    await hears(valkey, told)


async def test_a_thread_that_is_left_while_the_connection_is_made(listening, valkey):
    notices, client, told = listening
    following = asyncio.create_task(notices.follow(REF))
    await testing.eventually_async(lambda: channel_of(REF) in notices._threads, "it is to be followed")
    held = client.connection_pool.get_connection = Held(client.connection_pool.get_connection)
    await begin(notices, told)
    await held.reached.wait()
    await notices.unfollow(REF)
    held.go_on.set()
    await testing.eventually_async(lambda: notices._pubsub, "it listens")
    channel = channel_of(REF)

    async def left():
        return dict(await valkey.pubsub_numsub(channel)) in ({channel: 0}, {channel.encode(): 0})

    await testing.eventually_async(left, "nobody listens to it")
    await following
