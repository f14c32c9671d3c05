"""Where a call meets its queue, its limits and its end: what waiting costs, what is counted once, what nobody may leave open."""

import asyncio
import random
import time

import pytest

from services.common import testing
from services.common.breaker import Breakers
from services.common.errors import Overloaded
from services.common.settings import StartRefused, parse
from services.llm_gateway.adapters.parts import Doors
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall, ChunkReader, parse_answer
from services.llm_gateway.completions import Completions
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.gate import DeploymentGate, GateSettings
from services.llm_gateway.hedging import NEEDED, Hedge
from services.llm_gateway.money import Prices
from services.llm_gateway.ports import Load
from services.llm_gateway.registry import Capabilities, Deployment, DeploymentLimits, Group, Registry, Timeouts
from services.llm_gateway.results import Notice
from services.llm_gateway.settings import Settings
from services.llm_gateway.testing import OpenGate, OpenPurse
from tests.unit.llm_gateway.openai_bytes import ANSWER, END, TEXT

BODY = {"messages": [{"role": "user", "content": "x"}], "seed": 1}
CALL = ChatCall("a", BODY)
ONE_AT_A_TIME = DeploymentLimits(parallel=1)
NO_SEED = Capabilities(dropped_params=frozenset({"seed"}))


class Provider:
    """Answers, after the failures that are scripted for a deployment."""

    def __init__(self):
        self.failures: dict[str, list[Failure]] = {}
        self.asked = []

    async def _meet(self, attempt):
        self.asked.append((attempt, time.monotonic()))
        if failures := self.failures.get(attempt.deployment.id):
            raise UpstreamFault(failures.pop(0))

    async def complete(self, attempt):
        await self._meet(attempt)
        return parse_answer(ANSWER)

    async def stream(self, attempt):
        await self._meet(attempt)
        yield ChunkReader().feed(TEXT % b"hi" + END)


class Scene:
    def __init__(self, *deployments, policy=Policy(retry_base_s=1e-6, retry_cap_s=1e-6), gate=None, **options):
        chance = random.Random(1)
        self.provider, self.purse, self.gate = Provider(), OpenPurse(), gate or OpenGate(chance)
        names = list(dict.fromkeys(d.group for d in deployments))
        groups = {name: Group(name, n, tuple(d for d in deployments if d.group == name)) for n, name in enumerate(names)}
        self.calls = Completions(lambda: Registry(groups), {"x": self.provider}, policy, chance, self.gate, self.purse, **options)

    async def ask(self, streamed):
        """The notices of one call that succeeds."""
        if streamed:
            return [event async for event in self.calls.stream(CALL) if isinstance(event, Notice)]
        return (await self.calls.complete(CALL)).notices

    @property
    def requests(self):
        """What all reservations together count as the caller's requests."""
        return sum(ticket.ask.requests for ticket in [*self.purse.released, *(ticket for ticket, _, _ in self.purse.settled)])


def deployment(id_, **more):
    return Deployment(id_, id_[0], "p", "x", "m", "chat", prices=Prices(10**6, 2 * 10**6, known=True), **more)


class NoMinutes:
    """Deployments without limits a minute."""

    async def take(self, deployment_id, limits, tokens):
        return 0.0

    def give_back(self, deployment_id, limits, requests, tokens): ...


def real_gate(**settings):
    return DeploymentGate(Breakers(None, key="{}".format, channel="c"), NoMinutes(), random.Random(1), GateSettings(**settings))


def load():
    return Load("t", "free", 1, 0, time.monotonic() + 60)


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_waited_for_a_place_has_all_of_its_time_to_be_answered(streamed):
    only = deployment("a0", limits=ONE_AT_A_TIME, timeouts=Timeouts(total_s=0.25))
    scene = Scene(only, gate=real_gate())
    permit = await scene.gate.enter(only, load())
    call = asyncio.create_task(scene.ask(streamed))
    await testing.eventually_async(lambda: scene.gate.state([only])[0].queued == 1, "the call waits")
    await asyncio.sleep(0.3)
    scene.gate.leave(permit, None)
    await call
    ((attempt, at),) = scene.provider.asked
    assert attempt.limits.ends_at - at == pytest.approx(0.25, abs=0.2)
    ((ticket, _, _),) = scene.purse.settled
    assert ticket.ask.expires_s > attempt.limits.ends_at - at


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_full_deployment_leads_to_the_fallback_while_that_has_time_to_answer(streamed):
    full = deployment("a0", limits=ONE_AT_A_TIME)
    scene = Scene(full, deployment("b0"), gate=real_gate(), policy=Policy(total_s=1.0, num_retries=0))
    permit = await scene.gate.enter(full, load())
    began = time.monotonic()
    assert [notice.code for notice in await scene.ask(streamed)] == ["model_fallback"]
    ((attempt, at),) = scene.provider.asked
    assert attempt.deployment.id == "b0"
    assert at - began < 0.6
    scene.gate.leave(permit, None)


async def test_a_hop_has_its_share_of_what_is_left_when_it_is_admitted():
    full = deployment("a0", limits=ONE_AT_A_TIME)
    scene = Scene(full, deployment("b0"), gate=real_gate(), policy=Policy(total_s=3.0, num_retries=0))
    permit = await scene.gate.enter(full, load())
    call = asyncio.create_task(scene.ask(False))
    await testing.eventually_async(lambda: scene.gate.state([full])[0].queued == 1, "the call waits")
    await asyncio.sleep(0.5)
    scene.gate.leave(permit, None)
    await call
    ((attempt, at),) = scene.provider.asked
    # Had its share begun when the model was chosen, half of what is left would be the most by now.
    assert attempt.limits.silent_s / (attempt.limits.ends_at - at) == pytest.approx(0.6, abs=0.04)


async def test_a_place_that_comes_when_the_time_is_up_is_given_back_unused():
    class LateGate(OpenGate):
        async def enter(self, deployment, load):
            await asyncio.sleep(0.06)
            return await super().enter(deployment, load)

    scene = Scene(deployment("a0"), gate=LateGate(random.Random(1)), policy=Policy(total_s=0.05))
    with pytest.raises(Exception, match="did not answer in time"):
        await scene.ask(False)
    assert (scene.provider.asked, scene.gate.inside, scene.purse.open, scene.purse.settled) == ([], 0, {}, [])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [0, 400], ids=["before it is sent", "by the provider's answer"])
async def test_a_call_is_one_request_of_its_caller_whatever_cannot_take_it(status, streamed):
    scene = Scene(deployment("a0"), deployment("a1", order=1))
    scene.provider.failures = {"a0": [Failure(FailureClass.UNFIT, status=status)]}
    await scene.ask(streamed)
    assert [attempt.deployment.id for attempt, _ in scene.provider.asked] == ["a0", "a1"]
    assert scene.requests == 1


async def test_a_call_that_the_hedge_answers_while_the_first_waits_for_a_place_is_a_request():
    first, hedge = deployment("a0", limits=ONE_AT_A_TIME), Hedge(0.5)
    scene = Scene(first, deployment("a1", order=1), gate=real_gate(), hedge=hedge)
    for _ in range(NEEDED):
        hedge.observe("a0", 0.001, 10**6)
    pick, permit = scene.gate.pick, await scene.gate.enter(first, load())
    scene.gate.pick = lambda candidates, *_: candidates[0] if len(candidates) > 1 else pick(candidates, *_)
    await scene.ask(False)
    assert [attempt.deployment.id for attempt, _ in scene.provider.asked] == ["a1"]
    assert scene.requests == 1
    scene.gate.leave(permit, None)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_adapted_request_is_told_once_for_each_target(streamed):
    scene = Scene(deployment("a0", capabilities=NO_SEED), deployment("b0", capabilities=NO_SEED))
    transient = Failure(FailureClass.TRANSIENT)
    scene.provider.failures = {"a0": [transient] * 4, "b0": [transient]}
    notices = await scene.ask(streamed)
    assert [dict(n.attributes)["model"] for n in notices if n.code == "request_adapted"] == ["a", "b"]
    told = [n.code for n in notices]
    assert told[0] == "request_adapted"
    assert told.count("model_retry") == 4


async def test_what_was_adapted_is_told_although_the_stream_fails():
    scene = Scene(deployment("a0", capabilities=NO_SEED), policy=Policy(num_retries=1, retry_base_s=1e-6))
    scene.provider.failures = {"a0": [Failure(FailureClass.TRANSIENT)] * 2}
    told = []
    with pytest.raises(Exception, match="cannot be reached"):
        async for event in scene.calls.stream(CALL):
            told.append(event.code)
    assert told == ["request_adapted", "model_retry"]


async def test_who_leaves_at_a_notice_of_an_open_stream_leaves_nothing_open():
    scene = Scene(deployment("a0", capabilities=NO_SEED))
    stream = scene.calls.stream(CALL)
    assert (await anext(stream)).code == "request_adapted"
    await stream.aclose()
    assert (scene.gate.inside, scene.purse.open) == (0, {})
    assert [status for _, _, status in scene.purse.settled] == ["cancelled"]


def settings():
    return Settings(state_url="redis://127.0.0.1:1/0")


async def test_a_second_request_that_has_failed_as_well_is_not_made_again():
    hedge = Hedge(0.5)
    scene = Scene(deployment("a0"), deployment("a1", order=1), deployment("b0"), hedge=hedge)
    for _ in range(NEEDED):
        hedge.observe("a0", 0.0, 10**6)
    both = asyncio.Event()
    scene.gate.pick = lambda candidates, *_: candidates[-1 if scene.provider.asked else 0]

    async def meet(attempt):
        scene.provider.asked.append((attempt, time.monotonic()))
        name = attempt.deployment.id
        if len(scene.provider.asked) == 2:
            both.set()
        await both.wait()
        if name == "a1" or len(scene.provider.asked) < 4:
            raise UpstreamFault(Failure(FailureClass.CREDENTIAL if name == "a1" else FailureClass.TRANSIENT))

    scene.provider._meet = meet
    completed = await scene.calls.complete(CALL)
    assert [attempt.deployment.id for attempt, _ in scene.provider.asked] == ["a0", "a1", "a0", "a0"]
    assert (completed.outcome.attempts, completed.outcome.retries, completed.outcome.fallbacks) == (4, 2, 0)


async def queued(settings, *tiers):
    """The tiers of the calls that wait at a deployment with one place, in the order in which they get it."""
    gate = Doors(settings, random.Random(1)).gate
    one, order = deployment("a0", limits=ONE_AT_A_TIME), []

    async def call(tier):
        permit = await gate.enter(one, Load(tier, tier, 100, 0, time.monotonic() + 60))
        order.append(tier)
        gate.leave(permit, None)

    held = await gate.enter(one, load())
    waiting = [asyncio.create_task(call(tier)) for tier in tiers]
    await asyncio.sleep(0)
    gate.leave(held, None)
    await asyncio.gather(*waiting)
    return order


async def test_the_queue_is_shared_out_as_the_settings_say(monkeypatch):
    tiers = ["free"] * 10 + ["pro"] * 10
    assert (await queued(settings(), *tiers))[:6].count("pro") == 4
    monkeypatch.setenv("BULKHEAD_QUEUE_TIER_WEIGHTS", " free = 5 , enterprise=2.5")
    assert (await queued(settings(), *tiers))[:6].count("pro") == 1
    monkeypatch.setenv("BULKHEAD_QUEUE_PER_TENANT", "1")
    with pytest.raises(Overloaded):
        await queued(settings(), "free", "free")
    assert await queued(settings(), "free", "pro") == ["free", "pro"]


@pytest.mark.parametrize(
    "value", ["free", "free=", "free=x", "free=0", "free=nan", "free=1e9", "free=1,free=2", "=1", "free=1,", '{"free":1}']
)
def test_a_wrong_weight_is_named_at_the_start_and_not_repeated(monkeypatch, value):
    monkeypatch.setenv("BULKHEAD_QUEUE_TIER_WEIGHTS", value)
    monkeypatch.setenv("BULKHEAD_QUEUE_PER_TENANT", "-1")
    with pytest.raises(StartRefused) as refused:
        parse(Settings)
    per_tenant, weights = sorted(refused.value.problems)
    assert per_tenant.startswith("BULKHEAD_QUEUE_PER_TENANT: ")
    assert weights.startswith("BULKHEAD_QUEUE_TIER_WEIGHTS: ")
    assert ("weight is a number" in weights) or ("write tier=weight" in weights)
    assert value not in weights.partition(": ")[2]
