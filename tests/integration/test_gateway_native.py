"""The native API over real HTTP and real gRPC, with an orchestrator in memory."""

import aiohttp
import pytest

from services.gateway import fakes


@pytest.fixture
async def served(identities, state_url):
    async with fakes.gateway(identities, state_url) as gateway:
        yield gateway


@pytest.fixture
async def http(served):
    async with aiohttp.ClientSession(served.url, headers=served.headers()) as session:
        yield session


async def frames_of(response):
    """Server-sent events of a response as (id, event, data) of those that have data."""
    import orjson

    found = []
    async for block in blocks_of(response):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if "data" in fields:
            found.append((int(fields["id"]), fields["event"], orjson.loads(fields["data"])))
    return found


async def blocks_of(response):
    rest = b""
    async for chunk in response.content.iter_any():
        rest += chunk
        while b"\n\n" in rest:
            block, rest = rest.split(b"\n\n", 1)
            yield block.decode()


async def test_a_run_is_accepted_followed_and_read_again(served, http):
    async with http.post("/v1/threads/t-1/runs", json={"input": "hello there"}) as response:
        assert response.status == 202, await response.text()
        run = await response.json()
        assert response.headers["location"] == f"/v1/runs/{run['run_id']}"
    async with http.get(f"/v1/runs/{run['run_id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = await frames_of(response)
    assert [e[1] for e in events][-1] == "run_finished"
    assert [e[0] for e in events] == list(range(1, len(events) + 1))
    async with http.get(f"/v1/runs/{run['run_id']}") as response:
        found = await response.json()
    assert (found["status"], found["output_text"]) == ("succeeded", "You said: hello there")
