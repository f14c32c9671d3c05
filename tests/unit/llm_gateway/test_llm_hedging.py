"""A second request when the first is slow: within its budget, the loser cancelled, both charged."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import BulkheadError
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall, ChunkReader, parse_answer
from services.llm_gateway.completions import Completions
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.hedging import NEEDED, Hedge, race
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.testing import OpenGate, OpenPurse

CALL = ChatCall("a", {"messages": [{"role": "user", "content": "x"}]})
USAGE = b'"usage":{"prompt_tokens":5,"completion_tokens":2}'
ANSWER = b'{"id":"r","model":"%s","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],' + USAGE + b"}"
STREAM = b'data: {"model":"%s","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}],' + USAGE + b"}\n\ndata: [DONE]\n\n"


class Provider:
    """Answers at once, but for the deployments that hang or fail."""

    def __init__(self):
        self.hanging, self.failing, self.asked = set(), set(), []
        self.late = asyncio.Event()

    async def _meet(self, attempt):
        self.asked.append(attempt.deployment.id)
        if attempt.deployment.id in self.hanging:
            await self.late.wait()
        if attempt.deployment.id in self.failing:
            raise UpstreamFault(Failure(FailureClass.TRANSIENT))

    async def complete(self, attempt):
        await self._meet(attempt)
        return parse_answer(ANSWER % attempt.deployment.id.encode())

    async def stream(self, attempt):
        await self._meet(attempt)
        yield ChunkReader().feed(STREAM % attempt.deployment.id.encode())


class Scene:
    def __init__(self, share=0.5):
        chance = random.Random(1)
        self.provider, self.gate, self.purse, self.hedge = Provider(), OpenGate(chance), OpenPurse(), Hedge(share)
        prices = Prices(10**6, 2 * 10**6, known=True)
        members = tuple(Deployment(f"a{n}", "a", "p", "x", "m", "chat", prices=prices, order=n) for n in range(2))
        registry = Registry({"a": Group("a", 0, members)})
        policy = Policy(retry_base_s=1e-6, retry_cap_s=1e-6)
        self.calls = Completions(lambda: registry, {"x": self.provider}, policy, chance, self.gate, self.purse, hedge=self.hedge)

    async def warm(self):
        for _ in range(NEEDED):
            await self.calls.complete(CALL)
        self.provider.asked.clear()
        self.purse.settled.clear()

    async def both_asked(self, streamed):
        """A call whose two requests are under way, and hang until `late` is set."""
        await self.warm()
        self.provider.hanging = {"a0", "a1"}
        task = asyncio.create_task(self.ask(streamed))
        while len(self.provider.asked) < 2:
            await asyncio.sleep(0)
        return task

    def nothing_is_open(self):
        return (self.gate.inside, self.purse.open) == (0, {})

    async def ask(self, streamed):
        if not streamed:
            return (await self.calls.complete(CALL)).outcome
        return [event async for event in self.calls.stream(CALL)][-1].outcome


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_second_answers_for_a_slow_first_and_both_are_charged(streamed):
    scene = Scene()
    await scene.warm()
    scene.provider.hanging = {"a0"}
    outcome = await scene.ask(streamed)
    assert outcome.deployment.id == "a1"
    assert scene.provider.asked == ["a0", "a1"]
    assert sorted((t.ask.deployment_id, status) for t, _, status in scene.purse.settled) == [("a0", "cancelled"), ("a1", "ok")]
    assert outcome.usage.cost_picousd == sum(usage.cost_picousd for _, usage, _ in scene.purse.settled)
    assert scene.nothing_is_open()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_fast_answer_asks_nobody_else(streamed):
    scene = Scene()
    await scene.warm()
    scene.hedge.after_s = lambda _: 30.0
    await scene.ask(streamed)
    assert scene.provider.asked == ["a0"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_first_that_fails_while_the_second_is_asked_leaves_the_second(streamed):
    scene = Scene()
    task = await scene.both_asked(streamed)
    scene.provider.failing = {"a0"}
    scene.provider.late.set()
    assert (await task).deployment.id == "a1"
    assert scene.nothing_is_open()


@pytest.mark.parametrize("streamed", [False, True])
async def test_two_that_answer_at_once_leave_nothing_open(streamed):
    scene = Scene()
    task = await scene.both_asked(streamed)
    scene.provider.late.set()
    await task
    assert len(scene.purse.settled) == 2
    assert scene.nothing_is_open()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_caller_who_leaves_ends_both(streamed):
    scene = Scene()
    task = await scene.both_asked(streamed)
    task.cancel()
    await asyncio.wait([task])
    assert [status for _, _, status in scene.purse.settled] == ["cancelled"] * 2
    assert scene.nothing_is_open()


async def test_when_both_fail_the_call_goes_on_by_the_first():
    scene = Scene()
    task = await scene.both_asked(streamed=False)
    scene.provider.failing = {"a0", "a1"}
    scene.provider.late.set()
    with pytest.raises(BulkheadError):
        await task
    assert scene.nothing_is_open()


@given(st.floats(0, 0.5), st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=300))
def test_second_requests_never_cost_more_than_their_share(share, calls):
    hedge, first, second, answers = Hedge(share), 0, 0.0, 0
    for cost, wanted in calls:
        hedge.observe("d", 0.1, cost)
        first, answers = first + cost, answers + 1
        if wanted and hedge.take():
            second += first / answers
            assert second <= share * first + 1e-6


def test_too_little_is_known_at_first():
    hedge = Hedge(0.05)
    for number in range(NEEDED - 1):
        hedge.observe("d", number / 100, 1)
    assert hedge.after_s("d") is None
    hedge.observe("d", 5.0, 1)
    assert hedge.after_s("d") == 5.0


async def test_a_hedged_call_that_is_cancelled_twice_ends_both_requests():
    ending, discarded = asyncio.Event(), []

    async def loser():
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0.02)

    async def winner():
        return "won"

    async def discard(result):
        await asyncio.sleep(0)
        discarded.append(result)

    task = asyncio.create_task(race(loser(), winner, 0.0, discard))
    await ending.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.001)
    assert task.cancelled()
    assert discarded == ["won"]


async def test_a_request_that_swallows_a_cancellation_is_ended_all_the_same():
    cancelled = 0

    async def loser():
        nonlocal cancelled
        while cancelled < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1  # as redis-py does when it arrives while it connects

    async def winner():
        return "won"

    async def discard(result): ...

    async with asyncio.timeout(5):
        assert await race(loser(), winner, 0.0, discard) == ("won", True)
    assert cancelled == 2
