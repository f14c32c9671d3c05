"""`/ws` of two gateways before a real orchestrator: an approval, and a watch that outlives the gateway it began at."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import pytest

from services.common import testing
from services.common.accounts import Accounts
from services.gateway.app import build
from services.gateway.fakes import frames_of
from services.gateway.settings import Settings
from tests.integration.approvals import call, desk
from tests.integration.websocket_client import talk


@asynccontextmanager
async def a_gateway(identities, state_url, grpc_port, key):
    """A gateway before the orchestrator at `grpc_port`; `stop` drains it."""
    settings = Settings(
        env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, orchestrator_address=f"127.0.0.1:{grpc_port}",
        memory_address="127.0.0.1:1", tool_executor_address="127.0.0.1:1", drain_grace_s=3, **identities.settings("gateway"),
    )  # fmt: skip
    async with testing.running(settings, build) as stop:
        yield SimpleNamespace(url=f"http://127.0.0.1:{settings.http_port}", key=key, stop=stop)


@pytest.fixture
async def two(identities, state_url, tmp_path, valkey):
    key = (await Accounts(valkey).create_key(tenant="acme", user="ana", tier="enterprise", scopes=("*",))).secret
    async with desk(identities, state_url, tmp_path) as made:
        port = made.settings.grpc_port
        async with a_gateway(identities, state_url, port, key) as first, a_gateway(identities, state_url, port, key) as second:
            yield made, first, second


async def test_a_run_that_asks_is_approved_and_followed_over_the_gateway_that_is_left(two):
    made, first, second = two
    async with talk(first) as ws:
        started = await ws.ask("start", thread_id="t", agent="careful", input=call(("wipe", {"n": 1})), watch=True)
        run_id, watch = started["result"]["run_id"], started["id"]
        await ws.until(lambda: any(event["type"] == "interrupt_raised" for event in ws.events.get(watch, ())))
        first.stop.set()
        assert await ws.rest() == 1012
        told = {one["watch"]: one["after"] for one in (*ws.closing["watches"], *ws.ended.values())}
        seen = ws.events[watch]
        assert told == {watch: seen[-1]["seq"]}
    (asked,) = [event["data"] for event in seen if event["type"] == "interrupt_raised"]
    async with talk(second) as ws:
        rest = (await ws.ask("watch", run_id=run_id, after=told[watch]))["id"]
        assert made.sent() == []
        decided = await ws.ask("approve", approval_id=asked["interrupt_id"], idempotency_key="yes")
        assert decided["result"]["state"] == "approved"
        seen += await ws.followed(rest)
        again = await ws.ask("approve", approval_id=asked["interrupt_id"], idempotency_key="yes")
        assert again["result"]["decisions"] == decided["result"]["decisions"]
        assert (await ws.ask("steer", run_id=run_id, text="late"))["problem"]["reason"] == "RUN_ENDED"
    assert seen[-1]["type"] == "run_finished"
    assert len(made.sent()) == 1
    async with aiohttp.ClientSession(second.url, headers={"authorization": f"Bearer {second.key}"}) as http:
        async with http.get(f"/v1/runs/{run_id}/events") as response:
            assert [data for _, _, data in await frames_of(response)] == seen
