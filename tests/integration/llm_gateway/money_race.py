"""The money race: many callers at once against small caps, with everything going wrong that can, and the books that must be right.

Each seed is a tenant of its own with random limits on keys, a user, a team, the tenant, a model and a run. Callers come over HTTP and
gRPC, whole and streamed; they leave, run out of time, repeat each other; providers fail. An observer looks at every budget all the
time. Afterwards the ledger is compared with the simulator's own billing log.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import redis.asyncio as redis
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc

from services.common import testing
from services.common.accounts import Accounts, LimitSet, TeamRecord, TenantRecord, UserRecord
from services.common.errors import BulkheadError
from services.common.identity import Principal
from services.common.valkey import connect
from services.llm_gateway.accounting import Plans
from services.llm_gateway.adapters.ledger import Ledger, Subjects
from services.llm_gateway.adapters.purse import ValkeyPurse
from tests.integration.llm_gateway.conftest import simulated
from tests.integration.llm_gateway.fleet import Replica, replicas
from tests.integration.llm_gateway.proof import Client, pair

# What may be wrong with a call, by a word in its question; with `only` at the first model, so that the other one answers.
FAULTS = {
    "zq-a": ("status=503", "sim-1"),
    "zq-b": ("status=401", "sim-1"),
    "zq-c": ("cut_after=5", "sim-1"),
    "zq-d": ("error_event_after=3", ""),
    "zq-e": ("missing_usage", ""),
    "zq-f": ("stall_after=4", "sim-1"),
    "zq-g": ("reset", "sim-1"),
    "zq-h": ("first_token_delay=150", ""),
    "zq-i": ("tokens_per_s=150", ""),
    "zq-j": ("hang", "sim-1"),
    "zq-k": ("usage_zero", ""),
    "zq-l": ("end_after=3", ""),
    "zq-m": ("rate_limit=ms:20", "sim-1"),
    "zq-n": ("malformed_json=2", ""),
    "zq-o": ("reasoning_tokens=10", ""),
    "zq-p": ("error_body", "sim-1"),
}
SETTINGS: dict[str, Any] = {
    "model_retry_base_s": 0.005, "model_retry_cap_s": 0.2, "model_first_token_timeout_s": 0.5, "model_between_tokens_timeout_s": 0.4,
    "model_connect_timeout_s": 2.0, "model_total_timeout_s": 3.0, "store_timeout_ms": 5000,
}  # fmt: skip


def models(sim_url: str) -> dict[str, Any]:
    """main and backup with exact prices, answers cached."""
    content = pair(sim_url, num_retries=1)
    content["litellm_settings"] = {"cache": True}
    return content


async def order_faults(sim: Any) -> None:
    """Every fault, for the questions that hold its word."""
    for word, (fault, only) in FAULTS.items():
        await sim.order(fault, contains=word, **({"model": only} if only else {}))


@dataclass
class Site:
    """Where the race is run: gateways that share a store, and the simulator behind them."""

    urls: Callable[[], Sequence[str]]
    stubs: Callable[[], Sequence[llm_pb2_grpc.LlmServiceStub]]
    sim: Any
    state: redis.Redis
    identities: testing.Identities
    http: aiohttp.ClientSession
    # Called between calls with a number from 0 to 1; may kill a gateway.
    mischief: Callable[[float], Any] | None = None


@asynccontextmanager
async def killable_site(identities: testing.Identities, state_url: str, folder: Path) -> AsyncIterator[tuple[Site, list[Replica]]]:
    """A site of two gateways that are processes of their own: it has those that are up at the moment."""
    async with (
        simulated() as sim,
        replicas(identities, state_url, folder, models(sim.url), **SETTINGS) as fleet,
        stubs_of([replica.address for replica in fleet]) as stubs,
        aiohttp.ClientSession() as http,
        connect(state_url, timeout_s=20.0) as state,
    ):
        await order_faults(sim)

        def urls() -> list[str]:
            return [replica.url for replica in fleet if replica.ready]

        def ready_stubs() -> list[llm_pb2_grpc.LlmServiceStub]:
            return [stub for stub, replica in zip(stubs, fleet, strict=True) if replica.ready]

        yield Site(urls, ready_stubs, sim, state, identities, http), fleet


@dataclass
class Race:
    """One seed."""

    site: Site
    seed: int
    calls: int = 36
    callers: int = 12
    name: str = ""
    # Budgets are so many times as large, for races of more calls.
    scale: int = 1
    outcomes: Counter = field(default_factory=Counter)
    racing: bool = True

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.tenant = self.name or f"race{self.seed}"
        self.people: list[tuple[Principal, str]] = []
        self.looks = 0

    def _limits(self, low: int, high: int, odds: float = 0.5) -> LimitSet:
        chance = self.chance
        money = chance.randrange(low, high) * self.scale if chance.random() < odds else None
        period = chance.choice(["", "1d", "1mo"])
        parallel = chance.randrange(2, 9) if chance.random() < 0.2 else None
        requests = chance.randrange(10, 60) * self.scale if chance.random() < 0.1 else None
        return LimitSet(max_budget_microusd=money, budget_period=period, max_parallel=parallel, requests_per_minute=requests)

    async def prepare(self) -> None:
        """Accounts of the tenant. Always one cap at least that all calls meet."""
        accounts, tenant = Accounts(self.site.state), self.tenant
        whole = self._limits(300, 1500, 1.0)
        models = {"backup": LimitSet(max_budget_microusd=self.chance.randrange(100, 600) * self.scale)}
        await accounts.tenants.create(
            TenantRecord(
                tenant, limits=LimitSet(max_budget_microusd=whole.max_budget_microusd, max_parallel=whole.max_parallel, model_limits=models)
            )
        )
        await accounts.teams.create(TeamRecord(tenant, "blue", limits=self._limits(200, 1000)), "blue")
        await accounts.users.create(UserRecord(tenant, "ana", limits=self._limits(200, 1000)), "ana")
        for number in range(3):
            user, team = ("ana", "ben")[number % 2], ("", "blue")[number > 0]
            issued = await accounts.create_key(
                tenant=tenant, user=user, team=team, tier="enterprise", scopes=["*"], name=f"k{number}", limits=self._limits(100, 600)
            )
            self.people.append((issued.record.principal(), issued.secret))
        self.purse = ValkeyPurse(self.site.state, Plans(accounts, lambda _: None, Subjects(self.site.state)), timeout_s=20.0)

    async def run(self) -> None:
        """All calls, under observation."""
        watcher = asyncio.create_task(self._watch())
        numbers = itertools.count()

        async def caller() -> None:
            while (number := next(numbers)) < self.calls:
                await self._call(number, random.Random(self.seed * 1000 + number))

        await asyncio.gather(*(caller() for _ in range(self.callers)))
        self.racing = False
        await watcher

    async def _call(self, number: int, chance: random.Random) -> None:
        words = chance.randrange(3, 40)
        shared = chance.random() < 0.3
        fault = chance.choice(list(FAULTS)) if chance.random() < 0.5 else ""
        # Questions of their own differ in length, so that bills tell calls apart; shared ones meet in the caches.
        own = "shared" if shared else f"n{number} " + "and " * chance.randrange(12)
        text = f"Write {6 if shared else words} words. {self.tenant} {own} {'' if shared else fault}"
        body = {"model": "main", "messages": [{"role": "user", "content": text}], "max_tokens": words + 20}
        if chance.random() < 0.1:
            del body["max_tokens"]
            body["n"] = 1
        stream, leaves_s = chance.random() < 0.5, chance.random() * 0.2 if chance.random() < 0.25 else None
        if self.site.mischief is not None:
            await self.site.mischief(chance.random())
        made = self._over_grpc(chance, body, stream) if chance.random() < 0.3 and not shared else self._over_http(chance, body, stream)
        task = asyncio.create_task(made)
        try:
            if leaves_s is not None:
                await asyncio.wait([task], timeout=leaves_s)
                task.cancel()
            self.outcomes[await asyncio.wait_for(task, 30)] += 1
        except asyncio.CancelledError:
            self.outcomes["left"] += 1

    async def _over_http(self, chance: random.Random, body: Mapping[str, Any], stream: bool) -> str:
        _, secret = chance.choice(self.people)
        headers = {"x_request_timeout_ms": str(chance.randrange(30, 400))} if chance.random() < 0.15 else {}
        client = Client(self.site.http, chance.choice(self.site.urls()), secret)
        try:
            seen = await client.chat(body, stream=stream, **headers)
        except (aiohttp.ClientError, ConnectionError, AssertionError):
            # The gateway died in the middle; a stream that it broke off is no success for any client.
            if self.site.mischief is None:
                raise
            return "broken"
        if seen.succeeded:
            assert seen.finish
            return "cached" if seen.headers.get("x-bulkhead-cache") else "ok"
        assert seen.error is not None
        return str(seen.error["code"])

    async def _over_grpc(self, chance: random.Random, body: Mapping[str, Any], stream: bool) -> str:
        principal, _ = chance.choice(self.people)
        asked = llm_pb2.CompletionInput(
            model=body["model"], messages=[llm_pb2.Message(role="user", text=body["messages"][0]["content"])],
            max_tokens=body.get("max_tokens", 60), run_id=f"{self.tenant}-run", run_budget_microusd=self._run_budget,
        )  # fmt: skip
        stub = chance.choice(self.site.stubs())
        try:
            with testing.calling(self.site.identities, principal, timeout_s=chance.choice([0.2, 5.0, 5.0])):
                if not stream:
                    await stub.Complete(llm_pb2.CompleteRequest(input=asked))
                    return "ok"
                finished = False
                async for event in stub.StreamComplete(llm_pb2.StreamCompleteRequest(input=asked)):
                    finished = event.WhichOneof("event") == "finished"
                assert finished, "a stream over gRPC ended without its end and without an error"
                return "ok"
        except BulkheadError as error:
            return error.reason.lower()

    @property
    def _run_budget(self) -> int:
        return (150 + self.seed % 7 * 50) * self.scale

    async def _watch(self) -> None:
        while self.racing:
            await self.look()
            await asyncio.sleep(0.002)

    async def look(self) -> int:
        """Every budget is kept, with what is reserved; answers what is reserved in all."""
        held = 0
        for principal, _ in self.people:
            for group in ("main", "backup"):
                found = await self.purse.budgets(principal, f"{self.tenant}-run", group)
                for budget in found.budgets:
                    held += budget.reserved_nanousd
                    if budget.limit_nanousd is not None:
                        assert budget.spent_nanousd + budget.reserved_nanousd <= budget.limit_nanousd, budget
        self.looks += 1
        return held

    async def settle(self, *, crashed: bool = False) -> None:
        """Returns when no call of the tenant is served and none of its reservations is open; what a crash left is made to expire."""
        opened = f"llm:{{{self.tenant}}}:open"

        async def quiet() -> bool:
            async with self.site.http.get(f"{self.site.sim.url}/sim/in-flight") as answer:
                if self.tenant.encode() in await answer.read():
                    return False
            raws = await self.site.state.hgetall(opened)
            if crashed:
                await self._expire(opened, raws)
                await self.purse.sweep()
            return all(len(raw) == 40 for raw in raws.values())

        await testing.eventually_async(quiet, "nothing in flight and nothing reserved", timeout_s=45.0)

    async def _expire(self, opened: str, raws: Mapping[bytes, bytes]) -> None:
        for id_, raw in raws.items():
            # The time to expire is the first of a reservation's numbers. A reserve that ended meanwhile must not come back.
            if await self.site.state.hexists(opened, id_):
                await self.site.state.eval(
                    "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end",
                    1, opened, id_, b"\x00" * 8 + raw[8:],
                )  # fmt: skip

    async def check(self) -> dict[str, int]:
        """Compares the books; answers what there was of each kind."""
        assert self.looks
        assert not await self.look(), "something is still reserved"
        lines, served = await self.lines(), await self._served()
        bill = sum(line["billed_nanousd"] for line in served)
        booked = sum(line["cost_nanousd"] for line in lines)
        compare(lines, served)
        ledger = Ledger(self.site.state)
        (total, *_) = await ledger.spend(self.tenant, "tenant", self.tenant)
        assert (total.spent_nanousd, total.reserved_nanousd) == (booked, 0)
        for scope in ("key", "team", "model"):
            for id_ in {line[scope] for line in lines if line[scope]}:
                (total, *_) = await ledger.spend(self.tenant, scope, id_)
                assert total.spent_nanousd == sum(line["cost_nanousd"] for line in lines if line[scope] == id_)
        tenant = await Accounts(self.site.state).tenants.get(self.tenant)
        cap = (tenant.limits.max_budget_microusd or 0) * 1000
        # What the provider really billed is within the cap, not only what we believe.
        assert bill <= booked <= cap, (bill, booked, cap)
        estimated = sum(1 for line in lines if line["estimated"])
        return {
            "lines": len(lines),
            "estimated": estimated,
            "served": len(served),
            "billed_nanousd": bill,
            "booked_nanousd": booked,
            "cap_nanousd": cap,
        }

    async def lines(self) -> list[dict[str, Any]]:
        """The ledger of the tenant."""
        found, ledger, cursor = [], Ledger(self.site.state), ""
        while True:
            page = await ledger.lines(self.tenant, limit=1000, cursor=cursor)
            found += page.lines
            if not page.cursor:
                return found
            cursor = page.cursor

    async def _served(self) -> list[dict[str, Any]]:
        found, after = [], 0
        while True:
            async with self.site.http.get(f"{self.site.sim.url}/sim/log?limit=1000&after={after}&run={self.tenant}%20") as answer:
                page = orjson.loads(await answer.read())
            found += page["lines"]
            if len(page["lines"]) < 1000:
                return found
            after = page["last_seq"]


def compare(lines: Sequence[Mapping[str, Any]], served: Sequence[Mapping[str, Any]]) -> None:
    """Metered lines are the simulator's bills; the other bills are each covered by an estimated line. Nothing twice, nothing lost."""
    assert max(Counter(line["id"] for line in lines).values(), default=0) <= 1
    assert max(Counter((line["call_id"], line["attempt"]) for line in lines if "corrects" not in line).values(), default=0) <= 1
    asked = {"main": "sim-1", "backup": "sim-2"}
    merged = _corrected(lines)
    bills = Counter(
        (line["model"], line["prompt_tokens"], line["completion_tokens"], line["billed_nanousd"])
        for line in served
        if line["billed_nanousd"]
    )
    metered = Counter(
        (asked[line["model"]], line["input_tokens"], line["output_tokens"], line["cost_nanousd"])
        for line in merged
        if not line["estimated"]
    )
    assert not metered - bills, f"booked as metered and never billed: {metered - bills}"
    left = bills - metered
    for model in asked:
        open_bills = sorted(
            (cost for (name, _, _, cost), times in left.items() if name == asked[model] for _ in range(times)), reverse=True
        )
        estimates = sorted((line["cost_nanousd"] for line in merged if line["estimated"] and line["model"] == model), reverse=True)
        # With both from high to low, each bill has a line of its own that covers it where there is any such pairing at all.
        assert len(open_bills) <= len(estimates), f"billed by {model} and not in the ledger: {open_bills}, {estimates}"
        assert all(bill <= estimate for bill, estimate in zip(open_bills, estimates, strict=False)), (model, open_bills, estimates)
    assert all(0 <= line["cost_nanousd"] <= line["reserved_nanousd"] for line in merged)


def _corrected(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines with their corrections added: a reservation that was taken for lost and was settled after all."""
    found = {line["id"]: dict(line) for line in lines if "corrects" not in line}
    for line in lines:
        if "corrects" in line:
            kept = found[line["corrects"]]
            for name in ("input_tokens", "output_tokens", "cost_nanousd"):
                kept[name] += line[name]
            kept["estimated"] = line["estimated"]
    return [line for line in found.values() if line["cost_nanousd"] or line["estimated"]]


@asynccontextmanager
async def stubs_of(addresses: Sequence[str]) -> AsyncIterator[list[llm_pb2_grpc.LlmServiceStub]]:
    """Stubs of gateways, for a caller that may call them."""
    dialers = []
    async with asyncio.timeout(60):
        for address in addresses:
            made = testing.dialer("orchestrator", {"llm_gateway": address})
            dialers.append((made, await made.__aenter__()))
    try:
        yield [llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway")) for _, dialer in dialers]
    finally:
        for made, _ in dialers:
            with suppress(asyncio.CancelledError):
                await made.__aexit__(None, None, None)
