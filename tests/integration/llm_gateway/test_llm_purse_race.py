"""Many callers, replicas and crashes at once against hard caps: never past a cap, never a line too many, nothing left over."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from services.common import testing
from services.common.accounts import LimitSet, PrincipalLimits
from services.common.errors import BudgetExceeded, QuotaExceeded
from services.common.identity import Principal
from services.llm_gateway.accounting import Plans
from services.llm_gateway.adapters.ledger import Ledger, Subjects
from services.llm_gateway.adapters.purse import ValkeyPurse
from services.llm_gateway.fakes import InMemoryPurse, MemorySubjects
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask, Ticket

PEOPLE = [Principal("acme", f"u{n % 3}", f"k{n % 4}", f"t{n % 2}", ("*",), "pro") for n in range(12)]
CALLERS, CALLS = 12, 12


class Accounts:
    """Limits of each key, user and team, and of the tenant."""

    def __init__(self, chance: random.Random) -> None:
        def limits() -> LimitSet:
            period = chance.choice(["", "1d", "1mo", "7d", "2mo"])
            money = chance.choice([None, chance.randrange(3_000, 60_000)])
            return LimitSet(max_budget_microusd=money, budget_period=period, max_parallel=chance.choice([None, chance.randrange(1, 8)]))

        self._of = {name: limits() for name in ("k0", "k1", "k2", "k3", "u0", "u1", "u2", "t0", "t1", "acme")}
        # At least one cap that all of them meet.
        self._of["acme"] = replace(limits(), max_budget_microusd=80_000, model_limits={"gpt": LimitSet(max_budget_microusd=50_000)})

    async def limits(self, principal: Principal) -> PrincipalLimits:
        found = self._of
        return PrincipalLimits(found[principal.key_id], found[principal.user], found[principal.team], found["acme"])


class Race:
    """One seed."""

    def __init__(self, valkey, seed: int) -> None:
        self.chance = random.Random(seed)
        accounts = Accounts(self.chance)
        self.valkey = valkey
        self.purses = [
            ValkeyPurse(valkey, Plans(accounts, lambda _: None, Subjects(valkey)), timeout_s=10.0, sweep_every_s=0.03) for _ in range(2)
        ]
        self.granted: dict[str, int] = {}
        self.refused = 0
        self.racing = True

    async def call(self, number: int, late: list) -> None:
        chance, principal = self.chance, self.chance.choice(PEOPLE)
        purse = chance.choice(self.purses)
        cost = chance.randrange(1, 4_000_000)
        crash = chance.random() < 0.2
        ask = Ask(
            f"c{number}", 1, principal, chance.choice(["gpt", "mini"]), "d1", "openai", "chat", chance.randrange(1, 500), cost,
            0.02 if crash else 60.0, 1, chance.choice(["", "r1", "r2"]), 20_000,
        )  # fmt: skip
        task = asyncio.create_task(purse.reserve(ask))
        if chance.random() < 0.15:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            ticket = await task
        except (BudgetExceeded, QuotaExceeded):
            self.refused += 1
            return
        except asyncio.CancelledError:
            return
        self.granted[ticket.id] = cost
        if chance.random() < 0.5:
            await asyncio.sleep(chance.random() * 0.005)
        if crash:
            late.append((purse, ticket))
            return
        self.end(purse, ticket)
        if chance.random() < 0.2:
            self.end(chance.choice(self.purses), ticket)

    def end(self, purse: ValkeyPurse, ticket: Ticket) -> None:
        if self.chance.random() < 0.25:
            purse.release(ticket)
        else:
            cost = self.chance.randrange(self.granted[ticket.id] + 1)
            tokens = self.chance.randrange(ticket.ask.tokens + 1)
            purse.settle(ticket, Usage(input=tokens, cost_picousd=cost * 1000), status="ok", latency_s=0.1)

    async def watch(self) -> None:
        """Looks at every budget again and again: spent and reserved together are within it, whoever else is at work."""
        while self.racing:
            await self.look()
            await asyncio.sleep(0.001)

    async def look(self) -> Counter:
        held: Counter = Counter()
        for principal in PEOPLE:
            for run in ("r1", "r2"):
                for budget in (await self.purses[0].budgets(principal, run, "gpt")).budgets:
                    assert budget.spent_nanousd + budget.reserved_nanousd <= budget.limit_nanousd, budget
                    held[budget.scope, budget.scope_id] = budget.reserved_nanousd
        return held

    async def run(self) -> None:
        late: list = []
        for purse in self.purses:
            await purse.start()
        watcher = asyncio.create_task(self.watch())

        async def caller(first: int) -> None:
            for number in range(first, first + CALLS):
                await self.call(number, late)

        await asyncio.gather(*(caller(n * CALLS) for n in range(CALLERS)))
        if watcher.done():
            watcher.result()
        # Half of the crashed processes were only away, and come back when their calls may have been booked already.
        await asyncio.sleep(self.chance.random() * 0.05)
        for purse, ticket in late:
            if self.chance.random() < 0.5:
                self.end(purse, ticket)

        async def nothing_open():
            return await self.valkey.hlen("llm:{acme}:open") == len(await self.voided())

        await testing.eventually_async(nothing_open, "every reservation ended", timeout_s=20.0)
        for purse in self.purses:
            assert await purse.drain(10.0) == 0
        self.racing = False
        await watcher

    async def stop(self) -> None:
        self.racing = False
        for purse in self.purses:
            await purse.stop()

    async def voided(self) -> list[bytes]:
        """Marks of reserves that were given up before they came to the store."""
        found = await self.valkey.hgetall("llm:{acme}:open")
        return [id_ for id_, raw in found.items() if len(raw) == 40]

    async def check(self) -> None:
        ledger = Ledger(self.valkey)
        lines = (await ledger.lines("acme", limit=1000)).lines
        firsts = Counter(line["id"] for line in lines)
        assert set(firsts.values()) <= {1}
        booked: Counter = Counter()
        for line in lines:
            ticket = line.get("corrects", line["id"])
            booked[ticket] += line["cost_nanousd"]
            assert ("corrects" in line) == line["id"].endswith("/corrected")
            assert "corrects" not in line or firsts[ticket] == 1
        assert all(0 <= cost <= self.granted[ticket] for ticket, cost in booked.items())
        assert set(booked) <= set(self.granted)
        assert not any((await self.look()).values())
        by_scope: Counter = Counter()
        for line in lines:
            for scope in ("key", "user", "team", "tenant", "model"):
                by_scope[scope, line[scope]] += line["cost_nanousd"]
        for (scope, id_), cost in by_scope.items():
            (total, *_) = await ledger.spend("acme", scope, id_)
            assert (total.spent_nanousd, total.reserved_nanousd) == (cost, 0), (scope, id_)
        # Nobody holds a place any more.
        for key in await self.valkey.keys("llm:{acme}:*:*"):
            if (await self.valkey.type(key)) == b"string":
                looked = await self.purses[0]._library.call("purse_look_v1", [key], [b"\x00"])
                assert looked[1][2:4] == [0, 0], key


@pytest.mark.parametrize("seed", range(15))
async def test_no_race_passes_a_cap_or_leaves_anything_over(valkey, seed):
    race = Race(valkey, seed)
    try:
        await race.run()
        await race.check()
    finally:
        await race.stop()
    # The seeds are of use only where caps were met and calls went through.
    assert race.refused
    assert race.granted


class Pair:
    """The same purse twice, in Valkey and in memory."""

    def __init__(self, valkey, chance: random.Random) -> None:
        self.chance, self.accounts = chance, Accounts(chance)
        for name, limits in self.accounts._of.items():
            if chance.random() < 0.3:
                self.accounts._of[name] = replace(limits, tokens_per_day=chance.randrange(500, 5_000))
        self.told: list = []
        subjects = MemorySubjects()
        self.real = ValkeyPurse(valkey, Plans(self.accounts, lambda _: None, subjects), timeout_s=10.0, on_threshold=self.told.append)
        self.fake = InMemoryPurse(Plans(self.accounts, lambda _: None, subjects))
        self.open: list[tuple[Ticket, Ticket]] = []

    async def reserve(self) -> str:
        ask = Ask(
            "c", 1, self.chance.choice(PEOPLE), self.chance.choice(["gpt", "mini"]), "d1", "openai", "chat", self.chance.randrange(1, 500),
            self.chance.choice([0, self.chance.randrange(1, 8_000_000)]), self.chance.choice([0.0, 60.0]), 1,
            self.chance.choice(["", "r1"]), 40_000,
        )  # fmt: skip
        outcomes: list = await asyncio.gather(self.real.reserve(ask), self.fake.reserve(ask), return_exceptions=True)
        if isinstance(outcomes[0], Ticket) and isinstance(outcomes[1], Ticket):
            self.open.append((outcomes[0], outcomes[1]))
            return "granted"
        assert type(outcomes[0]) is type(outcomes[1]), outcomes
        # A period of seven days began when it was first met, in each purse at its own second.
        assert {**outcomes[0].metadata, "resets_at": ""} == {**outcomes[1].metadata, "resets_at": ""}
        return outcomes[0].reason

    async def end(self) -> None:
        pair = self.open.pop(self.chance.randrange(len(self.open)))
        cost, tokens = self.chance.randrange(pair[0].ask.cost_nanousd * 5 // 4 + 1), self.chance.randrange(pair[0].ask.tokens + 1)
        released = self.chance.random() < 0.3
        for purse, ticket in zip((self.real, self.fake), pair, strict=True):
            if released:
                purse.release(ticket)
            else:
                purse.settle(ticket, Usage(input=tokens, cost_picousd=cost * 1000), status="ok", latency_s=0.1)
        assert await self.real.drain(10.0) == 0

    async def same(self) -> None:
        for principal in PEOPLE[:6]:
            real, fake = await self.real.budgets(principal, group="gpt"), await self.fake.budgets(principal, group="gpt")
            for one, other in zip(real.budgets, fake.budgets, strict=True):
                assert replace(one, resets_at=0) == replace(other, resets_at=0)
                assert abs(one.resets_at - other.resets_at) <= 2
            assert real.limits == fake.limits
        assert self.told == self.fake.thresholds


@pytest.mark.parametrize("seed", range(12))
async def test_the_purse_in_memory_decides_as_the_real_one(valkey, seed):
    chance = random.Random(seed)
    pair = Pair(valkey, chance)
    reasons: Counter = Counter()
    for _ in range(60):
        step = chance.random()
        if step < 0.6 or not pair.open:
            reasons[await pair.reserve()] += 1
        elif step < 0.95:
            await pair.end()
        else:
            assert await pair.real.sweep() == await pair.fake.sweep()
            await pair.same()
    await pair.same()
    await pair.real.stop()
    assert reasons["granted"]
    assert len(reasons) > 1
