"""Real completions over a real simulator, and the layers around them."""

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest_asyncio

from services.common.errors import BudgetExceeded, PermissionDenied
from services.common.rpc import context as call_context
from services.common.testing import principal_of
from services.llm_gateway.adapters.http_upstream import HttpUpstream, provider_session
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.attempts import Policy
from services.llm_gateway.caching import Caches
from services.llm_gateway.caching_levels import Levels
from services.llm_gateway.caching_memory import MemoryCache
from services.llm_gateway.caching_rules import CachePolicy
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.completions import Completions
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.results import Finished, Notice
from services.llm_gateway.single_flight import SingleFlight
from services.llm_gateway.terms import PLAIN, CacheTerms, Terms
from services.llm_gateway.testing import OpenGate, OpenPurse

PRICES = Prices(150_000, 600_000, known=True)
TEXT = "Tell me about ships and bulkheads, please."


class Clock:
    """The time of day, as a test sets it."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


class Limited(OpenPurse):
    """Refuses the users that have no money."""

    def __init__(self):
        super().__init__()
        self.broke = set()

    async def reserve(self, ask):
        """A ticket, or BudgetExceeded."""
        if ask.principal.user in self.broke:
            await asyncio.sleep(0.05)
            raise BudgetExceeded("no money left")
        return await super().reserve(ask)


class Layers:
    """Completions over main and vectors, and layers around them; `asked` says how often the provider was."""

    def __init__(self, sim, session):
        self.sim, self.purse, self.clock = sim, Limited(), Clock()
        self.policy = CachePolicy(enabled=True, ttl_s=100.0, stale_s=1_000.0)
        self.groups = {"main": self.group("main", "sim-1", 0), "vectors": self.group("vectors", "sim-embed", 1, "embedding")}
        self.refused = set()
        chance = random.Random(1)
        policy = Policy(total_s=6.0, first_token_s=2.0, connect_s=1.0, num_retries=0, retry_base_s=0.001)
        self.completions = Completions(
            lambda: Registry(dict(self.groups)),
            {"openai": HttpUpstream(session, OpenAiDialect())}, policy, chance, OpenGate(chance), self.purse,
        )  # fmt: skip
        self.flight = SingleFlight(self.completions, lambda: self.policy, admit=self.admit)
        self.choosy = SingleFlight(self.completions)
        self.memory = MemoryCache()
        self.caches = self.cached()

    def cached(self, shared=None, disk=None, memory=None, **options):
        """The caching layer over these levels."""
        levels = Levels(self.memory if memory is None else memory, shared, disk, clock=self.clock)
        return Caches(self.flight, levels, lambda: self.policy, admit=self.admit, **options)

    async def admit(self, model):
        """Refuses some users."""
        if call_context.principal().user in self.refused:
            raise PermissionDenied("not this model", reason="MODEL_NOT_ALLOWED")

    async def asked(self):
        """How many requests the provider has got."""
        return len(await self.sim.log())

    @property
    def charged(self):
        """The users that paid, an entry a call."""
        return [ticket.ask.principal.user for ticket, usage, _ in self.purse.settled if usage.cost_picousd]

    def group(self, name, model, index, mode="chat"):
        """A model group of one deployment of the simulator."""
        made = Deployment(
            f"{name}-0", name, "simulator", "openai", model, mode, f"{self.sim.url}/v1", prices=PRICES, simulated=True, stream_usage=True
        )
        return Group(name, index, (made,))

    @staticmethod
    def chat(text=TEXT, terms=PLAIN, model="main", **body):
        """One completion."""
        return ChatCall(model, {"messages": [{"role": "user", "content": text}], **body}, terms=terms)

    @staticmethod
    def terms(idempotency_key="", **cache):
        """Terms of a call."""
        return Terms(cache=CacheTerms(**cache), idempotency_key=idempotency_key, lingers=bool(idempotency_key))

    @staticmethod
    @asynccontextmanager
    async def as_user(user="ana", tenant="acme", timeout_s=None, run_id=""):
        """Calls of a user, or of a run of theirs."""
        context = call_context.CallContext(principal=replace(principal_of(tenant, user), run_id=run_id))
        with call_context.bind(context if timeout_s is None else context.with_timeout(timeout_s)):
            yield

    @staticmethod
    async def collected(stream):
        """Raw events, codes of notices, the end."""
        raws, notices, end = [], [], None
        async for event in stream:
            if isinstance(event, list):
                raws += [chunk.raw for chunk in event]
            elif isinstance(event, Notice):
                notices.append(event.code)
            else:
                assert isinstance(event, Finished)
                end = event
        return raws, notices, end


@pytest_asyncio.fixture
async def layers(sim):
    """Layers of the test's own."""
    session = provider_session()
    yield Layers(sim, session)
    await session.close()
