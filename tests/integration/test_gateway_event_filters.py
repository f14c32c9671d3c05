"""Streams of some types of events: nothing else comes, the end of a run always does, and what was cut goes on where it was."""

import aiohttp
import pytest

from services.gateway import fakes
from services.gateway.fakes import frames_of
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.integration.real_gateway import answered, gateway_before
from tests.integration.websocket_client import talk

SSE = {"accept": "text/event-stream"}
ENDS = {"run_finished", "run_failed", "run_cancelled"}


@pytest.fixture
async def front(identities, state_url):
    async with fakes.gateway(identities, state_url) as made:
        yield made


@pytest.fixture
async def http(front):
    async with aiohttp.ClientSession(front.url, headers=front.headers()) as session:
        yield session


async def run_of(http, agent, thread):
    body = {"input": "one two three", "agent": agent}
    async with http.post(f"/v1/threads/{thread}/runs", json=body, headers={"prefer": "wait=30"}) as answer:
        return (await answer.json())["run_id"]


def chosen(path, *types):
    return path + "?" + "&".join(f"types={name}" for name in types)


async def read(http, path, **headers):
    async with http.get(path, headers={**SSE, **headers}) as response:
        assert response.status == 200, await response.text()
        return await frames_of(response)


async def test_only_what_is_asked_for_comes_and_the_end_of_the_run(http):
    run_id = await run_of(http, "tools", "t-filter")
    for path in (f"/v1/runs/{run_id}/events", "/replay/t-filter"):
        whole = await read(http, path)
        for types in (["message_delta"], ["tool_call_started", "tool_call_completed"], ["run_queued"], ["log_gap"], sorted(ENDS)):
            found = await read(http, chosen(path, *types))
            assert found == [frame for frame in whole if frame[1] in {*types, *ENDS}]
            assert found[-1] == whole[-1]
            for number, frame in enumerate(found, 1):
                assert await read(http, chosen(path, *types), **{"last-event-id": str(frame[0])}) == found[number:]
    told = await answered(http.get(chosen("/replay/t-filter", "usage", "usage")), 200)
    assert {event["type"] for event in told["events"]} == {"usage", "run_finished"}


async def test_a_filtered_watch_of_a_websocket_is_that_of_the_route(front, http):
    run_id = await run_of(http, "tools", "t-ws-filter")
    async with talk(front) as ws:
        watch = await ws.send("watch", run_id=run_id, types=["tool_call_started"])
        assert [event["type"] for event in await ws.followed(watch)] == ["tool_call_started", "run_finished"]
        assert (await ws.ask("watch", run_id=run_id, types=["nothing_such"]))["type"] == "error"


@pytest.mark.parametrize("types", [["nothing_such"], ["message_delta", ""], ["MESSAGE_DELTA"], ["x" * 5000], ["message_delta"] * 100])
async def test_types_that_are_none_are_refused_by_name(http, types):
    run_id = await run_of(http, "tools", "t-wrong-filter")
    for path in (f"/v1/runs/{run_id}/events", "/v1/threads/t-wrong-filter/events", "/replay/t-wrong-filter"):
        async with http.get(chosen(path, *types)) as response:
            told = await response.json()
            assert (response.status, [error["field"].split(".")[0] for error in told["errors"]]) == (400, ["types"]), path
            assert types[0] not in told["detail"]


async def test_a_real_orchestrator_leaves_out_the_same(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
        ana = await people.session()
        text = 'tool calculator {"expression": "1+2"}'
        run = await answered(ana.post("/v1/threads/t/runs", json={"input": text}, headers={"prefer": "wait=30"}), 200)
        path = f"/v1/runs/{run['run_id']}/events"
        whole, found = await read(ana, path), await read(ana, chosen(path, "agent_status"))
        assert found == [frame for frame in whole if frame[1] in {"agent_status", "run_finished"}]
        assert len(found) > 3
