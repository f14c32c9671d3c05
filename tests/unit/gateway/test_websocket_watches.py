"""The watches of one connection, when several things happen to one at once."""

import asyncio

from services.gateway.surfaces.websocket.asking import Ask
from services.gateway.surfaces.websocket.watches import Watch, Watches


async def over(scope, receive, send):
    """A stream that has ended."""


async def open_(scope, receive, send):
    await asyncio.Event().wait()


async def test_a_watch_is_ended_while_its_end_is_still_being_told_and_its_id_is_free_again():
    telling, told = asyncio.Event(), asyncio.Event()

    async def say(message):
        telling.set()
        await told.wait()

    def added(app):
        watch = Watch("w", {"run_id": "r"}, 0, say)
        watch.ask = Ask(app, {})
        watches.add(watch)
        watch.acknowledged.set()
        return watch

    watches = Watches(say)
    first = added(over)
    await telling.wait()
    assert await watches.remove("w") is first
    added(open_)
    told.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert "w" in watches
    await watches.end()
