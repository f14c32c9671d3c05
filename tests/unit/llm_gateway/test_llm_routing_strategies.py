"""The strategies: each prefers what it says, in the proportions that it says."""

import random
import time
from collections import Counter

import pytest

from services.llm_gateway.fair_queue import FairQueue
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment, DeploymentLimits
from services.llm_gateway.routing_strategies import STRATEGIES, Lane, at_home


def lane(name: str, *, in_flight=0, latency_s=0.0, price=0, tokens=0, **more) -> Lane:
    prices = Prices(input=price, output=2 * price, known=price >= 0)
    made = Lane(Deployment(name, "g", "p", "openai", name, "chat", prices=prices, **more), FairQueue(1, 1))
    made.in_flight, made.latency_s, made.latency_at, made.used_tokens = in_flight, latency_s, time.monotonic(), tokens
    return made


def shares(strategy: str, lanes, draws: int = 4000) -> dict[str, float]:
    chance = random.Random(7)
    found = Counter(STRATEGIES[strategy](lanes, chance).deployment.id for _ in range(draws))
    return {name: count / draws for name, count in found.items()}


def test_simple_shuffle_draws_by_weight():
    found = shares("simple-shuffle", [lane("a", weight=1), lane("b", weight=2), lane("c", weight=7)])
    assert found == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7}, abs=0.03)


def test_least_busy_takes_the_better_of_two():
    busy = [lane("a", in_flight=9), lane("b", in_flight=1), lane("c", in_flight=5)]
    # a is never the better of a pair; b is in two of the three pairs.
    assert shares("least-busy", busy) == pytest.approx({"b": 2 / 3, "c": 1 / 3}, abs=0.03)
    slow = [lane("slow", in_flight=1, latency_s=5.0), lane("quick", in_flight=4, latency_s=0.5)]
    assert shares("least-busy", slow) == {"quick": 1.0}
    heavy = [lane("heavy", in_flight=3, weight=8.0), lane("light", in_flight=1, weight=1.0)]
    assert shares("least-busy", heavy) == {"heavy": 1.0}


def test_least_busy_keeps_unequal_deployments_equally_loaded():
    lanes = [lane("a", weight=1), lane("b", weight=3)]
    chance = random.Random(3)
    for _ in range(400):
        STRATEGIES["least-busy"](lanes, chance).in_flight += 1
    assert lanes[1].in_flight / lanes[0].in_flight == pytest.approx(3, rel=0.15)


def test_the_fastest_gets_the_calls_and_what_is_unknown_gets_one():
    fast = [lane("slow", latency_s=2.0), lane("fast", latency_s=1.0), lane("nearly", latency_s=1.05)]
    assert set(shares("latency-based-routing", fast)) == {"fast", "nearly"}
    assert shares("latency-based-routing", [*fast, lane("new")]) == {"new": 1.0}
    assert set(shares("latency-based-routing", [*fast, lane("new", in_flight=1)])) == {"fast", "nearly"}
    stale = lane("stale", latency_s=9.0)
    stale.latency_at -= 61
    assert shares("latency-based-routing", [*fast, stale]) == {"stale": 1.0}
    assert set(shares("latency-based-routing", [lane("x", in_flight=1), lane("y", in_flight=1)])) == {"x", "y"}


@pytest.mark.parametrize("strategy", ["usage-based-routing", "usage-based-routing-v2"])
def test_the_least_used_share_of_the_declared_limits_wins(strategy):
    small, large = DeploymentLimits(tokens_per_minute=1000), DeploymentLimits(tokens_per_minute=10_000)
    assert shares(strategy, [lane("small", tokens=500, limits=small), lane("large", tokens=4000, limits=large)]) == {"large": 1.0}
    few = DeploymentLimits(requests_per_minute=10, tokens_per_minute=10**9)
    asked = lane("few", tokens=1, limits=few)
    asked.used_requests = 9
    assert shares(strategy, [asked, lane("large", tokens=4000, limits=large)]) == {"large": 1.0}
    assert shares(strategy, [lane("a", tokens=100), lane("b", tokens=90, limits=large)]) == {"b": 1.0}


@pytest.mark.parametrize("strategy", ["cost-based-routing", "cost-based"])
def test_the_cheapest_wins_and_the_unpriced_comes_last(strategy):
    assert shares(strategy, [lane("dear", price=9), lane("cheap", price=2), lane("unknown", price=-1)]) == {"cheap": 1.0}
    assert shares(strategy, [lane("a", price=2), lane("b", price=2)]) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.05)
    assert shares(strategy, [lane("dear", price=9), lane("unknown", price=-1)]) == {"dear": 1.0}


def test_a_conversation_stays_where_it_is_whoever_asks_and_moves_only_when_it_must():
    lanes = [lane(f"deployment-{n}", weight=w) for n, w in enumerate([1, 1, 2])]
    homes = {f"conversation {n}": at_home(lanes, f"conversation {n}") for n in range(6000)}
    assert {name: at_home(lanes[::-1], name) for name in homes} == homes
    found = Counter(home.deployment.id for home in homes.values())
    assert [found[f"deployment-{n}"] / 6000 for n in range(3)] == pytest.approx([0.25, 0.25, 0.5], abs=0.03)
    fewer = lanes[:2]
    assert all(at_home(fewer, name) is home for name, home in homes.items() if home in fewer)


def test_a_conversation_leaves_a_home_that_is_clearly_busier():
    lanes = [lane("a"), lane("b")]
    home = at_home(lanes, "x")
    home.in_flight = 4
    assert at_home(lanes, "x") is home
    home.in_flight = 5
    assert at_home(lanes, "x") is None
    for other in lanes:
        other.in_flight += 20
    assert at_home(lanes, "x") is home
