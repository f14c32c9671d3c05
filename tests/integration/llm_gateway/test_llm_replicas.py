"""Two gateway processes before one Valkey: one probe, one set of limits, one budget; and a store that is slow, silent or gone."""

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from services.common import testing
from services.common.accounts import Accounts, LimitSet
from services.common.valkey import connect
from tests.integration.llm_gateway.conftest import simulated
from tests.integration.llm_gateway.fleet import Lag, Replica, lagging, replicas
from tests.integration.llm_gateway.money_race import compare
from tests.integration.llm_gateway.proof import Client, Seen, deployment

# Kills and stores that stand still: minutes, not seconds.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system]
STORE_TIMEOUT_S = 0.4
ASKED = {"messages": [{"role": "user", "content": "Write 10 words."}], "max_tokens": 20}


@dataclass
class Fleet:
    """Two gateways, the simulator behind them, and the store between them behind a proxy."""

    gateways: list[Replica]
    sim: Any
    http: aiohttp.ClientSession
    store: testing.Process
    lag: Lag
    state_url: str

    async def key(self, tenant: str, **limits: Any) -> str:
        """A key of a tenant of its own."""
        state = connect(self.state_url, timeout_s=10.0)
        issued = await Accounts(state).create_key(
            tenant=tenant, user="ana", tier="enterprise", scopes=["*"], limits=LimitSet(**limits)
        )  # fmt: skip
        await state.aclose()
        return issued.secret

    def clients(self, key: str) -> list[Client]:
        """A client of each gateway."""
        return [Client(self.http, replica.url, key) for replica in self.gateways]

    async def hammer(self, key: str, model: str, seconds: float, callers: int = 3, body: dict = ASKED) -> tuple[list[Seen], float]:
        """Calls both gateways for a while; answers what was seen, and the seconds that it took."""
        began, found = time.monotonic(), []

        async def caller(client: Client) -> None:
            while time.monotonic() < began + seconds:
                seen = await client.chat({"model": model, **body})
                found.append(seen)
                # A client that is refused waits a little.
                await asyncio.sleep(0.02 if seen.error else 0)

        await asyncio.gather(*(caller(client) for client in self.clients(key) for _ in range(callers)))
        return found, time.monotonic() - began

    async def served(self, text: str) -> list[dict[str, Any]]:
        """Lines of the simulator's log that hold a text, once nothing is being served."""
        await testing.eventually_async(self._idle, "nothing in flight")
        async with self.http.get(f"{self.sim.url}/sim/log?limit=1000&run={text}") as answer:
            return orjson.loads(await answer.read())["lines"]

    async def _idle(self) -> bool:
        return not await self.sim.in_flight()


def listed(sim_url: str) -> dict[str, Any]:
    """A model of each kind; none falls back to another."""
    base = f"{sim_url}/v1"
    dead = deployment("dead", "sim-1", base)
    dead["litellm_params"]["model"] = "openai/sim-dead"
    limited = deployment("limited", "sim-1", base, rpm=30)
    limited["litellm_params"]["model"] = "openai/sim-limited"
    tokens = deployment("tokens", "sim-1", base, tpm=1500)
    tokens["litellm_params"]["model"] = "openai/sim-tokens"
    return {
        "model_list": [deployment("main", "sim-1", base), dead, limited, tokens],
        "router_settings": {"allowed_fails": 2, "cooldown_time": 0.3, "num_retries": 0, "max_fallbacks": 0},
        "general_settings": {"always_include_stream_usage": True},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(identities, tmp_path_factory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("replicas")
    with testing.valkey_server("state") as (url, store):
        async with simulated() as sim, lagging(url) as lag, aiohttp.ClientSession() as http:
            timeout = {"store_timeout_ms": int(STORE_TIMEOUT_S * 1000), "model_total_timeout_s": 8.0}
            async with replicas(identities, lag.url, folder, listed(sim.url), queue_wait_s=0.2, **timeout) as gateways:
                yield Fleet(gateways, sim, http, store, lag, url)


async def test_one_probe_at_a_time_asks_a_broken_model(fleet):
    await fleet.sim.order("first_token_delay=150; status=500", model="sim-dead")
    key = await fleet.key("probes")
    seen, seconds = await fleet.hammer(key, "dead", 4.0)
    lines = sorted(await fleet.served("sim-dead"), key=lambda line: line["received_monotonic_s"])
    spans = [(line["received_monotonic_s"], line["ended_monotonic_s"]) for line in lines]
    # Three failures open it; calls that were under way by then, six at most, and a gateway that has yet to hear end as well.
    probes = [span for span in spans if span[0] > spans[0][0] + 1.0]
    assert 2 <= len(probes) <= seconds / 0.3
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(probes))
    assert len(spans) - len(probes) <= 20
    told = Counter(found.status for found in seen)
    assert set(told) <= {502, 503}
    assert told[503] > 10 * len(lines)
    assert all(found.headers["retry-after"] for found in seen if found.status == 503)
    # It is asked again, and by both, once it is well.
    await fleet.sim.reset()

    async def well() -> bool:
        return all([(await client.chat({"model": "dead", **ASKED})).succeeded for client in fleet.clients(key)])

    await testing.eventually_async(well, "both gateways ask it again", timeout_s=20.0, every_s=0.1)


async def test_the_minute_of_a_deployment_is_one_for_both(fleet):
    key = await fleet.key("minutes")
    _, seconds = await fleet.hammer(key, "limited", 2.5)
    assert 25 <= len(await fleet.served("sim-limited")) <= 30 + seconds / 2 + 1


async def test_the_tokens_of_a_deployment_are_one_for_both(fleet):
    key = await fleet.key("tokens")
    _, seconds = await fleet.hammer(key, "tokens", 2.0)
    lines = await fleet.served("sim-tokens")
    used = sum(line["prompt_tokens"] + line["completion_tokens"] for line in lines)
    # The bucket, what flows in meanwhile, and what six calls at once hold above what they use.
    assert 200 <= used <= 1500 * (1 + seconds / 60) + 6 * 40


@pytest.mark.parametrize("limit", [{"requests_per_minute": 25}, {"tokens_per_minute": 2500}])
async def test_the_limits_of_a_key_hold_over_both(fleet, limit):
    (name,) = limit
    key = await fleet.key(name.replace("_", "-"), **limit)
    await fleet.sim.reset()
    seen, seconds = await fleet.hammer(key, "main", 2.0)
    served = [line for line in await fleet.served("sim-1") if line["status"] == 200]
    refused = [found for found in seen if found.status == 429]
    assert refused
    assert all((found.error["type"], found.error["code"]) == ("rate_limit_error", "rate_limit_exceeded") for found in refused)
    assert all(int(found.headers["retry-after"]) >= 1 for found in refused)
    if name == "requests_per_minute":
        assert 25 <= len(served) <= 25 * (1 + seconds / 60) + 1
    else:
        used = sum(line["prompt_tokens"] + line["completion_tokens"] for line in served)
        assert 200 <= used <= 2500 * (1 + seconds / 60)
    assert sum(1 for found in seen if found.succeeded) == len(served)


async def test_a_budget_is_one_for_both(fleet):
    key = await fleet.key("budget", max_budget_microusd=400)
    await fleet.sim.reset()
    seen, _ = await fleet.hammer(key, "main", 2.5)
    billed = sum(line["billed_nanousd"] for line in await fleet.served("sim-1"))
    told = Counter(found.error["code"] for found in seen if found.error)
    assert told == {"budget_exceeded": told["budget_exceeded"]}
    # Nearly all of it is used, and nothing beyond it.
    assert 300_000 <= billed <= 400_000


async def books(fleet: Fleet, tenant: str, served: list) -> None:
    """Nothing is reserved any more, and the ledger says what was billed."""
    state = connect(fleet.state_url, timeout_s=10.0)

    async def settled() -> bool:
        return all(len(raw) == 40 for raw in (await state.hgetall(f"llm:{{{tenant}}}:open")).values())

    await testing.eventually_async(settled, "no reservation is open", timeout_s=30.0)
    lines = [orjson.loads(fields[b"l"]) for _, fields in await state.xrange(f"llm:{{{tenant}}}:ledger")]
    compare(lines, served)
    await state.aclose()


async def test_a_slow_store_is_borne_up_to_its_bound_and_refuses_calls_beyond(fleet):
    key = await fleet.key("slow")
    await fleet.sim.reset()
    fleet.lag.seconds = 0.05
    seen, _ = await fleet.hammer(key, "main", 1.0, callers=1)
    assert sum(1 for found in seen if found.succeeded) >= 4
    fleet.lag.seconds = 2.0
    try:
        refused, _ = await fleet.hammer(key, "main", 3.0)
    finally:
        fleet.lag.seconds = 0.0
    late = refused[12:]
    assert {found.status for found in late} == {503}
    assert {found.error["code"] for found in late} == {"store_unavailable"}
    # Once the store is known to be slow, hardly anybody waits for it, and nobody for long.
    assert max(found.took_s for found in refused) < 5.0
    assert sorted(found.took_s for found in late)[len(late) // 2] < STORE_TIMEOUT_S

    async def well() -> bool:
        return all([(await client.chat({"model": "main", **ASKED})).succeeded for client in fleet.clients(key)])

    await testing.eventually_async(well, "calls go through again", timeout_s=20.0, every_s=0.1)
    await books(fleet, "slow", await fleet.served("sim-1"))


async def test_a_silent_store_refuses_calls_ends_no_stream_and_comes_back(fleet):
    key = await fleet.key("silent")
    await fleet.sim.reset()
    await fleet.sim.order("tokens_per_s=8", contains="slowly")
    slowly = {"messages": [{"role": "user", "content": "Write 12 words slowly."}], "max_tokens": 60}
    streams = [asyncio.create_task(client.chat({"model": "main", **slowly}, stream=True)) for client in fleet.clients(key)]

    async def begun() -> bool:
        return await fleet.sim.in_flight() == 2

    await testing.eventually_async(begun, "two streams are under way")
    fleet.store.signal(signal.SIGSTOP)
    try:
        refused, _ = await fleet.hammer(key, "main", 3.0)
        # What has been paid for goes on to its end.
        for stream in streams:
            assert (await asyncio.wait_for(stream, 20)).succeeded
    finally:
        fleet.store.signal(signal.SIGCONT)
    late = refused[12:]
    assert {found.status for found in late} == {503}
    assert max(found.took_s for found in refused) < 5.0

    async def well() -> bool:
        return all([(await client.chat({"model": "main", **ASKED})).succeeded for client in fleet.clients(key)])

    await testing.eventually_async(well, "calls go through again", timeout_s=20.0, every_s=0.1)
    await books(fleet, "silent", await fleet.served("sim-1"))


async def test_gateways_outlive_a_store_that_is_killed(identities, tmp_path):
    port, folder = testing.free_port(), tmp_path / "store"
    folder.mkdir()
    async with simulated() as sim, aiohttp.ClientSession() as http:
        with testing.valkey_server("state", port=port, folder=folder) as (url, store):
            async with replicas(identities, url, tmp_path, listed(sim.url), 1, store_timeout_ms=400) as gateways:
                fleet = Fleet(gateways, sim, http, store, Lag(url), url)
                key = await fleet.key("killed")
                (client,) = fleet.clients(key)
                assert (await client.chat({"model": "main", **ASKED})).succeeded
                store.kill()
                refused, _ = await fleet.hammer(key, "main", 1.5)
                assert {found.status for found in refused} == {503}
                assert max(found.took_s for found in refused) < 5.0
                assert len(await fleet.served("sim-1")) == 1
                with testing.valkey_server("state", port=port, folder=folder):
                    again = ""

                    async def well() -> bool:
                        nonlocal again
                        again = again or await fleet.key("again")
                        return (await Client(http, gateways[0].url, again).chat({"model": "main", **ASKED})).succeeded

                    await testing.eventually_async(well, "calls go through again", timeout_s=20.0, every_s=0.1)
