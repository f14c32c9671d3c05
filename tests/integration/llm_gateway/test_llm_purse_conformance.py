"""What every purse must do, run against the one in Valkey and against the one in memory."""

import asyncio
from dataclasses import replace

import pytest
import pytest_asyncio

from services.common import testing
from services.common.accounts import LimitSet, PrincipalLimits
from services.common.errors import BudgetExceeded, PermissionDenied, QuotaExceeded
from services.common.identity import Principal
from services.common.limits import TierPolicy
from services.llm_gateway.accounting import Plans
from services.llm_gateway.adapters.ledger import Ledger, Subjects
from services.llm_gateway.adapters.purse import ValkeyPurse
from services.llm_gateway.fakes import FixedLimits, InMemoryPurse, MemorySubjects
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask, Ticket

ANA = Principal("acme", "ana", "key_1", "blue", ("*",), "pro")
BEN = Principal("acme", "ben", "key_2", "red", ("*",), "pro")


def ask(principal: Principal = ANA, **changes) -> Ask:
    """A call of at most 1,000 micro-USD and 100 tokens."""
    made = Ask("call", 1, principal, "gpt", "d1", "openai", "chat", 100, 1_000_000, 60.0)
    return replace(made, **changes)


def used(microusd: int, tokens: int = 10) -> Usage:
    """What an attempt came to."""
    return Usage(input=tokens, cost_picousd=microusd * 10**6)


class Kit:
    """A purse with limits that a test sets."""

    def __init__(self, purse, accounts: FixedLimits, ledger: Ledger | None, thresholds: list) -> None:
        self.purse, self.accounts, self._ledger, self.thresholds = purse, accounts, ledger, thresholds
        self._plans = purse._plans

    def limit(self, **limits: LimitSet) -> None:
        """Sets the limits of everybody, at once."""
        self.accounts.current = PrincipalLimits(**limits)
        self._plans._plans.clear()

    def tier(self, policy: TierPolicy) -> None:
        """Sets the policy of every tier."""
        self._plans._tier = lambda _: policy
        self._plans._plans.clear()

    async def settle(self, ticket: Ticket, usage: Usage, status: str = "ok", **more) -> None:
        """Settles, and waits until that has been done."""
        self.purse.settle(ticket, usage, status=status, latency_s=0.5, **more)
        assert await self.purse.drain(5.0) == 0

    async def release(self, ticket: Ticket) -> None:
        """Releases, and waits until that has been done."""
        self.purse.release(ticket)
        assert await self.purse.drain(5.0) == 0

    async def lines(self) -> list[dict]:
        """The ledger."""
        return self.purse.ledger if self._ledger is None else (await self._ledger.lines("acme", limit=1000)).lines

    async def swept(self, count: int) -> None:
        """Waits until so many reservations have expired and been booked."""
        booked = 0

        async def enough():
            nonlocal booked
            booked += await self.purse.sweep()
            return booked >= count

        await testing.eventually_async(enough, "the reservations expired")
        assert booked == count

    async def money(self, scope: str, principal: Principal = ANA, group: str = "gpt") -> tuple[int, int]:
        """Spent and reserved nano-USD of a scope; it needs a budget."""
        states = await self.purse.budgets(principal, group=group)
        (found,) = [b for b in states.budgets if b.scope == scope]
        return found.spent_nanousd, found.reserved_nanousd

    async def left(self, kind: str, principal: Principal = ANA) -> int:
        """What is left of the only limit of that kind."""
        states = await self.purse.budgets(principal, group="gpt")
        (found,) = [limit for limit in states.limits if limit.kind == kind]
        return found.remaining


@pytest_asyncio.fixture(params=["valkey", "memory"])
async def kit(request, valkey):
    """One kit for each purse."""
    accounts = FixedLimits(PrincipalLimits())
    if request.param == "memory":
        purse = InMemoryPurse(Plans(accounts, lambda _: None, MemorySubjects()))
        yield Kit(purse, accounts, None, purse.thresholds)
        return
    told: list = []
    purse = ValkeyPurse(valkey, Plans(accounts, lambda _: None, Subjects(valkey)), timeout_s=5.0, on_threshold=told.append)
    yield Kit(purse, accounts, Ledger(valkey), told)
    await purse.drain(5.0)
    await purse.stop()


async def outcomes(kit: Kit, asks: list[Ask]) -> tuple[list[Ticket], list[Exception]]:
    """Reserves at the same time; tickets and refusals."""
    found = await asyncio.gather(*(kit.purse.reserve(one) for one in asks), return_exceptions=True)
    return [f for f in found if isinstance(f, Ticket)], [f for f in found if not isinstance(f, Ticket)]


async def test_a_settled_call_is_booked_with_everybody_who_pays_and_has_one_line(kit):
    budget = LimitSet(max_budget_microusd=10_000)
    kit.limit(key=budget, user=budget, team=budget, tenant=replace(budget, model_limits={"gpt": budget}))
    ticket = await kit.purse.reserve(ask(run_id="run_1"))
    assert await kit.money("team") == (0, 1_000_000)
    usage = Usage(input=50, output=20, cached_input=8, reasoning=5, cost_picousd=400_000_000, cache_write=4)
    await kit.settle(ticket, usage, metadata={"tag": "night"})
    for scope in ("key", "user", "team", "tenant", "model"):
        assert await kit.money(scope) == (400_000, 0)
    (line,) = await kit.lines()
    at = line.pop("at")
    assert at > 1_700_000_000_000
    assert line == {
        "id": ticket.id, "call_id": "call", "attempt": 1, "tenant": "acme", "user": "ana", "team": "blue", "key": "key_1",
        "run": "run_1", "model": "gpt", "deployment": "d1", "provider": "openai", "operation": "chat", "input_tokens": 50,
        "output_tokens": 20, "cached_tokens": 8, "cache_write_tokens": 4, "reasoning_tokens": 5, "cost_nanousd": 400_000,
        "reserved_nanousd": 1_000_000, "estimated": False, "status": "ok", "latency_ms": 500.0, "schema_version": 1,
        "metadata": {"tag": "night"},
    }  # fmt: skip


CAPPED = [
    ("key", {"key": LimitSet(max_budget_microusd=5_500)}),
    ("user", {"user": LimitSet(max_budget_microusd=5_500, budget_period="1d")}),
    ("team", {"team": LimitSet(max_budget_microusd=5_500, budget_period="7d")}),
    ("tenant", {"tenant": LimitSet(max_budget_microusd=5_500, budget_period="1mo")}),
    ("tenant", {"tenant": LimitSet(max_budget_microusd=5_500, budget_period="3mo")}),
    ("model", {"tenant": LimitSet(model_limits={"gpt": LimitSet(max_budget_microusd=5_500)})}),
    ("model", {"key": LimitSet(model_limits={"gpt": LimitSet(max_budget_microusd=5_500)})}),
    ("model", {"team": LimitSet(model_limits={"gpt": LimitSet(max_budget_microusd=5_500)})}),
]


@pytest.mark.parametrize(("scope", "limits"), CAPPED)
async def test_calls_at_the_same_time_never_pass_a_cap_together(kit, scope, limits):
    kit.limit(**limits)
    tickets, refused = await outcomes(kit, [ask(call_id=f"c{n}") for n in range(40)])
    assert len(tickets) == 5
    assert all(isinstance(error, BudgetExceeded) and error.reason == "BUDGET_EXCEEDED" for error in refused)
    period = next(iter(limits.values())).budget_period
    assert {(error.metadata["scope"], error.metadata["period"]) for error in refused} == {(scope, period)}
    assert ("resets_at" in refused[0].metadata) == bool(period)
    assert await kit.money(scope) == (0, 5_000_000)
    for ticket in tickets:
        await kit.settle(ticket, used(900))
    assert await kit.money(scope) == (4_500_000, 0)
    tickets, _ = await outcomes(kit, [ask() for _ in range(5)])
    assert len(tickets) == 1
    await kit.purse.reserve(ask(group="other", principal=BEN, cost_nanousd=0))


async def test_a_run_has_a_budget_of_its_own(kit):
    calls = [ask(run_id="run_1", run_budget_microusd=2_000) for _ in range(5)]
    tickets, refused = await outcomes(kit, calls)
    assert len(tickets) == 2
    assert {error.metadata["scope"] for error in refused} == {"run"}
    await kit.purse.reserve(ask(run_id="run_2", run_budget_microusd=2_000))


async def test_a_refused_reserve_takes_from_nobody(kit):
    kit.limit(user=LimitSet(max_budget_microusd=50_000, requests_per_minute=10), tenant=LimitSet(max_budget_microusd=1_000))
    first = await kit.purse.reserve(ask())
    with pytest.raises(BudgetExceeded):
        await kit.purse.reserve(ask())
    assert await kit.money("user") == (0, 1_000_000)
    assert await kit.left("requests_per_minute") == 9
    await kit.release(first)
    assert await kit.money("user") == (0, 0)
    assert await kit.lines() == []


@pytest.mark.parametrize(
    ("policy", "limits", "passing"),
    [
        ("requests_per_minute", LimitSet(requests_per_minute=3), 3),
        ("tokens_per_minute", LimitSet(tokens_per_minute=350), 3),
        ("tokens_per_day", LimitSet(tokens_per_day=350), 3),
        ("concurrency", LimitSet(max_parallel=3), 3),
    ],
)
async def test_limits_of_requests_tokens_and_calls_in_flight_hold(kit, policy, limits, passing):
    kit.limit(key=limits)
    tickets, refused = await outcomes(kit, [ask() for _ in range(10)])
    assert len(tickets) == passing
    assert all(isinstance(error, QuotaExceeded) for error in refused)
    assert {error.metadata["policy"] for error in refused} == {policy}
    assert all(error.retry_after_s > 0 for error in refused)


async def test_what_was_reserved_and_not_used_comes_back(kit):
    kit.limit(user=LimitSet(tokens_per_day=350, max_parallel=3, requests_per_minute=10))
    tickets, _ = await outcomes(kit, [ask() for _ in range(3)])
    await kit.settle(tickets[0], used(100, tokens=40))
    await kit.release(tickets[1])
    assert await kit.left("tokens_per_day") == 350 - 40 - 100
    assert await kit.left("concurrency") == 2
    # A call was asked for, whatever came of it.
    assert await kit.left("requests_per_minute") == 7


async def test_a_second_attempt_is_no_second_request(kit):
    kit.limit(key=LimitSet(requests_per_minute=1))
    await kit.release(await kit.purse.reserve(ask()))
    await kit.purse.reserve(ask(number=2, requests=0))


async def test_a_call_that_is_larger_than_the_limit_is_not_told_to_wait(kit):
    kit.limit(key=LimitSet(tokens_per_minute=50))
    with pytest.raises(QuotaExceeded) as refused:
        await kit.purse.reserve(ask())
    assert refused.value.retry_after_s is None


async def test_tiers_limit_each_user(kit):
    kit.tier(TierPolicy(money_per_day_usd="0.002", model_parallel=10))
    tickets, refused = await outcomes(kit, [ask() for _ in range(3)])
    assert len(tickets) == 2
    assert (refused[0].metadata["scope"], refused[0].metadata["period"]) == ("user", "1d")
    await kit.purse.reserve(ask(BEN))


async def test_a_ticket_ends_once(kit):
    kit.limit(key=LimitSet(max_budget_microusd=10_000))
    ticket, other = await kit.purse.reserve(ask()), await kit.purse.reserve(ask())
    await kit.settle(ticket, used(700))
    await kit.settle(ticket, used(700))
    await kit.release(ticket)
    await kit.release(other)
    await kit.settle(other, used(700))
    assert await kit.money("key") == (700_000, 0)
    assert len(await kit.lines()) == 1


async def test_an_attempt_that_cost_more_than_was_reserved_is_booked_as_it_was(kit):
    kit.limit(key=LimitSet(max_budget_microusd=1_500))
    await kit.settle(await kit.purse.reserve(ask()), used(1_800))
    assert await kit.money("key") == (1_800_000, 0)
    with pytest.raises(BudgetExceeded):
        await kit.purse.reserve(ask(cost_nanousd=1))


async def test_what_nobody_ended_is_booked_at_its_reserve_and_frees_its_place(kit):
    kit.limit(key=LimitSet(max_budget_microusd=10_000, max_parallel=1))
    ticket = await kit.purse.reserve(ask(expires_s=0.02))
    await kit.swept(1)
    assert await kit.money("key") == (1_000_000, 0)
    assert await kit.left("concurrency") == 1
    (line,) = await kit.lines()
    assert (line["id"], line["status"], line["estimated"], line["cost_nanousd"]) == (ticket.id, "lost", True, 1_000_000)
    assert (line["user"], line["key"], line["model"], line["call_id"]) == ("ana", "key_1", "gpt", "call")


@pytest.mark.parametrize("released", [False, True])
async def test_a_late_end_corrects_what_was_booked_exactly_once(kit, released):
    kit.limit(key=LimitSet(max_budget_microusd=10_000, budget_period="1d", tokens_per_day=1_000))
    ticket = await kit.purse.reserve(ask(expires_s=0.02))
    await kit.swept(1)
    for _ in range(2):
        await (kit.release(ticket) if released else kit.settle(ticket, used(300, tokens=30)))
    cost, tokens = (0, 0) if released else (300_000, 30)
    assert await kit.money("key") == (cost, 0)
    assert await kit.left("tokens_per_day") == 1_000 - tokens
    lost, correction = await kit.lines()
    assert (correction["corrects"], correction["status"]) == (lost["id"], "corrected")
    assert lost["cost_nanousd"] + correction["cost_nanousd"] == cost
    assert lost["input_tokens"] + correction["input_tokens"] == tokens


async def test_a_budget_begins_anew_with_its_period_and_what_is_in_flight_counts_in_both(kit):
    kit.limit(key=LimitSet(max_budget_microusd=2_000, budget_period="1s"))
    await kit.settle(await kit.purse.reserve(ask()), used(1_000))
    ticket = await kit.purse.reserve(ask())

    async def began_anew():
        return await kit.money("key") == (0, 1_000_000)

    await testing.eventually_async(began_anew, "the period ended")
    await kit.settle(ticket, used(1_000))
    lines = await kit.lines()
    assert sum(line["cost_nanousd"] for line in lines) == 2_000_000


async def test_thresholds_are_told_once_for_each_period_and_limit(kit):
    kit.limit(key=LimitSet(max_budget_microusd=10_000, soft_budget_microusd=3_000))

    async def spend(microusd: int) -> None:
        await kit.settle(await kit.purse.reserve(ask()), used(microusd))

    def told() -> list[int]:
        return [threshold.percent for threshold in kit.thresholds]

    for _ in range(7):
        await spend(1_000)
    assert told() == [0]
    await spend(1_000)
    await spend(1_000)
    assert told() == [0, 80]
    await spend(1_000)
    assert told() == [0, 80, 100]
    assert (kit.thresholds[1].scope, kit.thresholds[1].scope_id, kit.thresholds[1].limit_nanousd) == ("key", "key_1", 10_000_000)
    with pytest.raises(BudgetExceeded):
        await kit.purse.reserve(ask())
    assert told() == [0, 80, 100]
    kit.limit(key=LimitSet(max_budget_microusd=12_500, soft_budget_microusd=3_000))
    await spend(1_000)
    assert told() == [0, 80, 100, 80]


async def test_a_budget_that_refuses_calls_when_most_is_spent_counts_as_used_up(kit):
    kit.limit(key=LimitSet(max_budget_microusd=10_000))
    await kit.settle(await kit.purse.reserve(ask(cost_nanousd=9_500_000)), used(9_500))
    for _ in range(2):
        with pytest.raises(BudgetExceeded):
            await kit.purse.reserve(ask())
    assert [threshold.percent for threshold in kit.thresholds] == [80, 100]


async def test_calls_in_flight_alone_raise_no_alarm(kit):
    kit.limit(key=LimitSet(max_budget_microusd=10_000))
    tickets, refused = await outcomes(kit, [ask() for _ in range(20)])
    assert (len(tickets), len(refused)) == (10, 10)
    assert kit.thresholds == []


async def test_a_model_that_is_not_allowed_is_refused(kit):
    kit.limit(key=LimitSet(models=("small",)))
    with pytest.raises(PermissionDenied) as refused:
        await kit.purse.reserve(ask())
    assert refused.value.reason == "MODEL_NOT_ALLOWED"
    await kit.purse.reserve(ask(group="small"))


async def test_a_free_call_needs_no_money(kit):
    kit.limit(key=LimitSet(max_budget_microusd=0))
    with pytest.raises(BudgetExceeded):
        await kit.purse.reserve(ask())
    await kit.settle(await kit.purse.reserve(ask(cost_nanousd=0)), used(0))


async def test_the_ticket_says_what_is_left_of_the_tightest_rates(kit):
    kit.limit(key=LimitSet(requests_per_minute=60, tokens_per_minute=6_000), user=LimitSet(requests_per_minute=30))
    ticket = await kit.purse.reserve(ask())
    requests, tokens = ticket.limits
    assert (requests.kind, requests.limit, requests.remaining) == ("requests", 30, 29)
    assert 0 < requests.reset_s <= 2.0
    assert (tokens.kind, tokens.limit, tokens.remaining) == ("tokens", 6_000, 5_900)
    assert 0 < tokens.reset_s <= 1.0


async def test_budget_left_is_the_smallest_share(kit):
    assert await kit.purse.budget_left(ANA) == 1.0
    kit.limit(key=LimitSet(max_budget_microusd=10_000), tenant=LimitSet(max_budget_microusd=4_000))
    kit.purse._plans._accounts_of.clear()
    await kit.settle(await kit.purse.reserve(ask()), used(1_000))
    assert await kit.purse.budget_left(ANA) == pytest.approx(0.75, abs=0.001)


async def test_a_total_of_many_millions_is_exact_to_the_nano(kit):
    kit.limit(tenant=LimitSet(max_budget_microusd=10**15))
    huge = 9_000_000_000_000_001
    for cost in (huge, 1, huge, 1):
        await kit.settle(await kit.purse.reserve(ask(cost_nanousd=0)), Usage(cost_picousd=cost * 1000))
    assert (await kit.money("tenant"))[0] == 2 * huge + 2
