"""Caches around real completions, in front of a real simulator whose log says how often it was asked."""

from dataclasses import replace

import orjson
import pytest

from services.common.errors import BudgetExceeded, BulkheadError, InvalidInput
from services.llm_gateway.caching_rules import CachePolicy
from services.llm_gateway.results import EmbedCall
from services.llm_gateway.terms import PLAIN


async def test_a_whole_answer_serves_both_forms(layers):
    async with layers.as_user():
        first = await layers.caches.complete(layers.chat())
    async with layers.as_user("ben"):
        again = await layers.caches.complete(layers.chat())
        raws, _, end = await layers.collected(layers.caches.stream(layers.chat(stream=True)))
    assert await layers.asked() == 1
    assert again.answer.raw == first.answer.raw
    assert (again.outcome.cached, again.outcome.usage.cost_picousd) == ("exact", 0)
    assert again.answer.data["usage"]["prompt_tokens"] > 0
    assert end.text == first.answer.data["choices"][0]["message"]["content"]
    assert end.outcome.cached == "exact"
    events = [orjson.loads(raw) for raw in raws]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"] == first.answer.data["usage"]
    assert layers.charged == ["ana"]


async def test_a_stream_serves_both_forms(layers):
    async with layers.as_user():
        raws, _, end = await layers.collected(layers.caches.stream(layers.chat()))
        again, _, second = await layers.collected(layers.caches.stream(layers.chat()))
        whole = await layers.caches.complete(layers.chat())
    assert await layers.asked() == 1
    assert again == raws
    assert second.outcome.cached == whole.outcome.cached == "exact"
    assert whole.answer.data["choices"][0]["message"] == {"role": "assistant", "content": end.text}
    assert whole.answer.data["choices"][0]["finish_reason"] == "stop"
    assert whole.answer.data["usage"] == orjson.loads(raws[-1])["usage"]


async def test_caches_are_off_unless_switched_on_or_asked_for(layers):
    layers.policy = CachePolicy()
    async with layers.as_user():
        for _ in range(2):
            await layers.caches.complete(layers.chat())
        assert await layers.asked() == 2
        for _ in range(3):
            await layers.caches.complete(layers.chat(terms=layers.terms(ttl_s=60.0)))
        assert await layers.asked() == 3


async def test_a_call_says_how_it_uses_the_cache(layers):
    async with layers.as_user():
        await layers.caches.complete(layers.chat(terms=layers.terms(write=False)))
        await layers.caches.complete(layers.chat())
        assert await layers.asked() == 2  # no-store did not store
        await layers.caches.complete(layers.chat(terms=layers.terms(read=False)))
        assert await layers.asked() == 3  # no-cache asked the provider
        layers.clock.now += 60
        await layers.caches.complete(layers.chat())
        await layers.caches.complete(layers.chat(terms=layers.terms(max_age_s=61.0)))
        assert await layers.asked() == 3
        await layers.caches.complete(layers.chat(terms=layers.terms(max_age_s=59.0)))
        assert await layers.asked() == 4
        layers.clock.now += 101
        await layers.caches.complete(layers.chat(terms=layers.terms(ttl_s=1_000.0)))
        assert await layers.asked() == 5
        layers.clock.now += 999
        await layers.caches.complete(layers.chat())
        assert await layers.asked() == 5
        layers.clock.now += 2
        await layers.caches.complete(layers.chat())
        assert await layers.asked() == 6


async def test_users_share_unless_the_policy_keeps_them_apart(layers):
    layers.policy = replace(layers.policy, per_user=True)
    for user in ("ana", "ben", "ana"):
        async with layers.as_user(user):
            await layers.caches.complete(layers.chat())
    assert await layers.asked() == 2


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fault", "body"),
    [
        ("content_filter", {}),
        ("cut_after=3", {}),
        ("status=500", {}),
        ("error_body", {}),
        ({"malformed_json": 2}, {}),
        (None, {"max_tokens": 3}),
    ],
    ids=str,
)
async def test_what_is_no_whole_answer_is_not_kept(layers, fault, body, streamed):
    if fault is not None:
        await layers.sim.order(fault, times=1)

    async def once():
        call = layers.chat(**body)
        try:
            if streamed:
                return (await layers.collected(layers.caches.stream(call)))[2].outcome
            return (await layers.caches.complete(call)).outcome
        except BulkheadError:
            return None

    async with layers.as_user():
        first, second = await once(), await once()
    if fault is None:
        # Cut off at the bound that the caller set itself: that is what was asked for.
        assert (first.finish_reason, second.cached) == ("length", "exact")
        return
    assert second.cached == ""
    assert second.finish_reason == "stop"


async def test_a_stream_that_its_reader_leaves_is_not_kept(layers):
    async with layers.as_user():
        stream = layers.caches.stream(layers.chat())
        assert isinstance(await anext(stream), list)
        await stream.aclose()
        assert len(layers.memory) == 0
        assert (await layers.caches.complete(layers.chat())).outcome.cached == ""


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_old_answer_when_every_provider_fails(layers, streamed):
    async def once(terms=PLAIN):
        if streamed:
            _, notices, end = await layers.collected(layers.caches.stream(layers.chat(terms=terms)))
            return end.outcome.cached, notices
        completed = await layers.caches.complete(layers.chat(terms=terms))
        return completed.outcome.cached, [notice.code for notice in completed.notices]

    async with layers.as_user():
        assert await once() == ("", [])
        layers.clock.now += 150
        await layers.sim.order("status=503")
        assert await once() == ("stale", ["stale_answer"])
        for terms in (layers.terms(read=False), layers.terms(write=False), layers.terms(max_age_s=1_000_000.0)):
            with pytest.raises(BulkheadError):
                await once(terms)
        layers.clock.now += 1_000
        with pytest.raises(BulkheadError):
            await once()


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_old_answer_is_taken_and_kept_for_those_who_ask_for_it_where_nothing_is_cached(layers, streamed):
    layers.policy = CachePolicy(enabled=False, ttl_s=100.0, stale_s=1_000.0)

    async def once(**fields):
        terms = layers.terms(**fields)
        if streamed:
            _, notices, end = await layers.collected(layers.caches.stream(layers.chat(terms=terms)))
            return end.outcome.cached, notices
        completed = await layers.caches.complete(layers.chat(terms=terms))
        return completed.outcome.cached, [notice.code for notice in completed.notices]

    async with layers.as_user():
        assert await once(stale_if_error_s=500.0) == ("", [])
        # While a provider answers, nothing comes from what is kept for its absence.
        assert await once(stale_if_error_s=500.0) == ("", [])
        assert await once() == ("", [])
        assert await layers.asked() == 3
        layers.clock.now += 400
        await layers.sim.order("status=503")
        assert await once(stale_if_error_s=500.0, read=False) == ("stale", ["stale_answer"])
        with pytest.raises(BulkheadError):
            await once()
        with pytest.raises(BulkheadError):
            await once(stale_if_error_s=300.0)


async def test_an_old_answer_is_none_against_the_callers_own_fault(layers):
    async with layers.as_user():
        await layers.caches.complete(layers.chat())
        layers.clock.now += 150
        await layers.sim.order("context_length", times=1)
        with pytest.raises(InvalidInput):
            await layers.caches.complete(layers.chat())
        layers.purse.broke.add("ana")
        with pytest.raises(BudgetExceeded):
            await layers.caches.complete(layers.chat())


async def test_the_answer_of_a_fallback_does_not_outlive_the_outage(layers):
    layers.groups["backup"] = layers.group("backup", "sim-2", 2)
    await layers.sim.order("status=503", times=1, model="sim-1")
    async with layers.as_user():
        first = await layers.caches.complete(layers.chat())
        assert first.outcome.deployment.group == "backup"
        second = await layers.caches.complete(layers.chat())
    assert (second.outcome.cached, second.outcome.deployment.group) == ("", "main")


async def test_a_changed_model_behind_the_name_is_another_model(layers):
    async with layers.as_user():
        await layers.caches.complete(layers.chat())
        layers.groups["main"] = layers.group("main", "sim-2", 0)
        assert (await layers.caches.complete(layers.chat())).outcome.cached == ""


async def test_embeddings_cost_once_a_text(layers):
    def embed(*texts, terms=PLAIN, **body):
        return layers.caches.embed(EmbedCall("vectors", {"input": list(texts), **body}, terms=terms))

    async with layers.as_user():
        first = await embed("one", "two")
        again = await embed("two", "one", encoding_format="base64")
        assert await layers.asked() == 1
        assert again.vectors.vectors == first.vectors.vectors[::-1]
        assert (again.outcome.cached, again.outcome.usage.input) == ("exact", 0)
        mixed = await embed("one", "three", "two")
        assert mixed.vectors.vectors[::2] == first.vectors.vectors
        assert mixed.outcome.cached == ""
        fresh = await layers.caches.embed(EmbedCall("vectors", {"input": "three"}, terms=layers.terms(read=False)))
        assert fresh.vectors.vectors[0] == mixed.vectors.vectors[1]
        assert 0 < mixed.outcome.usage.input <= fresh.outcome.usage.input
        assert await layers.asked() == 3
        layers.clock.now += 150
        await layers.sim.order("status=503")
        stale = await embed("one", "three")
        assert (stale.outcome.cached, [notice.code for notice in stale.notices]) == ("stale", ["stale_answer"])
        with pytest.raises(BulkheadError):
            await embed("one", "four")


async def test_what_a_user_left_can_be_erased(layers):
    async with layers.as_user("ana"):
        await layers.caches.complete(layers.chat("of ana"))
    async with layers.as_user("ben"):
        await layers.caches.complete(layers.chat("of ben"))
    assert await layers.caches.erase("globex", "ana") == 0
    assert await layers.caches.erase("acme", "ana") == 1
    async with layers.as_user("ben"):
        assert (await layers.caches.complete(layers.chat("of ana"))).outcome.cached == ""
        assert (await layers.caches.complete(layers.chat("of ben"))).outcome.cached == "exact"
