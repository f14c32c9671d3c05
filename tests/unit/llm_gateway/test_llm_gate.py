"""The gate of one process: what is picked, who waits, what counts against a deployment."""

import asyncio
import random
import time
from collections import defaultdict

import pytest

from services.common import testing
from services.common.breaker import BreakerPolicy, Breakers
from services.common.errors import Overloaded
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.gate import DeploymentGate, GateSettings, breaker_policy
from services.llm_gateway.ports import Load
from services.llm_gateway.registry import Deployment, DeploymentLimits, Group, Registry, Timeouts

TRANSIENT = Failure(FailureClass.TRANSIENT)


class NoLimits:
    """Deployments without minutes; remembers what was settled."""

    def __init__(self, wait_s: float = 0.0):
        self.wait_s, self.given, self.counted, self.usage = wait_s, [], defaultdict(int), defaultdict(lambda: (0, 0))

    async def take(self, deployment_id, limits, tokens):
        return self.wait_s

    def give_back(self, deployment_id, limits, requests, tokens):
        self.given.append((requests, tokens))

    def count(self, deployment_id, tokens):
        self.counted[deployment_id] += tokens

    def used(self, deployment_id):
        return self.usage[deployment_id]


class Clock:
    """Time that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def deployment(name: str, **more) -> Deployment:
    return Deployment(name, "g", "p", "openai", name, "chat", **more)


def load(tenant="acme", tier="pro", tokens=100, *, within_s=30.0, **more) -> Load:
    return Load(tenant, tier, tokens, 0, time.monotonic() + within_s, **more)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limits():
    return NoLimits()


@pytest.fixture
def breakers(clock):
    return Breakers(None, key="{}".format, channel="c", policy=BreakerPolicy(failures_in_row=3), clock=clock)


@pytest.fixture
def gate(breakers, limits):
    return DeploymentGate(breakers, limits, random.Random(1), GateSettings(most_wait_s=5.0, queue_per_tenant=60, queue_total=200))


async def ask(gate: DeploymentGate, of: Deployment, failure: Failure | None = None, **ended) -> None:
    gate.leave(await gate.enter(of, load()), failure, **ended)


def test_the_defaults_are_those_that_are_documented():
    found = GateSettings()
    assert (found.most_wait_s, found.queue_per_tenant, found.queue_total) == (10.0, 100, 1000)
    assert found.tier_weights == {"free": 1.0, "pro": 2.0, "enterprise": 4.0}
    assert (found.connect_s, found.first_token_s, found.reasoning_first_token_s) == (5.0, 10.0, 60.0)
    assert breaker_policy(Registry({})) == BreakerPolicy()
    own = breaker_policy(Registry({}, allowed_fails=2, cooldown_s=90))
    assert (own.failures_in_row, own.first_open_s, own.longest_open_s) == (3, 90, 90)


async def test_an_open_breaker_is_passed_by_probed_once_and_closed_by_a_success(gate, clock):
    one, two = deployment("one"), deployment("two", order=1)
    for _ in range(3):
        assert gate.pick([one, two], "least-busy", load()) is one
        await ask(gate, one, TRANSIENT)
    assert gate.pick([one, two], "least-busy", load()) is two
    assert gate.pick([one], "least-busy", load()) is None
    assert gate.retry_after_s([one]) == pytest.approx(5.0)
    assert gate.retry_after_s([one, two]) == 0.0
    with pytest.raises(UpstreamFault) as refused:
        await gate.enter(one, load())
    assert refused.value.failure.failure_class is FailureClass.BREAKER_OPEN
    assert refused.value.failure.retry_after_s == pytest.approx(5.0)
    assert gate.state([one])[0].breaker == "open"
    clock.now += 5
    assert gate.state([one])[0].breaker == "half_open"
    assert gate.pick([one, two], "least-busy", load()) is one
    assert gate.pick([one, two], "least-busy", load()) is two  # the probe is on its way
    permit = await gate.enter(one, load())
    assert permit.probe
    with pytest.raises(UpstreamFault):
        await gate.enter(one, load())
    gate.leave(permit, None, latency_s=0.1)
    assert gate.pick([one, two], "least-busy", load()) is one
    assert not (await gate.enter(one, load())).probe


@pytest.mark.parametrize("kind", list(FailureClass))
async def test_only_the_deployments_own_faults_count(gate, kind):
    one = deployment("one", timeouts=Timeouts(first_token_s=0.001))
    for _ in range(3):
        permit = await gate.enter(one, load())
        permit.token.entered_at -= 6  # it lasted longer than the deployment's own limits
        gate.leave(permit, Failure(kind))
    harmless = {"caller_fault", "context_window", "content_policy", "breaker_open", "saturated", "unfit"}
    assert (gate.pick([one], "least-busy", load()) is None) == (kind.value not in harmless)


async def test_a_timeout_that_the_callers_deadline_made_and_a_cancelled_call_do_not_count(gate):
    one = deployment("one")
    for kind in ("timeout_connect", "timeout_first_token", "timeout_total"):
        for _ in range(4):
            await ask(gate, one, Failure(FailureClass(kind)))
    for _ in range(4):
        await ask(gate, one, TRANSIENT, cancelled=True)
    assert gate.pick([one], "least-busy", load()) is one
    assert gate.state([one])[0].failure_rate == 0.0


async def test_a_probe_whose_caller_went_away_makes_way_and_a_refused_request_proves_life(gate, clock):
    one = deployment("one")
    for _ in range(3):
        await ask(gate, one, TRANSIENT)
    clock.now += 5
    gate.leave(await gate.enter(one, load()), None, cancelled=True)
    assert gate.state([one])[0].breaker == "half_open"
    await ask(gate, one, Failure(FailureClass.CALLER_FAULT))
    assert gate.state([one])[0].breaker == "closed"


async def test_a_success_breaks_the_row(gate):
    one = deployment("one")
    for failure in (TRANSIENT, TRANSIENT, None, TRANSIENT, TRANSIENT):
        await ask(gate, one, failure)
    assert gate.pick([one], "least-busy", load()) is one


async def test_a_probe_may_have_to_wait_for_a_place_and_then_goes(gate, clock):
    one = deployment("one", limits=DeploymentLimits(parallel=1))
    for _ in range(3):
        await ask(gate, one, TRANSIENT)
    held = one.id  # a call that began before it opened still holds the only place
    gate._lanes[held].in_flight = 1
    clock.now += 5
    probe = asyncio.create_task(gate.enter(one, load()))
    await testing.eventually_async(lambda: gate.state([one])[0].queued == 1, "the probe waits")
    gate._vacate(gate._lanes[held])
    assert (await probe).probe


async def test_who_waits_when_the_breaker_opens_is_sent_elsewhere(gate):
    one = deployment("one", limits=DeploymentLimits(parallel=3))
    permits = [await gate.enter(one, load()) for _ in range(3)]
    waiting = asyncio.create_task(gate.enter(one, load()))
    await testing.eventually_async(lambda: gate.state([one])[0].queued == 1, "one waits")
    for permit in permits:
        gate.leave(permit, TRANSIENT)
    with pytest.raises(UpstreamFault) as sent:
        await waiting
    assert sent.value.failure.failure_class is FailureClass.BREAKER_OPEN
    assert gate.state([one])[0].in_flight == 0


async def test_places_are_bounded_and_passed_on_in_order(gate):
    one = deployment("one", limits=DeploymentLimits(parallel=2))
    permits = [await gate.enter(one, load()) for _ in range(2)]
    order: list[int] = []

    async def wait(number: int):
        permit = await gate.enter(one, load())
        order.append(number)
        return permit

    tasks = [asyncio.create_task(wait(n)) for n in range(3)]
    await asyncio.sleep(0.02)
    state = gate.state([one])[0]
    assert (state.in_flight, state.queued, order) == (2, 3, [])
    for permit in permits:
        gate.leave(permit, None, latency_s=0.1)
    await testing.eventually_async(lambda: order == [0, 1], "two go on")
    gate.leave(await tasks[0], None)
    assert (await tasks[2]).queued_s > 0.01
    assert gate.state([one])[0].in_flight == 2


async def test_a_free_deployment_is_preferred_to_a_full_one_of_a_lower_order(gate):
    first, second = deployment("first", limits=DeploymentLimits(parallel=1)), deployment("second", order=1)
    assert gate.pick([first, second], "least-busy", load()) is first
    await gate.enter(first, load())
    assert gate.pick([first, second], "least-busy", load()) is second


async def test_waiting_ends_with_the_deadline_and_a_full_queue_says_when_to_come_back(gate):
    one = deployment("one", limits=DeploymentLimits(parallel=1))
    await gate.enter(one, load())
    with pytest.raises(UpstreamFault) as late:
        await gate.enter(one, load(within_s=0.05))
    assert late.value.failure.failure_class is FailureClass.SATURATED
    waiting = [asyncio.create_task(gate.enter(one, load())) for _ in range(60)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as full:
        await gate.enter(one, load())
    assert full.value.reason == "QUEUE_FULL"
    assert 1 <= full.value.retry_after_s <= 60
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert gate.state([one])[0].queued == 0


async def test_a_flood_is_displaced_by_tenants_that_ask_little(breakers, limits):
    gate = DeploymentGate(breakers, limits, random.Random(1), GateSettings(queue_per_tenant=60, queue_total=60))
    one = deployment("one", limits=DeploymentLimits(parallel=1))
    permit = await gate.enter(one, load())
    flood = [asyncio.create_task(gate.enter(one, load("flood"))) for _ in range(60)]
    await asyncio.sleep(0)
    small = asyncio.create_task(gate.enter(one, load("small")))
    done, _ = await asyncio.wait(flood, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [Overloaded]
    gate.leave(permit, None)
    gate.leave(await flood[0], None)
    await small
    for task in flood:
        task.cancel()


async def test_cancelling_at_any_moment_loses_no_place(gate):
    one = deployment("one", limits=DeploymentLimits(parallel=3))
    chance = random.Random(5)

    async def call():
        permit = await gate.enter(one, load(chance.choice("abc")))
        try:
            await asyncio.sleep(chance.random() * 0.002)
        finally:
            gate.leave(permit, None)

    for _ in range(15):
        tasks = [asyncio.create_task(call()) for _ in range(40)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            chance.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        state = gate.state([one])[0]
        assert (state.in_flight, state.queued) == (0, 0)


async def test_shares_are_fair_however_much_one_tenant_asks(gate):
    one = deployment("one", limits=DeploymentLimits(parallel=4))
    served: dict[str, int] = defaultdict(int)
    stop = time.monotonic() + 1.0

    async def client(tenant: str):
        while time.monotonic() < stop:
            try:
                permit = await gate.enter(one, load(tenant, tokens=500))
            except Overloaded:
                await asyncio.sleep(0.001)
                continue
            await asyncio.sleep(0.0005)
            if time.monotonic() < stop:
                served[tenant] += 500
            gate.leave(permit, None)

    # Each of the small ones could use a tenth of the whole if it got it; the flood asks fifty times as much.
    clients = [client("flood") for _ in range(200)] + [client(f"t{n}") for n in range(4) for _ in range(4)]
    await asyncio.gather(*clients)
    values = list(served.values())
    assert len(values) == 5
    assert sum(values) ** 2 / (5 * sum(v * v for v in values)) >= 0.95


async def test_a_used_up_minute_is_said_and_avoided(gate, limits):
    minute = DeploymentLimits(requests_per_minute=1)
    one, two = deployment("one", limits=minute), deployment("two")
    limits.wait_s = 20.0
    with pytest.raises(UpstreamFault) as used_up:
        await gate.enter(one, load())
    assert used_up.value.failure.failure_class is FailureClass.SATURATED
    assert used_up.value.failure.retry_after_s == 20.0
    assert gate.state([one])[0].in_flight == 0
    assert {gate.pick([one, two], "simple-shuffle", load()).id for _ in range(50)} == {"two"}
    assert gate.pick([one], "least-busy", load()) is one
    assert gate.retry_after_s([one]) == pytest.approx(20, abs=1)


async def test_what_was_taken_from_the_minute_is_corrected(gate, limits):
    one = deployment("one", limits=DeploymentLimits(tokens_per_minute=1000))
    await ask(gate, one, None, tokens=30)
    await ask(gate, one, None, tokens=130)
    await ask(gate, one, TRANSIENT)
    await ask(gate, one, Failure(FailureClass.UNFIT))
    await ask(gate, one, Failure(FailureClass.UNFIT, status=400))  # the provider said so itself
    await ask(gate, one, None, cancelled=True)
    assert limits.given == [(0, 70), (0, -30), (0, 100), (1, 100), (0, 100)]


async def test_usage_is_counted_for_the_strategy_that_looks_at_it(gate, limits):
    one, two = deployment("one"), deployment("two")
    await ask(gate, one, None, tokens=9)
    assert not limits.counted
    gate.pick([one, two], "usage-based-routing", load())
    limits.usage["one"] = (500, 5)
    assert {gate.pick([one, two], "usage-based-routing", load()).id for _ in range(20)} == {"two"}
    await ask(gate, two, None, tokens=9)
    assert limits.counted == {"two": 9}


async def test_a_conversation_stays_at_its_deployment_unless_that_is_away(gate):
    some = [deployment(f"d{n}") for n in range(3)]
    home = gate.pick(some, "least-busy", load(affinity="talk"))
    assert all(gate.pick(some, "simple-shuffle", load(affinity="talk")) is home for _ in range(20))
    for _ in range(3):
        await ask(gate, home, TRANSIENT)
    assert gate.pick(some, "least-busy", load(affinity="talk")) is not home


async def test_a_reload_forgets_deployments_that_are_gone_and_takes_new_numbers(gate, breakers):
    one, two = deployment("one"), deployment("two")
    await ask(gate, one)
    await ask(gate, two)
    gate.follow(Registry({"g": Group("g", 0, (two,))}, allowed_fails=0))
    assert list(gate._lanes) == ["two"]
    await ask(gate, two, TRANSIENT)
    assert gate.pick([two], "least-busy", load()) is None


def test_picking_costs_little(gate):
    """A loose bound; the target is 3 µs for one candidate and 10 µs for several."""
    some = [deployment(f"d{n}") for n in range(4)]
    asked = load()
    costs = {}
    for name, candidates in (("one", some[:1]), ("several", some)):
        best = float("inf")
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(500):
                gate.pick(candidates, "least-busy", asked)
            best = min(best, (time.perf_counter() - started) / 500)
        costs[name] = best * 1e6
    print(costs)
    assert costs["one"] < 10
    assert costs["several"] < 40
