"""LLM gateways on a replica set whose primary is killed under load: every answer is paid for once, and keys are what was told of them.

For a moment before its end the primary goes on without its replicas, so that what it alone has written is lost. The books of the gateways
are compared with the simulator's own billing log: the processes that asked live, so that nothing is estimated.
"""

import asyncio
import itertools
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from scripts.chaos import defects_of
from services.common import testing
from services.common.accounts import Accounts, LimitSet, TenantRecord
from services.common.valkey import connect
from services.llm_gateway.adapters.ledger import Ledger
from services.orchestrator.testing.replica_set import replica_set
from tests.integration.llm_gateway.conftest import simulated
from tests.integration.llm_gateway.fleet import replicas
from tests.integration.llm_gateway.proof import Client, deployment

# Of what the primary writes last, in seconds: shorter than it takes it to find that it has no replica.
ALONE_S = 0.7
pytestmark = [pytest.mark.system, pytest.mark.timeout(170)]
TENANT, MASTER, CALLERS = "acme", "sk-master-1234", 10
SETTINGS = {"state_replicas": 1, "store_timeout_ms": 2000, "master_key": MASTER, "model_total_timeout_s": 20.0}


def models(sim_url):
    return {"model_list": [deployment("main", "sim-1", f"{sim_url}/v1")], "router_settings": {"allowed_fails": 1000, "num_retries": 0}}


class Scene:
    """Two gateways, who calls them, who makes and ends keys, and what they were told."""

    def __init__(self, gateways, sim, http, secret):
        self.gateways, self.sim, self.http = gateways, sim, http
        self.clients = [Client(http, gateway.url, secret) for gateway in gateways]
        self.at_work = True
        self.answered, self.refused, self.numbers = [], Counter(), itertools.count()
        self.keyed = {}
        self.made, self.ended = set(), set()

    async def call(self, client, number, **headers):
        """One call, whose size is its own; what was seen, or None where it was refused."""
        # The store is away for some seconds, and whoever is refused comes again.
        body = {"model": "main", "messages": [{"role": "user", "content": "Write 9 words. " + "and " * (number % 997)}], "max_tokens": 40}
        seen = await client.chat(body, stream=number % 2 == 0, **headers)
        if seen.succeeded:
            return seen
        self.refused[seen.status, seen.error["code"]] += 1
        await asyncio.sleep(0.05)
        return None

    async def keep_calling(self, which):
        while self.at_work:
            number = next(self.numbers)
            # Each fifth has a key, under which it is asked again when all is over.
            key = {"idempotency_key": f"n{number}"} if number % 5 == 0 else {}
            seen = await self.call(self.clients[which % 2], number, **key)
            if seen is not None:
                self.answered.append(seen)
                if key:
                    self.keyed[number] = seen

    async def admin(self, path, **body):
        async with self.http.post(
            self.gateways[0].url + path, json={"tenant": TENANT, **body}, headers={"authorization": f"Bearer {MASTER}"}
        ) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def keep_changing_keys(self):
        """Makes keys, and ends every second one until that is acknowledged."""
        for number in itertools.count():
            if not self.at_work:
                return
            status, made = await self.admin("/key/generate", user_id="bob", key_alias=f"k{number}")
            if status != 200:
                self.refused[status, made["error"]["code"]] += 1
                await asyncio.sleep(0.05)
                continue
            self.made.add(made["key"])
            if number % 2:
                status, told = await self.admin("/key/delete", keys=[made["key"]])
                while status not in (200, 404):
                    self.refused[status, told["error"]["code"]] += 1
                    await asyncio.sleep(0.05)
                    status, told = await self.admin("/key/delete", keys=[made["key"]])
                self.ended.add(made["key"])

    async def served(self):
        found, after = [], 0
        while True:
            async with self.http.get(f"{self.sim.url}/sim/log?limit=1000&after={after}") as answer:
                page = orjson.loads(await answer.read())
            found += [line for line in page["lines"] if line["endpoint"] != "/sim"]
            if len(page["lines"]) < 1000:
                return found
            after = page["last_seq"]


@asynccontextmanager
async def scene(identities, servers, folder):
    async with (
        simulated() as sim,
        replicas(identities, servers.urls["gateways"], folder, models(sim.url), **SETTINGS) as gateways,
        aiohttp.ClientSession() as http,
        connect(servers.urls["test"]) as state,
    ):
        accounts = Accounts(state, 1)
        await accounts.tenants.create(TenantRecord(TENANT, limits=LimitSet(max_budget_microusd=10**9)))
        limits = LimitSet(max_budget_microusd=10**8)
        issued = await accounts.create_key(tenant=TENANT, user="ana", tier="enterprise", scopes=["*"], limits=limits)
        yield Scene(gateways, sim, http, issued.secret)


async def lines_of(ledger):
    found, cursor = [], ""
    while True:
        page = await ledger.lines(TENANT, limit=1000, cursor=cursor)
        found += page.lines
        if not (cursor := page.cursor):
            return found


async def settled(servers, sim):
    """Returns when nothing is being served and no reservation is open at the primary."""
    async with connect(servers.urls["test"], timeout_s=10.0) as state:

        async def quiet():
            opened = (await state.hgetall(f"llm:{{{TENANT}}}:open")).values()
            # The mark of a reserve that was given up holds no money.
            return not await sim.in_flight() and all(len(raw) == 40 for raw in opened)

        await testing.eventually_async(quiet, "nothing in flight and nothing reserved", timeout_s=30.0)


async def test_whatever_was_answered_is_paid_once_and_keys_are_what_was_told(identities, tmp_path):
    with replica_set(tmp_path / "set", clients=("gateways", "test")) as servers:
        async with scene(identities, servers, tmp_path) as made:
            work = [asyncio.create_task(made.keep_calling(which)) for which in range(CALLERS)]
            work.append(asyncio.create_task(made.keep_changing_keys()))
            await testing.eventually_async(lambda: len(made.answered) > 100 and len(made.ended) > 5, "calls are answered and keys end")
            lost = await asyncio.to_thread(servers.primary)
            others = [node for node in servers.nodes if node is not lost]
            servers.network.cut([lost.name], [node.name for node in others])
            await asyncio.sleep(ALONE_S)
            written = (await asyncio.to_thread(lost.info))["master_repl_offset"]
            assert all([written > (await asyncio.to_thread(node.info))["slave_repl_offset"] for node in others])
            lost.process.kill()
            await testing.eventually_async(lambda: _another(servers, lost), "another is the primary", timeout_s=60.0)
            servers.network.heal()
            before = len(made.answered), len(made.ended)

            async def goes_on():
                return len(made.answered) > before[0] + 200 and len(made.ended) > before[1] + 10

            await testing.eventually_async(goes_on, "calls are answered and keys end at the next primary", timeout_s=60.0)
            made.at_work = False
            await asyncio.gather(*work)
            # Nobody was told of anything but a store that is away.
            assert set(made.refused) <= {(503, "store_unavailable")}
            assert made.refused
            await settled(servers, made.sim)
            await _books(servers, made)
            await _keys(made)
            await _repeated(made)
            assert [defects_of(gateway._log) for gateway in made.gateways] == [[], []]


async def _another(servers, lost):
    return await asyncio.to_thread(servers.primary) is not lost


async def _books(servers, made):
    served = [line for line in await made.served() if line["billed_nanousd"]]
    async with connect(servers.urls["test"], timeout_s=10.0) as state:
        ledger = Ledger(state)
        lines = await lines_of(ledger)
        (total, *_) = await ledger.spend(TENANT, "tenant", TENANT)
    assert {line["status"] for line in lines} == {"ok"}
    assert not any(line["estimated"] for line in lines)
    assert max(Counter(line["id"] for line in lines).values()) == 1
    booked = Counter((line["input_tokens"], line["output_tokens"], line["cost_nanousd"]) for line in lines)
    billed = Counter((line["prompt_tokens"], line["completion_tokens"], line["billed_nanousd"]) for line in served)
    assert booked == billed
    told = Counter((seen.usage["prompt_tokens"], seen.usage["completion_tokens"]) for seen in made.answered)
    assert not told - Counter((line["input_tokens"], line["output_tokens"]) for line in lines)
    assert (total.spent_nanousd, total.reserved_nanousd) == (sum(line["cost_nanousd"] for line in lines), 0)


async def _keys(made):
    for gateway in made.gateways:
        for secret in made.made:
            async with made.http.get(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {secret}"}) as answer:
                assert answer.status == (401 if secret in made.ended else 200), await answer.text()


async def _repeated(made):
    before = len(await made.served())
    for number, seen in made.keyed.items():
        again = await made.call(made.clients[number % 2], number, idempotency_key=f"n{number}")
        assert again is not None
        assert (again.text, again.usage) == (seen.text, seen.usage)
    assert len(await made.served()) == before
