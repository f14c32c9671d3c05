"""Each attempt holds a place and a reservation, and gives both back exactly once, however it ends."""

import asyncio
import random
from array import array
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import BudgetExceeded, BulkheadError, InvalidInput
from services.llm_gateway.attempts import Policy
from services.llm_gateway.charges import _affordable
from services.llm_gateway.chat import ChatCall, ChunkReader, parse_answer
from services.llm_gateway.completions import Completions
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.fakes import InMemoryPurse
from services.llm_gateway.money import Prices
from services.llm_gateway.ports import Ranking, Vectors
from services.llm_gateway.registry import Capabilities, Deployment, Group, Registry
from services.llm_gateway.results import EmbedCall, Finished, Notice, RerankCall
from services.llm_gateway.terms import Terms
from services.llm_gateway.testing import OpenGate, OpenPurse
from tests.unit.llm_gateway.openai_bytes import ANSWER, END, TEXT

BODY = {"messages": [{"role": "user", "content": "x"}]}
PRICES = Prices(10**6, 2 * 10**6, known=True)


class Provider:
    """Ends each attempt as the script says: ok, or a failure class, at the start or after a first text."""

    def __init__(self, script):
        self.script = list(script)
        self.bodies = []

    def _next(self, attempt):
        self.bodies.append(attempt.body)
        return self.script.pop(0) if self.script else "ok"

    async def complete(self, attempt):
        step = self._next(attempt)
        await asyncio.sleep(0)
        if step == "hang":
            await asyncio.Event().wait()
        if step != "ok":
            raise UpstreamFault(Failure(FailureClass(step.removeprefix("late_"))))
        return parse_answer(ANSWER)

    async def stream(self, attempt):
        step = self._next(attempt)
        reader = ChunkReader()
        if step != "ok" and not step.startswith("late_"):
            raise UpstreamFault(Failure(FailureClass(step)))
        if attempt.continues:
            yield reader.feed(TEXT % b"lo" + END)
            return
        yield reader.feed(TEXT % b"hel")
        if step == "late_hang":
            await asyncio.Event().wait()
        if step != "ok":
            raise UpstreamFault(Failure(FailureClass(step.removeprefix("late_"))))
        yield reader.feed(TEXT % b"lo" + END)


class Scene:
    def __init__(self, script, prefill=False, prices=PRICES, groups="ab", **options):
        chance = random.Random(1)
        self.provider, self.gate, self.purse = Provider(script), OpenGate(chance), OpenPurse()
        can = Capabilities(prefill=prefill)
        made = {
            name: Group(name, number, (Deployment(f"{name}0", name, "p", "x", name, "chat", prices=prices, capabilities=can),))
            for number, name in enumerate(groups)
        }
        registry = Registry(made)
        policy = Policy(retry_base_s=1e-6, retry_cap_s=1e-6)
        self.calls = Completions(lambda: registry, {"x": self.provider}, policy, chance, self.gate, self.purse, **options)

    def balanced(self):
        assert self.gate.inside == 0
        assert self.purse.open == {}


STEPS = st.lists(st.sampled_from(["ok", *FailureClass, *(f"late_{c}" for c in FailureClass)]), max_size=10)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.booleans(), st.booleans())
async def test_every_ticket_and_every_place_is_given_back_once(script, streamed, prefill):
    scene = Scene(script, prefill)
    finished = None
    try:
        if streamed:
            async for event in scene.calls.stream(ChatCall("a", BODY)):
                finished = event if isinstance(event, Finished) else finished
        else:
            finished = await scene.calls.complete(ChatCall("a", BODY))
    except BulkheadError:
        finished = None
    scene.balanced()
    if finished is not None:
        assert scene.purse.settled[-1][2] == "ok"
        if streamed:
            assert finished.text == "hello"
        spent = sum(usage.cost_picousd for _, usage, _ in scene.purse.settled)
        assert finished.outcome.usage.cost_picousd == spent
    for ticket, usage, _ in scene.purse.settled:
        assert 0 < usage.cost_nanousd <= ticket.ask.cost_nanousd


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_caller_who_leaves_is_charged_an_estimate(streamed):
    scene = Scene(["late_hang" if streamed else "hang"])

    async def call():
        if streamed:
            async for _ in scene.calls.stream(ChatCall("a", BODY)):
                pass
        else:
            await scene.calls.complete(ChatCall("a", BODY))

    task = asyncio.create_task(call())
    while not scene.provider.bodies:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    scene.balanced()
    ((ticket, usage, status),) = scene.purse.settled
    assert (status, usage.estimated) == ("cancelled", True)
    assert usage.cost_nanousd <= ticket.ask.cost_nanousd


async def test_an_attempt_that_no_provider_bills_is_released():
    scene = Scene(["transient", "rate_limited", "ok"])
    await scene.calls.complete(ChatCall("a", BODY))
    assert len(scene.purse.released) == 2
    assert [status for _, _, status in scene.purse.settled] == ["ok"]
    assert [t.ask.requests for t in scene.purse.released] == [1, 0]


async def test_a_bound_is_assumed_and_sent_where_the_caller_sets_none():
    scene = Scene([])
    await scene.calls.complete(ChatCall("a", BODY))
    await scene.calls.complete(ChatCall("a", {**BODY, "max_tokens": 7, "n": 2}))
    await scene.calls.complete(ChatCall("a", {**BODY, "max_completion_tokens": 9}))
    first, second, third = scene.provider.bodies
    assert first["max_tokens"] == 2_000
    assert second["max_tokens"] == 7
    assert "max_tokens" not in third
    asks = [ticket.ask for ticket, _, _ in scene.purse.settled]
    prompt = scene.calls.work("chat", "chat", "a", BODY, "", Terms()).payer.input_tokens
    assert asks[0].tokens == prompt + 2_000
    assert asks[1].cost_nanousd < asks[0].cost_nanousd


async def test_a_call_that_may_cost_too_much_is_refused_before_anybody_hears_of_it():
    scene = Scene([])
    with pytest.raises(InvalidInput) as caught:
        await scene.calls.complete(ChatCall("a", BODY, terms=Terms(max_cost_microusd=1)))
    assert caught.value.reason == "MAX_COST_EXCEEDED"
    assert scene.provider.bodies == []
    scene.balanced()


async def test_an_unknown_price_is_refused_where_the_policy_says_so():
    scene = Scene([], prices=Prices(), deny_unpriced=True)
    with pytest.raises(InvalidInput) as caught:
        await scene.calls.complete(ChatCall("a", BODY))
    assert caught.value.reason == "PRICE_UNKNOWN"
    assert scene.provider.bodies == []
    scene.balanced()
    await Scene([], prices=Prices()).calls.complete(ChatCall("a", BODY))


async def test_an_exhausted_budget_ends_the_call_and_gives_the_place_back():
    scene = Scene([])

    async def reserve(ask):
        raise BudgetExceeded("no money left")

    scene.purse.reserve = reserve
    with pytest.raises(BudgetExceeded):
        await scene.calls.complete(ChatCall("a", BODY))
    assert scene.provider.bodies == []
    scene.balanced()


async def test_a_fallback_that_nobody_can_pay_is_skipped_and_the_first_failure_is_told():
    scene = Scene(["credential"])
    reserve = scene.purse.reserve

    async def only_the_first(ask):
        if ask.group == "b":
            raise BudgetExceeded("no money left")
        return await reserve(ask)

    scene.purse.reserve = only_the_first
    with pytest.raises(BulkheadError) as caught:
        await scene.calls.complete(ChatCall("a", BODY))
    assert caught.value.reason == "UPSTREAM_CREDENTIALS_EXHAUSTED"
    scene.balanced()


async def test_a_broken_answer_is_continued_where_the_next_deployment_takes_its_beginning():
    scene = Scene(["late_stalled"], prefill=True)
    events = [event async for event in scene.calls.stream(ChatCall("a", {**BODY, "max_tokens": 50}))]
    assert events[-1].text == "hello"
    assert [e.code for e in events if isinstance(e, Notice)] == ["model_fallback", "answer_continued"]
    assert scene.provider.bodies[1]["messages"][-1] == {"role": "assistant", "content": "hel"}
    assert scene.provider.bodies[1]["max_tokens"] == 49
    scene.balanced()


@pytest.mark.parametrize("operation", ["complete", "stream", "embed", "rerank"])
async def test_counts_that_no_call_can_come_to_are_no_counts(operation):
    wrong = {"prompt_tokens": 2**64 - 1, "completion_tokens": 2**64 - 7, "total_tokens": 2**64 - 1}

    class Provider:
        async def complete(self, attempt):
            return parse_answer(orjson.dumps({**orjson.loads(ANSWER), "usage": wrong}))

        async def stream(self, attempt):
            ending = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": wrong}
            yield ChunkReader().feed(TEXT % b"hi" + b"data: " + orjson.dumps(ending) + b"\n\n")

        async def embed(self, attempt):
            return Vectors([array("f", [1.0])], wrong["prompt_tokens"], "m")

        async def rerank(self, attempt):
            return Ranking([(0, 1.0)], wrong["prompt_tokens"], "m", wrong["prompt_tokens"])

    chance, mode = random.Random(1), {"embed": "embedding", "rerank": "rerank"}.get(operation, "chat")
    gate, purse = OpenGate(chance), InMemoryPurse.of()
    only = Deployment("a0", "a", "p", "x", "a", mode, prices=replace(PRICES, per_request=10**6))
    registry = Registry({"a": Group("a", 0, (only,))})
    calls = Completions(lambda: registry, {"x": Provider()}, Policy(), chance, gate, purse)
    if operation == "stream":
        async for _ in calls.stream(ChatCall("a", BODY)):
            pass
    elif operation == "complete":
        await calls.complete(ChatCall("a", BODY))
    elif operation == "embed":
        await calls.embed(EmbedCall("a", {"input": "x"}))
    else:
        await calls.rerank(RerankCall("a", {"query": "x", "documents": ["y"]}))
    (line,) = purse.ledger
    assert gate.inside == 0
    assert (line["status"], line["estimated"]) == ("ok", True)
    assert 0 < line["cost_nanousd"] <= line["reserved_nanousd"]


@given(
    st.builds(Prices, st.integers(0, 10**7), st.integers(0, 10**8), per_request=st.integers(0, 10**9), known=st.just(True)),
    st.integers(0, 5_000), st.integers(0, 200), st.integers(0, 50_000), st.integers(0, 50_000), st.integers(0, 50_000),
)  # fmt: skip
def test_what_a_budget_covers_is_the_longest_answer_that_it_would_not_refuse(prices, prompt, longest, limit, spent, reserved):
    refusal = {"limit_microusd": str(limit), "spent_microusd": str(spent), "reserved_microusd": str(reserved)}
    covered = [n for n in range(longest + 1) if prices.bound_nanousd(prompt, n) <= (limit - spent - reserved) * 1000]
    assert _affordable(prices, prompt, longest, refusal) == len(covered) - 1
