"""`make bench-runs` tells the cost of watchers only where there were that many, from the first run that is measured to the last."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web

from scripts.bench import durable_growth
from services.common import testing


class Sampler:
    """Counts the watchers that are there when a figure is taken, lets go of one, and says what a run costs."""

    def __init__(self, gateway):
        self._gateway, self.there = gateway, []

    async def cost(self, agent, thread, names):
        self.there.append(len(self._gateway.watching))
        if self._gateway.ends and self._gateway.watching:
            following = _following()
            self._gateway.watching.pop().set()
            await testing.eventually_async(lambda: _following() < following, "one hears of its end")
        return 1.0, 1.0


def _following():
    return sum(task.get_coro().__name__ == "follow" for task in asyncio.all_tasks())


@asynccontextmanager
async def gateway(status=200, ends=False):
    """One that has nothing to tell its watchers, and may end a stream."""
    found = SimpleNamespace(watching=[], ends=ends, key="k")

    async def opened(_):
        return web.json_response({})

    async def events(request):
        answer = web.StreamResponse(status=status)
        await answer.prepare(request)
        if status == 200:
            found.watching.append(over := asyncio.Event())
            await over.wait()
        return answer

    app = web.Application()
    app.add_routes([web.post("/v1/threads", opened), web.get("/v1/threads/{thread}/events", events)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = testing.free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    found.url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            yield found, session
    finally:
        await runner.cleanup()


async def test_all_are_there_before_anything_is_measured():
    async with gateway() as (made, session):
        sampler = Sampler(made)
        figures = await durable_growth.own_watchers(sampler, session, made)
    assert sampler.there == [0, 0, durable_growth.OWN_WATCHERS, durable_growth.OWN_WATCHERS]
    assert len(figures) == 4


async def test_watchers_who_are_refused_give_no_figure():
    async with gateway(status=429) as (made, session):
        with pytest.raises(aiohttp.ClientResponseError):
            await durable_growth.own_watchers(Sampler(made), session, made)


async def test_watchers_whose_stream_ends_meanwhile_give_no_figure():
    async with gateway(ends=True) as (made, session):
        with pytest.raises(RuntimeError, match="did not stay to the end"):
            await durable_growth.own_watchers(Sampler(made), session, made)
