"""Answers of similar questions, with a contextual embedder that finds everything similar: the worst one there is."""

from array import array
from dataclasses import replace

import orjson
import pytest
import pytest_asyncio

from services.common import testing
from services.common.valkey import connect
from services.llm_gateway.adapters.answer_cache import AnswerCache
from services.llm_gateway.caching_memory import MemoryCache
from services.llm_gateway.caching_records import Record
from services.llm_gateway.ports import Vectors
from services.llm_gateway.registry import Group
from services.llm_gateway.semantic import SemanticCache, SemanticTerms

ASKED = "How do I reset my password?"
SAME = "Please tell me how to reset my password"


class Embedder:
    """Model calls whose embeddings are as near to each other as `angle` says."""

    def __init__(self, inner):
        self._inner = inner
        self.registry_of = lambda: inner.registry
        self.calls = 0
        self.spread = 0.0

    @property
    def registry(self):
        return self.registry_of()

    async def embed(self, call):
        self.calls += 1
        made = await self._inner.embed(call)
        return replace(made, vectors=Vectors([array("f", [1.0, self.spread * self.calls, 0.0])], 1, "fake"))


@pytest.fixture(scope="module")
def cache_server():
    with testing.valkey_server("cache") as (url, _):
        yield url


@pytest_asyncio.fixture
async def semantic(layers, cache_server):
    client = connect(cache_server)
    await client.flushall()
    store = AnswerCache(client, timeout_s=1.0)
    embedder = Embedder(layers.completions)
    made = SemanticCache(embedder, store, lambda: SemanticTerms("vectors"))
    layers.caches = layers.cached(store, memory=MemoryCache(), semantic=made)
    layers.embedder, layers.store, layers.client = embedder, store, client
    yield made
    await made.stop()
    await client.aclose()


async def asked(layers, text, importance=0.9, **body):
    terms = layers.terms(semantic=True, importance=importance)
    return (await layers.caches.complete(layers.chat(text, terms=terms, **body))).outcome.cached


async def remembered(layers, count=1):
    async def there():
        return await layers.client.zcard("llmc:{acme}:questions") >= count

    await testing.eventually_async(there, "the question is kept")


async def test_the_same_question_in_other_words(layers, semantic):
    async with layers.as_user():
        assert await asked(layers, ASKED) == ""
        await remembered(layers)
        assert await asked(layers, SAME) == "semantic"
        # Opted out: this call may not get the answer of another question.
        assert (await layers.caches.complete(layers.chat(SAME))).outcome.cached == ""
        raws, _, end = await layers.collected(
            layers.caches.stream(layers.chat("how can I reset my password", terms=layers.terms(semantic=True)))
        )
    assert raws
    assert end.outcome.cached == "semantic"
    assert end.outcome.usage.cost_picousd == 0


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("How do I not reset my password?", {}),
        ("How do I reset your password?", {}),
        (SAME, {"temperature": 0.5}),
        (SAME, {"model": "main2"}),
        (SAME, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
        (SAME, {"n": 2}),
    ],
)
async def test_another_question_or_another_setting_is_a_miss(layers, semantic, text, body):
    layers.groups["main2"] = layers.group("main2", "sim-2", 2)
    async with layers.as_user():
        await asked(layers, ASKED)
        await remembered(layers)
        assert await asked(layers, text, **body) == ""


async def test_other_turns_tenants_and_users_are_a_miss(layers, semantic):
    async with layers.as_user():
        await asked(layers, ASKED)
        await remembered(layers)
        terms = layers.terms(semantic=True)
        call = layers.chat(SAME, terms=terms)
        said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        for before in ([{"role": "system", "content": "Be brief."}], said):
            longer = replace(call, body={"messages": [*before, *call.body["messages"]]})
            assert (await layers.caches.complete(longer)).outcome.cached == ""
    async with layers.as_user(tenant="globex"):
        assert await asked(layers, SAME) == ""
    layers.policy = replace(layers.policy, per_user=True)
    async with layers.as_user("ben"):
        assert await asked(layers, SAME) == ""


async def test_only_important_questions_are_kept(layers, semantic):
    async with layers.as_user():
        await asked(layers, ASKED, importance=0.8)
        await layers.store.stop()
        assert await layers.client.zcard("llmc:{acme}:questions") == 0
        assert layers.embedder.calls == 0


async def test_an_answer_that_calls_a_tool_is_not_given_to_another_question(layers, semantic):
    call = layers.chat(ASKED, terms=layers.terms(semantic=True, importance=1.0))
    made = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    for message in ({"content": "x", "tool_calls": made}, {"content": None}, {"content": "x"}):
        body = orjson.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
        semantic.remember(semantic.question(call, "acme", ()), call, "key", "owner", Record("answer", body, 1.0, 9e9, "o", "d", "g"), 60.0)
    await remembered(layers)
    assert layers.embedder.calls == 1


async def test_embeddings_that_are_far_apart_are_a_miss(layers, semantic):
    layers.embedder.spread = 1.0
    async with layers.as_user():
        await asked(layers, ASKED)
        await remembered(layers)
        assert await asked(layers, SAME) == ""
        assert layers.embedder.calls >= 2


async def test_a_static_embedder_is_refused_unless_forced(layers, semantic):
    real = layers.completions.registry
    static = replace(real.groups["vectors"].deployments[0], adapter="wordllama")
    layers.embedder.registry_of = lambda: replace(real, groups={**real.groups, "vectors": Group("vectors", 1, (static,))})
    async with layers.as_user():
        await asked(layers, ASKED)
        assert await asked(layers, SAME) == ""
        assert layers.embedder.calls == 0
    forced = SemanticCache(layers.embedder, layers.store, lambda: SemanticTerms("vectors"), force_static=True)
    assert forced.usable("vectors")


async def test_an_embedder_that_fails_is_a_miss(layers, semantic):
    await layers.sim.order("status=500", endpoint="embeddings")
    async with layers.as_user():
        assert await asked(layers, ASKED) == ""
        assert await asked(layers, SAME) == ""


async def test_erased_questions_find_nothing(layers, semantic):
    async with layers.as_user():
        await asked(layers, ASKED)
        await remembered(layers)
        await layers.caches.erase("acme", "ana")
        assert not [name for name in await layers.client.keys("llmc:*") if b":q:" in name or b":a:" in name]
        assert await asked(layers, SAME) == ""


async def test_questions_are_bounded(layers, semantic, monkeypatch):
    monkeypatch.setattr("services.llm_gateway.adapters.answer_cache.MAX_TENANT_QUESTIONS", 5)
    monkeypatch.setattr("services.llm_gateway.adapters.answer_cache.MAX_SCOPE_QUESTIONS", 3)
    for number in range(12):
        layers.store.keep("acme", f"s{number % 3}", f"n{number}", b"q", "o", 60.0)
        await layers.store.stop()
    sizes = [len(await layers.store.asked("acme", f"s{scope}")) for scope in range(3)]
    assert sum(sizes) == await layers.client.zcard("llmc:{acme}:questions") == 5
    assert max(sizes) <= 3
