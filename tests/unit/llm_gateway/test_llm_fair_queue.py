"""The fair queue: shares by weight and cost, bounded, first come first served within a tenant."""

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_gateway.fair_queue import FairQueue, Full


def jain(values) -> float:
    values = list(values)
    return sum(values) ** 2 / (len(values) * sum(v * v for v in values))


def served(queue: FairQueue, count: int) -> dict[str, float]:
    """What each tenant got, in cost, of the next calls."""
    found: dict[str, float] = defaultdict(float)
    for _ in range(count):
        waiter = queue.pop()
        found[waiter.tenant] += waiter.cost
    return found


def test_a_tenant_that_asks_fifty_times_as_much_gets_no_more_than_the_others():
    queue, chance = FairQueue(10_000, 100_000), random.Random(1)
    tenants = {"flood": 5000, **{f"t{n}": 100 for n in range(9)}}
    for tenant, calls in tenants.items():
        for number in range(calls):
            queue.add(tenant, number, cost=chance.randint(100, 4000))
    got = served(queue, 600)
    assert len(got) == 10
    assert jain(got.values()) >= 0.99


def test_it_is_cost_that_is_shared_and_not_calls():
    queue = FairQueue(10_000, 100_000)
    for number in range(2000):
        queue.add("large", number, cost=8000)
        queue.add("small", number, cost=100)
    got = served(queue, 810)
    assert got["small"] / got["large"] == pytest.approx(1.0, abs=0.1)


def test_tiers_weigh_and_the_lightest_is_not_starved():
    queue = FairQueue(10_000, 100_000)
    for number in range(2000):
        for tenant, weight in (("free", 1), ("pro", 2), ("enterprise", 4)):
            queue.add(tenant, number, weight=weight, cost=1000)
    order = [queue.pop().tenant for _ in range(700)]
    found = Counter(order)
    assert (found["free"], found["pro"], found["enterprise"]) == pytest.approx((100, 200, 400), abs=3)
    assert max(b - a for a, b in zip(places(order, "free"), places(order, "free")[1:], strict=False)) <= 8


def places(order, tenant):
    return [index for index, name in enumerate(order) if name == tenant]


def test_a_newcomer_does_not_wait_behind_a_backlog():
    queue = FairQueue(1000, 1000)
    for number in range(500):
        queue.add("flood", number, cost=500)
    served(queue, 100)
    queue.add("newcomer", 0, cost=500)
    assert "newcomer" in [queue.pop().tenant for _ in range(2)]


def test_low_priority_goes_when_nobody_else_waits():
    queue = FairQueue(100, 100)
    for number in range(5):
        queue.add("batch", number, low_priority=True)
        queue.add("chat", number, cost=10**6)
    assert [queue.pop().tenant for _ in range(10)] == ["chat"] * 5 + ["batch"] * 5


def test_a_full_queue_sheds_the_longest_backlog_and_low_priority_first():
    queue = FairQueue(per_tenant=8, total=10)
    for number in range(8):
        queue.add("flood", number)
    with pytest.raises(Full) as full:
        queue.add("flood", 9)
    assert full.value.ahead == 8
    queue.add("batch", 0, low_priority=True)
    queue.add("other", 0)
    assert len(queue) == 10
    _, displaced = queue.add("third", 0)
    assert (displaced.tenant, displaced.low_priority) == ("batch", True)
    _, displaced = queue.add("third", 1)
    assert (displaced.tenant, displaced.ticket) == ("flood", 7)
    with pytest.raises(Full):
        queue.add("batch", 1, low_priority=True)
    assert len(queue) == 10


moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.floats(0, 10**9), st.booleans()),
        st.tuples(st.just("pop")),
        st.tuples(st.just("discard"), st.integers(0, 30)),
    ),
    max_size=120,
)


@given(moves)
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_or_doubled_and_a_tenant_is_served_in_order(steps):
    queue, there, number = FairQueue(6, 12), [], 0
    for step in steps:
        if step[0] == "add":
            _, tenant, cost, low = step
            number += 1
            try:
                waiter, displaced = queue.add(tenant, number, cost=cost, weight=ord(tenant) - 96, low_priority=low)
            except Full:
                assert len(queue) == 12 or len([w for w in there if (w.tenant, w.low_priority) == (tenant, low)]) == 6
                continue
            if displaced is not None:
                there.remove(displaced)
            there.append(waiter)
        elif step[0] == "pop":
            waiter = queue.pop()
            assert (waiter is None) == (not there)
            if waiter is not None:
                same = [w for w in there if (w.tenant, w.low_priority) == (waiter.tenant, waiter.low_priority)]
                assert same[0] is waiter
                assert not waiter.low_priority or all(w.low_priority for w in there)
                there.remove(waiter)
        elif there:
            waiter = there.pop(step[1] % len(there))
            assert queue.discard(waiter)
            assert not queue.discard(waiter)
        assert len(queue) == len(there) <= 12
        assert set(queue) == set(there)
