"""Limits of a principal as plans, and lines of the ledger."""

import asyncio
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.accounts import LimitSet, PrincipalLimits
from services.common.errors import Overloaded, PermissionDenied
from services.common.identity import Principal
from services.common.limits import TierPolicy
from services.llm_gateway.accounting import Caps, Plans, Subject, plans
from services.llm_gateway.accounting.lines import Counts, about_of, lost, settled
from services.llm_gateway.accounting.plans import caps_of, holders_of
from services.llm_gateway.adapters.purse_store import Deadlines
from services.llm_gateway.fakes import FixedLimits, InMemoryPurse, MemorySubjects
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask

ANA = Principal("acme", "ana", "key_1", "blue", ("*",), "pro")
SUBJECT = Subject.new("ana")


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ("", Caps(total=5_000)),
        ("1d", Caps(day=5_000)),
        ("24h", Caps(day=5_000)),
        ("1mo", Caps(month=5_000)),
        ("7d", Caps(period=5_000, period_length=7 * 86_400)),
        ("1w", Caps(period=5_000, period_length=7 * 86_400)),
        ("30s", Caps(period=5_000, period_length=30)),
        ("3mo", Caps(period=5_000, period_length=-3)),
    ],
)
def test_a_budget_stands_in_the_window_of_its_period(period, expected):
    assert caps_of(LimitSet(max_budget_microusd=5, budget_period=period)) == expected


def test_where_tier_and_user_limit_the_same_the_lower_holds():
    tier = TierPolicy(money_per_day_usd="0.5", tokens_per_day=100, tokens_per_minute=50, model_parallel=4)
    assert caps_of(LimitSet(), tier) == Caps(day=500_000_000, tokens_per_day=100, tokens_per_minute=50, parallel=4)
    own = LimitSet(max_budget_microusd=300_000, budget_period="1d", tokens_per_day=200, tokens_per_minute=20, max_parallel=9)
    assert caps_of(own, tier) == Caps(day=300_000_000, tokens_per_day=100, tokens_per_minute=20, parallel=4)
    assert caps_of(LimitSet(max_budget_microusd=1), tier) == Caps(1_000, 500_000_000, -1, -1, 0, 100, -1, 50, 4)


def test_a_budget_of_nothing_is_a_limit():
    assert caps_of(LimitSet(max_budget_microusd=0)).money() == ((1, 0),)


def test_who_pays_is_everybody_that_the_principal_names():
    limits = PrincipalLimits(
        key=LimitSet(model_limits={"gpt": LimitSet(requests_per_minute=1)}), tenant=LimitSet(model_limits={"gpt": LimitSet(max_parallel=2)})
    )
    found = {holder.key: holder for holder in holders_of(ANA, "gpt", limits, None, SUBJECT)}
    assert set(found) == {
        "llm:{acme}:key:key_1", f"llm:{{acme}}:user:{SUBJECT.pseudonym}", "llm:{acme}:team:blue", "llm:{acme}:tenant:acme",
        "llm:{acme}:key.model:key_1/gpt", "llm:{acme}:model:gpt",
    }  # fmt: skip
    assert found["llm:{acme}:key.model:key_1/gpt"].caps.requests_per_minute == 1
    assert found["llm:{acme}:model:gpt"].caps.parallel == 2
    internal = Principal("acme", "ana")
    assert [h.scope for h in holders_of(internal, "", PrincipalLimits(), None, SUBJECT)] == ["user", "tenant"]


async def test_a_plan_is_kept_until_the_limits_change(monkeypatch):
    monkeypatch.setattr(plans, "FRESH_S", 0.0)
    accounts, policy = FixedLimits(PrincipalLimits()), None
    made = Plans(accounts, lambda _: policy, MemorySubjects())
    first = await made.find(ANA, "gpt")
    assert made.known(ANA, "gpt") is None
    assert await made.find(ANA, "gpt") is first
    accounts.current = PrincipalLimits(key=LimitSet(max_parallel=3))
    second = await made.find(ANA, "gpt")
    assert (second.holders[0].caps.parallel, second.account) == (3, first.account)
    policy = TierPolicy(tokens_per_day=7)
    assert (await made.find(ANA, "gpt")).holders[1].caps.tokens_per_day == 7


async def test_a_kept_plan_costs_no_look_up():
    made = Plans(FixedLimits(PrincipalLimits()), lambda _: None, MemorySubjects())
    plan = await made.find(ANA, "gpt")
    assert made.known(ANA, "gpt") is plan
    assert made.known(ANA, "other") is None
    assert made.known(Principal("acme", "ana", "key_2", "blue", ("*",), "pro"), "gpt") is None


class SlowSubjects(MemorySubjects):
    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.open = asyncio.Event()
        self.failing = False

    async def of(self, tenant: str, user: str) -> Subject:
        self.asked += 1
        await self.open.wait()
        if self.failing:
            raise Overloaded("away")
        return await super().of(tenant, user)


@pytest.mark.parametrize("failing", [False, True])
async def test_many_first_calls_share_one_look_up(failing):
    subjects = SlowSubjects()
    subjects.failing = failing
    made = Plans(FixedLimits(PrincipalLimits()), lambda _: None, subjects)
    tasks = [asyncio.create_task(made.find(ANA, "gpt")) for _ in range(50)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    subjects.open.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert subjects.asked == 1
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(one, Overloaded) if failing else one is found[1] for one in found[1:])


async def test_only_allowed_models_have_plans():
    made = Plans(FixedLimits(PrincipalLimits(team=LimitSet(models=("small",)))), lambda _: None, MemorySubjects())
    assert await made.allows(ANA, "small")
    assert not await made.allows(ANA, "large")
    with pytest.raises(PermissionDenied):
        await made.find(ANA, "large")
    assert [holder.scope for holder in (await made.find(ANA, "")).holders] == ["key", "user", "team", "tenant"]


def test_what_is_sealed_opens_with_the_same_subject_only():
    sealed = SUBJECT.seal({"tag": "night", "n": 3})
    assert "night" not in sealed
    assert Subject.unpacked(SUBJECT.packed()).open(sealed) == {"tag": "night", "n": 3}
    assert Subject.new("ana").open(sealed) == {}
    assert SUBJECT.open("no base64!") == {}


async def test_lost_lines_have_the_fields_of_settled_ones():
    plan = await Plans(FixedLimits(PrincipalLimits()), lambda _: None, MemorySubjects()).find(ANA, "gpt")
    ask = Ask("call", 2, ANA, "gpt", "d1", "openai", "chat", 100, 1_000, 60.0, run_id="r", run_budget_microusd=5)
    line = orjson.loads(settled(plan, "t1", ask, Usage(), "ok", 0.1, {"a": "b"}).line)
    found = lost("t1", about_of(plan, ask), 1_000, 100)
    booked = {"cost_nanousd": 1_000, "reserved_nanousd": 1_000, "input_tokens": 100, "estimated": True, "status": "lost", "latency_ms": 0}
    del line["sealed"]
    assert orjson.loads(found.line) == {**line, **booked}
    assert (found.run_id, found.run_budget_microusd, found.report, found.report_rest) == ("r", 5, plan.report, plan.report_rest)
    assert Counts.unpacked(found.counts) == Counts(1, 100, 0, 0, 0, 1_000, 1, 1)


async def test_a_note_that_is_too_long_is_left_out_and_said_so():
    plan = await Plans(FixedLimits(PrincipalLimits()), lambda _: None, MemorySubjects()).find(ANA, "gpt")
    ask = Ask("call", 1, ANA, "gpt", "d1", "openai", "chat", 100, 1_000, 60.0)
    line = orjson.loads(settled(plan, "t1", ask, Usage(), "ok", 0.1, {"a": "x" * 10_000}).line)
    assert (line["dropped"], "sealed" in line) == ("metadata", False)


@given(st.lists(st.integers(-(2**53), 2**53), min_size=8, max_size=8))
def test_counts_survive_their_packed_form(numbers):
    counts = Counts(*numbers)
    assert Counts.unpacked(counts.packed()) == counts


async def test_the_fake_follows_its_clock_over_the_end_of_a_month():
    now = [1_795_305_600.0 + 9 * 86_400 - 1]  # the last second of November 2026 (UTC)
    limits = PrincipalLimits(key=LimitSet(max_budget_microusd=1_000, budget_period="1mo"))
    purse = InMemoryPurse.of(limits, clock=lambda: now[0])
    ask = Ask("call", 1, ANA, "gpt", "d1", "openai", "chat", 100, 1_000_000, 60.0)
    purse.settle(await purse.reserve(ask), Usage(cost_picousd=10**9), status="ok", latency_s=0.1)
    assert (await purse.budgets(ANA)).budgets[0].resets_at == now[0] + 1
    now[0] += 1
    await purse.reserve(ask)
    assert purse.ledger[0]["cost_nanousd"] == 1_000_000


async def test_one_time_limit_holds_for_each_of_many_futures():
    loop, limit = asyncio.get_running_loop(), Deadlines(0.05)
    answered, silent = loop.create_future(), [loop.create_future() for _ in range(3)]
    limit.watch(answered)
    for future in silent:
        limit.watch(future)
    answered.set_result(1)
    found = await asyncio.gather(*silent, return_exceptions=True)
    assert all(type(one).__name__ == "TimeoutError" for one in found)
    limit.stop()


async def test_a_loop_that_was_held_up_does_not_fail_answers_that_lie_unread():
    loop, limit = asyncio.get_running_loop(), Deadlines(0.1)
    future = loop.create_future()
    limit.watch(future)
    # What a long garbage collection does to a loop.
    time.sleep(0.2)
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not future.done()
    future.set_result(1)
    assert await future == 1
    limit.stop()
