"""An attempt of which no provider has heard costs nothing and takes nothing from its deployment's minute, however it ends."""

import asyncio
import random
import threading
import time

import pytest

from services.common import testing
from services.common.breaker import Breakers
from services.common.errors import BudgetExceeded, BulkheadError
from services.llm_gateway.adapters.http_client import HttpClient
from services.llm_gateway.adapters.http_upstream import HttpUpstream
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall, parse_answer
from services.llm_gateway.completions import Completions
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.gate import DeploymentGate, GateSettings
from services.llm_gateway.money import UNPRICED, Prices
from services.llm_gateway.registry import Deployment, DeploymentLimits, Group, Registry
from services.llm_gateway.testing import OpenPurse
from services.llm_gateway.work import LARGE_BYTES
from tests.unit.llm_gateway.openai_bytes import ANSWER

CALL = ChatCall("a", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5})
LARGE = ChatCall("a", {"messages": [{"role": "user", "content": "x" * (LARGE_BYTES + 1)}], "max_tokens": 5})
PRICES = Prices(10**6, 2 * 10**6, known=True)
MINUTE = DeploymentLimits(requests_per_minute=10, tokens_per_minute=10**6)


class Minutes:
    """Limits a minute that hold nobody up, and know what is taken from them."""

    def __init__(self):
        self.requests = self.tokens = 0

    async def take(self, deployment_id, limits, tokens):
        self.requests, self.tokens = self.requests + 1, self.tokens + tokens
        return 0.0

    def give_back(self, deployment_id, limits, requests, tokens):
        self.requests, self.tokens = self.requests - requests, self.tokens - tokens

    def count(self, deployment_id, tokens): ...

    def used(self, deployment_id):
        return 0, 0


class Scene:
    def __init__(self, upstream, *deployments, policy=Policy(num_retries=0)):
        chance = random.Random(1)
        self.minutes, self.purse = Minutes(), OpenPurse()
        deployments = deployments or (Deployment("a0", "a", "p", "x", "m", "chat", "http://127.0.0.1:9/v1", prices=PRICES, limits=MINUTE),)
        self.deployment = deployments[0]
        self.gate = DeploymentGate(Breakers(None, key="{}".format, channel="c"), self.minutes, chance, GateSettings())
        registry = Registry({"a": Group("a", 0, deployments)})
        self.calls = Completions(lambda: registry, {"x": upstream}, policy, chance, self.gate, self.purse, deny_unpriced=True)

    async def ask(self, call, streamed):
        if streamed:
            async for _ in self.calls.stream(call):
                pass
        else:
            await self.calls.complete(call)

    def untouched(self):
        assert (self.purse.open, self.purse.settled) == ({}, [])
        assert (self.minutes.requests, self.minutes.tokens) == (0, 0)
        assert self.gate.state([self.deployment])[0].in_flight == 0


def at(server):
    return Deployment("a0", "a", "p", "x", "m", "chat", server.url.partition("/chat")[0], prices=PRICES, limits=MINUTE)


class SlowDialect(OpenAiDialect):
    """Translates until it may go on."""

    def __init__(self):
        self.began, self.go_on = threading.Event(), threading.Event()

    def chat(self, attempt, *, stream):
        self.began.set()
        self.go_on.wait(10)
        return super().chat(attempt, stream=stream)


class NoConnection(HttpClient):
    """Connects for ever."""

    def __init__(self):
        super().__init__()
        self.connecting = asyncio.Event()

    async def _connect(self, origin):
        self.connecting.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_leaves_while_a_large_request_is_translated_pays_nothing(streamed):
    client, dialect = HttpClient(), SlowDialect()
    scene = Scene(HttpUpstream(client, dialect))
    task = asyncio.create_task(scene.ask(LARGE, streamed))
    await testing.eventually_async(dialect.began.is_set, "the translation began")
    task.cancel()
    await asyncio.wait([task])
    dialect.go_on.set()
    assert task.cancelled()
    assert len(scene.purse.released) == 1
    scene.untouched()
    await client.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_large_request_whose_time_is_up_when_it_is_translated_is_not_sent(streamed, raw):
    dialect, answer = SlowDialect(), b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
    async with raw.served(raw.says(answer)) as (server, client):
        scene = Scene(HttpUpstream(client, dialect), at(server), policy=Policy(total_s=0.5, num_retries=0))
        dialect.go_on.set()
        await scene.calls.complete(CALL)  # leaves a connection on which nothing would have to be waited for
        dialect.began.clear()
        dialect.go_on.clear()
        task = asyncio.create_task(scene.ask(LARGE, streamed))
        await testing.eventually_async(dialect.began.is_set, "the translation began")
        await asyncio.sleep(0.5)
        dialect.go_on.set()
        with pytest.raises(BulkheadError, match="in time"):
            await task
        assert len(server.requests) == 1
    assert (len(scene.purse.settled), len(scene.purse.released), scene.purse.open) == (1, 1, {})


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_leaves_before_there_is_a_connection_pays_nothing(streamed):
    client = NoConnection()
    scene = Scene(HttpUpstream(client, OpenAiDialect()))
    task = asyncio.create_task(scene.ask(CALL, streamed))
    await client.connecting.wait()
    task.cancel()
    await asyncio.wait([task])
    scene.untouched()
    await client.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_deadline_that_ends_before_there_is_a_connection_costs_nothing(streamed):
    client = NoConnection()
    scene = Scene(HttpUpstream(client, OpenAiDialect()), policy=Policy(total_s=0.1, num_retries=0))
    with pytest.raises(BulkheadError, match="in time"):
        await scene.ask(CALL, streamed)
    assert (scene.purse.open, scene.purse.settled) == ({}, [])
    assert len(scene.purse.released) == 1
    await client.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_leaves_once_the_request_is_sent_pays_an_estimate(streamed, raw):
    heard = asyncio.Event()

    async def silent(number, request, writer):
        heard.set()

    async with raw.served(silent) as (server, client):
        scene = Scene(HttpUpstream(client, OpenAiDialect()), at(server))
        task = asyncio.create_task(scene.ask(CALL, streamed))
        await heard.wait()
        task.cancel()
        await asyncio.wait([task])
    ((_, usage, status),) = scene.purse.settled
    assert (usage.estimated, status, scene.minutes.requests) == (True, "cancelled", 1)


async def test_a_caller_without_money_uses_up_no_minute_of_a_deployment():
    scene = Scene(None)

    async def reserve(ask):
        raise BudgetExceeded("no money left")

    scene.purse.reserve = reserve
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            await scene.calls.complete(CALL)
    scene.untouched()


@pytest.mark.parametrize("said_s", [None, 0.3])
async def test_a_deployment_that_is_left_out_shortens_no_wait_of_the_other(said_s):
    asked = []

    class Provider:
        async def complete(self, attempt):
            asked.append((attempt.deployment.id, time.monotonic()))
            if len(asked) == 1:
                raise UpstreamFault(Failure(FailureClass.RATE_LIMITED, retry_after_s=said_s))
            return parse_answer(ANSWER)

    priced = Deployment("a0", "a", "p", "x", "m", "chat", prices=PRICES)
    unpriced = Deployment("a1", "a", "p", "x", "m", "chat", prices=UNPRICED, order=1)
    scene = Scene(Provider(), priced, unpriced, policy=Policy(retry_base_s=1e-6))
    await scene.calls.complete(CALL)
    assert [id_ for id_, _ in asked] == ["a0", "a0"]
    assert asked[1][1] - asked[0][1] >= (said_s or 0.0)
