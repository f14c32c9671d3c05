"""Vectors of two models never meet in one answer."""

from array import array

import pytest

from services.common.rpc import context as call_context
from services.common.testing import principal_of
from services.llm_gateway.caching import Caches
from services.llm_gateway.caching_levels import Levels
from services.llm_gateway.caching_memory import MemoryCache
from services.llm_gateway.caching_rules import CachePolicy
from services.llm_gateway.money import priced
from services.llm_gateway.ports import Vectors
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.results import EmbedCall, Embedded, Outcome

SERVED = Deployment("d", "v", "p", "openai", "m", "embedding")


class Inner:
    """Embeds a text as its length and the model that did it: `main`, or after `fails` another one."""

    registry = Registry({"v": Group("v", 0, (SERVED,))})

    def __init__(self):
        self.asked = []
        self.model, self.fallbacks, self.size = "main", 0, 2

    async def embed(self, call):
        given = call.body["input"]
        texts = [given] if isinstance(given, str) else given
        self.asked.append(texts)
        vectors = [array("f", [len(text), float(self.model == "main")] + [0.0] * (self.size - 2)) for text in texts]
        usage = priced(SERVED.prices, len(texts), 0)
        outcome = Outcome(SERVED, usage, "", "", self.model, 1, 0, self.fallbacks)
        return Embedded(Vectors(vectors, len(texts), self.model, b"raw"), outcome)


@pytest.mark.parametrize("change", [{"fallbacks": 1}, {"model": "other"}, {"size": 3}], ids=str)
async def test_another_model_computes_everything_again(change):
    inner = Inner()
    caches = Caches(inner, Levels(MemoryCache()), lambda: CachePolicy(enabled=True))
    with call_context.bind(call_context.CallContext(principal=principal_of())):
        await caches.embed(EmbedCall("v", {"input": ["one"]}))
        for name, value in change.items():
            setattr(inner, name, value)
        found = await caches.embed(EmbedCall("v", {"input": ["one", "three"]}))
    assert inner.asked == [["one"], ["three"], ["one", "three"]]
    assert len({vector[1] for vector in found.vectors.vectors}) == 1
    assert len({len(vector) for vector in found.vectors.vectors}) == 1


@pytest.mark.parametrize("given", ["text", ["text"], [1, 2, 3], [[1, 2], [3]], ["a", "a", "b"]], ids=str)
async def test_every_kind_of_input(given):
    inner = Inner()
    caches = Caches(inner, Levels(MemoryCache()), lambda: CachePolicy(enabled=True))
    if given == [1, 2, 3]:
        # One text in tokens is one vector.
        inner_embed = inner.embed

        async def one(call):
            made = await inner_embed(EmbedCall("v", {"input": "xyz"}))
            inner.asked[-1] = call.body["input"]
            return made

        inner.embed = one
    with call_context.bind(call_context.CallContext(principal=principal_of())):
        first = await caches.embed(EmbedCall("v", {"input": given}))
        again = await caches.embed(EmbedCall("v", {"input": given}))
    assert len(inner.asked) == 1
    assert again.vectors.vectors == first.vectors.vectors
    assert (again.outcome.cached, again.outcome.usage.input, again.vectors.raw) == ("exact", 0, None)
