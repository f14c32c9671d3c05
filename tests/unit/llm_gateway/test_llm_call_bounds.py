"""The edges of a call: who else may be asked, what it may cost over all attempts, and whose error the caller sees."""

import asyncio
import random

import pytest

from services.common.errors import Overloaded, PermissionDenied, QuotaExceeded, UpstreamFailed
from services.llm_gateway.attempts import Policy
from services.llm_gateway.bounds import assumed_output, output_bound
from services.llm_gateway.chat import ChatCall, ChunkReader, parse_answer
from services.llm_gateway.completions import Completions
from services.llm_gateway.estimates import measure
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.hedging import Hedge
from services.llm_gateway.money import UNPRICED, Prices
from services.llm_gateway.registry import Capabilities, Deployment, Group, Registry
from services.llm_gateway.terms import Terms
from services.llm_gateway.testing import OpenGate, OpenPurse
from tests.unit.llm_gateway.openai_bytes import ANSWER, END, TEXT

BODY = {"messages": [{"role": "user", "content": "x"}]}
CALL = ChatCall("a", BODY)
PRICES = Prices(10**6, 2 * 10**6, known=True)


class Provider:
    """Answers, or fails as `failing` says by deployment; streams of `cut` deployments break after a first text."""

    def __init__(self):
        self.failing, self.cut, self.hanging, self.asked, self.bodies = {}, set(), set(), [], []

    async def _meet(self, attempt):
        self.asked.append(attempt.deployment.id)
        self.bodies.append(attempt.body)
        if attempt.deployment.id in self.hanging:
            await asyncio.Event().wait()
        if failure_class := self.failing.get(attempt.deployment.id):
            raise UpstreamFault(Failure(FailureClass(failure_class)))

    async def complete(self, attempt):
        await self._meet(attempt)
        return parse_answer(ANSWER)

    async def stream(self, attempt):
        await self._meet(attempt)
        reader = ChunkReader()
        if attempt.continues:
            yield reader.feed(TEXT % b"lo" + END)
            return
        yield reader.feed(TEXT % b"hel")
        if attempt.deployment.id in self.cut:
            raise UpstreamFault(Failure(FailureClass.CUT))
        yield reader.feed(TEXT % b"lo" + END)


def deployment(id_, **more):
    return Deployment(id_, id_[0], "p", "x", "m", "chat", **{"prices": PRICES, **more})


class Scene:
    def __init__(self, *deployments, purse=None, gate=None, num_retries=None, policy=None, **options):
        chance = random.Random(1)
        self.provider, self.gate, self.purse = Provider(), gate or OpenGate(chance), purse or OpenPurse()
        names = list(dict.fromkeys(d.group for d in deployments))
        groups = {name: Group(name, n, tuple(d for d in deployments if d.group == name)) for n, name in enumerate(names)}
        self.registry = Registry(groups, num_retries=num_retries)
        policy = policy or Policy(retry_base_s=1e-6, retry_cap_s=1e-6)
        self.calls = Completions(lambda: self.registry, {"x": self.provider}, policy, chance, self.gate, self.purse, **options)


class RefusingPurse(OpenPurse):
    """Refuses what `refused` says, by deployment."""

    def __init__(self, refused):
        super().__init__()
        self.refused = refused

    async def reserve(self, ask):
        if error := self.refused.get(ask.deployment_id):
            raise error
        return await super().reserve(ask)


@pytest.mark.parametrize("error", [PermissionDenied("no", reason="MODEL_NOT_ALLOWED"), QuotaExceeded("no")], ids=["not allowed", "quota"])
async def test_a_fallback_that_the_caller_may_not_use_is_skipped(error):
    scene = Scene(deployment("a0"), deployment("b0"), deployment("c0"), purse=RefusingPurse({"b0": error}), num_retries=0)
    scene.provider.failing = {"a0": "transient"}
    assert (await scene.calls.complete(CALL)).outcome.deployment.id == "c0"
    scene.provider.failing["c0"] = "transient"
    with pytest.raises(UpstreamFailed):
        await scene.calls.complete(CALL)
    with pytest.raises(type(error)):
        await scene.calls.complete(ChatCall("b", BODY))


async def test_a_fallback_whose_queue_is_full_is_skipped():
    class FullGate(OpenGate):
        async def enter(self, deployment, load):
            if deployment.id == "b0":
                raise Overloaded("too many calls wait for this model", reason="QUEUE_FULL", retry_after_s=3.0)
            return await super().enter(deployment, load)

    scene = Scene(deployment("a0"), deployment("b0"), gate=FullGate(random.Random(1)), num_retries=0)
    scene.provider.failing = {"a0": "transient"}
    with pytest.raises(UpstreamFailed):
        await scene.calls.complete(CALL)
    with pytest.raises(Overloaded) as caught:
        await scene.calls.complete(ChatCall("b", BODY))
    assert caught.value.reason == "QUEUE_FULL"


async def test_a_retry_that_no_budget_is_left_for_tells_the_failure_before_it():
    class Once(OpenPurse):
        async def reserve(self, ask):
            if ask.number > 1:
                raise QuotaExceeded("tokens")
            return await super().reserve(ask)

    scene = Scene(deployment("a0"), purse=Once())
    scene.provider.failing = {"a0": "transient"}
    with pytest.raises(UpstreamFailed):
        await scene.calls.complete(CALL)


async def test_another_deployment_of_the_group_takes_what_the_first_cannot():
    free = Scene(deployment("a0", prices=UNPRICED), deployment("a1", order=1), deny_unpriced=True)
    assert (await free.calls.complete(CALL)).outcome.deployment.id == "a1"
    said = Scene(deployment("a0"), deployment("a1", order=1), num_retries=0)
    said.provider.failing = {"a0": "unfit"}
    answer = await said.calls.complete(CALL)
    assert (answer.outcome.deployment.id, answer.outcome.fallbacks, answer.outcome.retries) == ("a1", 0, 0)


async def test_max_cost_holds_over_all_attempts_of_a_call():
    body = {**BODY, "max_tokens": 10}
    bound = PRICES.bound_nanousd(len(b'{"messages":[{"role":"user","content":"x"}],"max_tokens":10}'), 10)
    most = -(-bound // 1000)
    scene = Scene(deployment("a0"), deployment("b0"))
    scene.provider.failing = {"a0": "malformed"}
    with pytest.raises(UpstreamFailed):
        await scene.calls.complete(ChatCall("a", body, terms=Terms(max_cost_microusd=most)))
    assert scene.provider.asked == ["a0"]
    assert sum(usage.cost_nanousd for _, usage, _ in scene.purse.settled) <= most * 1000


async def test_an_unknown_cost_is_charged_at_what_was_reserved():
    scene = Scene(deployment("a0", prices=Prices(10**6, 10**6, known=True, cache_write=2 * 10**6, reasoning=3 * 10**6)))
    scene.provider.failing = {"a0": "malformed"}
    with pytest.raises(UpstreamFailed):
        await scene.calls.complete(CALL)
    ((ticket, usage, _),) = scene.purse.settled
    assert usage.estimated
    assert usage.cost_nanousd == ticket.ask.cost_nanousd


async def test_a_continued_answer_is_adapted_and_reserves_for_what_it_repeats():
    can = Capabilities(prefill=True, dropped_params=frozenset({"seed"}))
    scene = Scene(deployment("a0"), deployment("b0", capabilities=can), num_retries=0)
    scene.provider.cut = {"a0"}
    events = [event async for event in scene.calls.stream(ChatCall("a", {**BODY, "seed": 1}))]
    assert events[-1].text == "hello"
    assert scene.provider.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "hel"}
    assert "seed" not in scene.provider.bodies[-1]
    first, second = [ticket.ask for ticket, _, _ in scene.purse.settled]
    assert second.tokens >= first.tokens + len("hel")


async def test_a_hedge_that_may_not_be_made_leaves_the_first_request_alone():
    hedge = Hedge(0.5)
    for _ in range(40):
        hedge.observe("a0", 0.001, 10**6)
    scene = Scene(deployment("a0"), deployment("a1", order=1), purse=RefusingPurse({"a1": QuotaExceeded("one at a time")}), hedge=hedge)
    began = asyncio.Event()

    async def slow(attempt):
        scene.provider.asked.append(attempt.deployment.id)
        began.set()
        await asyncio.sleep(0.05)
        return parse_answer(ANSWER)

    scene.provider.complete = slow
    assert (await scene.calls.complete(CALL)).outcome.deployment.id == "a0"


def test_the_larger_of_two_bounds_holds_and_azure_reasons_with_the_newer_name():
    assert output_bound({"max_tokens": 4000, "max_completion_tokens": 100}) == 4000
    azure = Deployment("a", "a", "azure", "openai", "o4", "chat", reasoning=True)
    assert assumed_output(azure) == ("max_completion_tokens", 2000)
    dropped = Deployment("a", "a", "vllm", "openai", "m", "chat", capabilities=Capabilities(dropped_params=frozenset({"max_tokens"})))
    assert assumed_output(dropped)[0] == "max_completion_tokens"


def test_what_a_provider_adds_to_a_short_request_is_reserved_for():
    def more(**body):
        return measure({**BODY, **body}).worst() - measure(BODY).worst()

    def content(**part):
        return [{"role": "user", "content": [part]}]

    # Anthropic's hidden prompt for tools has up to 530 tokens.
    assert more(tools=[{"type": "function", "function": {"name": "f"}}]) >= 530
    assert more(messages=content(type="image_url", image_url={"url": "https://x/y.png"})) >= 1_500
    assert more(messages=content(type="file", file={"file_id": "https://x/y.pdf"})) >= 10_000
