"""What the commands make of the gateway's answers."""

import pytest
from aiohttp import web

from services.cli.client import Api, Interrupted
from services.cli.connection import Connection

pytestmark = pytest.mark.asyncio

BROKEN = b'id: 1\nevent: run_started\ndata: {"type":"run_started","seq":1}\n\nevent: stream_error\ndata: {"detail":"no orchestrator"}\n\n'


async def test_a_stream_that_ends_with_an_error_is_no_whole_one():
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=BROKEN, content_type="text/event-stream")

    app = web.Application()
    app.router.add_get("/replay/t", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    seen = []
    try:
        async with Api(Connection(f"http://127.0.0.1:{port}", "bh_x")) as api:
            with pytest.raises(Interrupted, match="no orchestrator"):
                async for event in api.events("GET", "/replay/t"):
                    seen.append(event["type"])
    finally:
        await runner.cleanup()
    assert seen == ["run_started"]
