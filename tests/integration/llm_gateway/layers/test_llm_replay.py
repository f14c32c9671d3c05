"""Idempotency-Key over a real state store: the provider's log says how often it was asked, the purse who paid."""

import asyncio
from contextlib import suppress
from functools import partial

import pytest
import pytest_asyncio

from services.common.errors import BulkheadError, Conflict, Gone, IdempotencyMismatch, Overloaded
from services.common.idempotency import IdempotencyStore
from services.common.testing import eventually_async, free_port
from services.common.valkey import connect
from services.llm_gateway.late import Late, Waiting
from services.llm_gateway.replay import Replay
from services.llm_gateway.results import EmbedCall


@pytest_asyncio.fixture
async def replay(layers, valkey):
    return Replay(layers.completions, IdempotencyStore(valkey), wait_s=5.0)


def keyed(layers, text="Tell me about ships.", key="k-1", **body):
    return layers.chat(text, terms=layers.terms(key), **body)


async def test_the_same_key_gives_the_same_answer_and_costs_once(layers, replay):
    async with layers.as_user():
        first = await replay.complete(keyed(layers))
        again = await replay.complete(keyed(layers))
        _, _, end = await layers.collected(replay.stream(keyed(layers)))
    assert await layers.asked() == 1
    assert len(layers.charged) == 1
    assert (first.outcome.cached, again.outcome.cached, end.outcome.cached) == ("", "replayed", "replayed")
    assert again.answer.raw == first.answer.raw
    assert again.outcome.usage.cost_picousd == 0
    assert end.text == first.answer.data["choices"][0]["message"]["content"]


async def test_a_stream_is_replayed_as_the_same_chunks(layers, replay):
    async with layers.as_user():
        first, _, end = await layers.collected(replay.stream(keyed(layers)))
        again, _, second = await layers.collected(replay.stream(keyed(layers)))
        whole = await replay.complete(keyed(layers))
    assert again == first
    assert (end.outcome.cached, second.outcome.cached, whole.outcome.cached) == ("", "replayed", "replayed")
    assert whole.answer.data["choices"][0]["message"]["content"] == end.text == second.text
    assert await layers.asked() == 1


async def test_where_memory_is_full_a_run_is_answered_once_all_the_same_and_nobody_else_is(layers, replay, valkey):
    await IdempotencyStore(valkey)._lasting.library.load()
    await valkey.config_set("maxmemory", "1mb")
    try:
        async with layers.as_user(run_id="r-1"):
            first = await replay.complete(keyed(layers, key="r-1/1"))
            again = await replay.complete(keyed(layers, key="r-1/1"))
        async with layers.as_user():
            with pytest.raises(Overloaded):
                await replay.complete(keyed(layers))
    finally:
        await valkey.config_set("maxmemory", "0")
    assert (first.outcome.cached, again.outcome.cached) == ("", "replayed")
    assert again.answer.raw == first.answer.raw
    assert await layers.asked() == 1


async def test_an_answer_to_a_run_is_kept_for_its_next_owner_and_that_of_anybody_else_for_a_day(layers, valkey):
    replay = Replay(layers.completions, IdempotencyStore(valkey), run_kept_s=60.0)
    hour_ms = 3_600_000
    async with layers.as_user():
        await replay.complete(keyed(layers))
    (of_user,) = await valkey.keys("idem:*:llm.chat:*")
    async with layers.as_user(run_id="r-1"):
        assert (await replay.complete(keyed(layers, key="r-1/1"))).outcome.cached == ""
        assert (await replay.complete(keyed(layers, key="r-1/1"))).outcome.cached == "replayed"
    (of_run,) = {*await valkey.keys("idem:*:llm.chat:*")} - {of_user}
    (owned,) = await valkey.keys("idem:*:of:*")
    assert 0 < await valkey.pttl(of_run) <= 60_000 < 23 * hour_ms < await valkey.pttl(of_user)
    # What an erasure finds both by is there for as long as the longer one.
    assert await valkey.pttl(owned) > 23 * hour_ms
    assert await replay.erase("acme", "ana") == 2


async def test_without_a_key_or_with_another_one_a_call_is_a_call(layers, replay):
    async with layers.as_user():
        for call in (layers.chat(), layers.chat(), keyed(layers, key="a"), keyed(layers, key="b")):
            assert (await replay.complete(call)).outcome.cached == ""
    async with layers.as_user(tenant="globex"):
        assert (await replay.complete(keyed(layers, key="a"))).outcome.cached == ""
    assert await layers.asked() == 5


@pytest.mark.parametrize("streamed", [False, True])
async def test_another_request_under_the_key_is_refused(layers, replay, streamed):
    await layers.sim.order("first_token_delay=200")

    async def once(call):
        return await (layers.collected(replay.stream(call)) if streamed else replay.complete(call))

    async with layers.as_user():
        at_work = asyncio.create_task(once(keyed(layers)))
        await asyncio.sleep(0.02)
        for other in (keyed(layers, "else"), keyed(layers, metadata={"a": "b"}), keyed(layers, temperature=0.5), keyed(layers, model="x")):
            with pytest.raises(IdempotencyMismatch):
                await once(other)
        await at_work
        with pytest.raises(IdempotencyMismatch):
            await once(keyed(layers, "else"))
    assert await layers.asked() == 1


async def test_a_second_call_joins_the_first_in_this_process(layers, replay):
    await layers.sim.order({"tokens_per_s": 100, "first_token_delay": 100})
    async with layers.as_user():
        streams = [asyncio.create_task(layers.collected(replay.stream(keyed(layers)))) for _ in range(4)]
        await layers_busy(layers)
        # In the other form: it waits for the first to end.
        whole = asyncio.create_task(replay.complete(keyed(layers)))
        results = await asyncio.gather(*streams)
        assert (await whole).outcome.cached == "replayed"
    assert await layers.asked() == 1
    assert sorted(end.outcome.cached for _, _, end in results) == ["", "replayed", "replayed", "replayed"]
    assert all(raws == results[0][0] for raws, _, _ in results)
    assert len(layers.charged) == 1


async def test_a_call_waits_for_another_process_or_is_told_to_come_back(layers, replay, valkey):
    await layers.sim.order("first_token_delay=400")
    elsewhere = Replay(layers.completions, IdempotencyStore(valkey), wait_s=5.0)
    hasty = Replay(layers.completions, IdempotencyStore(valkey), wait_s=0.1)
    async with layers.as_user():
        first = asyncio.create_task(replay.complete(keyed(layers)))
        await asyncio.sleep(0.1)
        with pytest.raises(Conflict) as caught:
            await hasty.complete(keyed(layers))
        assert caught.value.reason == "IDEMPOTENCY_IN_FLIGHT"
        assert caught.value.retry_after_s > 0
        assert (await elsewhere.complete(keyed(layers))).outcome.cached == "replayed"
        assert (await first).outcome.cached == ""
    assert await layers.asked() == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failed_call_frees_its_key(layers, replay, streamed):
    await layers.sim.order("cut_after=3" if streamed else "status=500", times=1)

    async def once():
        if streamed:
            return (await layers.collected(replay.stream(keyed(layers))))[2].outcome
        return (await replay.complete(keyed(layers))).outcome

    async with layers.as_user():
        with pytest.raises(BulkheadError):
            await once()
        assert (await once()).cached == ""
        assert (await once()).cached == "replayed"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_caller_that_hangs_up_finds_the_answer_later(layers, replay, streamed):
    await layers.sim.order({"first_token_delay": 100, "tokens_per_s": 200})
    async with layers.as_user():
        if streamed:
            stream = replay.stream(keyed(layers))
            assert isinstance(await anext(stream), list)
            await stream.aclose()
        else:
            hasty = asyncio.create_task(replay.complete(keyed(layers)))
            await asyncio.sleep(0.05)
            hasty.cancel()
            with suppress(asyncio.CancelledError):
                await hasty
        again = await replay.complete(keyed(layers))
    assert again.outcome.cached == "replayed"
    assert again.outcome.finish_reason == "stop"
    assert await layers.asked() == 1


async def test_the_key_of_a_process_that_died_is_free_after_its_lease(layers, valkey):
    store = IdempotencyStore(valkey)
    survivor = Replay(layers.completions, store, wait_s=5.0)
    dying = Replay(layers.completions, store, lease_s=0.5)
    await layers.sim.order("first_token_delay=3000", times=1)
    async with layers.as_user():
        task = asyncio.create_task(dying.complete(keyed(layers)))
        await layers_busy(layers)
        # What a killed process leaves behind: a claim that nobody renews or gives back.
        (_, flight) = next(iter(dying._answers.values()))
        store_abandon = store.abandon
        store.abandon = forgotten
        flight._task.cancel()
        with pytest.raises(BulkheadError):
            await task
        store.abandon = store_abandon
        assert (await survivor.complete(keyed(layers))).outcome.cached == ""


async def forgotten(claim):
    """Does what a dead process does."""


async def layers_busy(layers):
    await eventually_async(layers.sim.in_flight, "the provider is asked")


async def test_the_lease_is_renewed_while_the_work_lasts(layers, valkey):
    await layers.sim.order("first_token_delay=900", times=1)
    slow = Replay(layers.completions, IdempotencyStore(valkey), lease_s=0.3)
    other = Replay(layers.completions, IdempotencyStore(valkey), lease_s=0.3, wait_s=5.0)
    async with layers.as_user():
        first = asyncio.create_task(slow.complete(keyed(layers)))
        await layers_busy(layers)
        assert (await other.complete(keyed(layers))).outcome.cached == "replayed"
        await first
    assert await layers.asked() == 1


async def test_an_answer_that_is_too_large_is_never_charged_twice(layers, valkey):
    small = Replay(layers.completions, IdempotencyStore(valkey), max_bytes=100)
    async with layers.as_user():
        await small.complete(keyed(layers))
        with pytest.raises(Gone) as caught:
            await small.complete(keyed(layers))
    assert caught.value.reason == "ANSWER_NOT_KEPT"
    assert await layers.asked() == 1


async def test_a_long_stream_is_kept_put_together(layers, valkey):
    tight = Replay(layers.completions, IdempotencyStore(valkey), max_bytes=3_000)
    async with layers.as_user():
        raws, _, end = await layers.collected(tight.stream(keyed(layers)))
        assert sum(map(len, raws)) > 3_000
        _, _, again = await layers.collected(tight.stream(keyed(layers)))
    assert (again.text, again.outcome.cached) == (end.text, "replayed")


async def test_embeddings_are_replayed(layers, replay):
    call = EmbedCall("vectors", {"input": ["one", "two"]}, terms=layers.terms("k"))
    async with layers.as_user():
        first, again = await replay.embed(call), await replay.embed(call)
    assert again.vectors.vectors == first.vectors.vectors
    assert again.outcome.cached == "replayed"
    assert await layers.asked() == 1


async def test_without_the_store_nothing_is_charged(layers):
    client = connect(f"redis://127.0.0.1:{free_port()}/0", timeout_s=0.5)
    replay = Replay(layers.completions, IdempotencyStore(client))
    async with layers.as_user():
        with pytest.raises(Overloaded):
            await replay.complete(keyed(layers))
        with pytest.raises(Overloaded):
            await layers.collected(replay.stream(keyed(layers)))
    assert await layers.asked() == 0
    await client.aclose()


async def test_an_answer_that_the_store_could_not_take_is_kept_when_it_is_back(layers, replay, valkey):
    await layers.sim.order("first_token_delay=300", times=2)
    async with layers.as_user():
        calls = [asyncio.create_task(replay.complete(keyed(layers, key="a")))]
        calls.append(asyncio.create_task(layers.collected(replay.stream(keyed(layers, key="b")))))
        await eventually_async(lambda: both_asked(layers), "both are claimed and asked")
        await valkey.config_set("min-replicas-to-write", 1)
        try:
            await asyncio.gather(*calls)
        finally:
            await valkey.config_set("min-replicas-to-write", 0)
        again = [await replay.complete(keyed(layers, key=key)) for key in ("a", "b")]
    assert [found.outcome.cached for found in again] == ["replayed", "replayed"]
    assert await layers.asked() == 2


async def test_an_answer_that_waits_for_the_store_is_given_to_whoever_asks_again(layers, valkey, monkeypatch):
    # It is not tried again within the test, and nobody holds its key.
    monkeypatch.setattr("services.llm_gateway.late._FIRST_PAUSE_S", 600.0)
    replay = Replay(layers.completions, IdempotencyStore(valkey), wait_s=5.0)
    await layers.sim.order("first_token_delay=300", times=1)
    async with layers.as_user():
        call = asyncio.create_task(replay.complete(keyed(layers)))
        await layers_busy(layers)
        await valkey.config_set("min-replicas-to-write", 1)
        try:
            first = await call
            away = await replay.complete(keyed(layers))
        finally:
            await valkey.config_set("min-replicas-to-write", 0)
        # The store is back, and its lease has run out there.
        await valkey.flushall()
        back = await replay.complete(keyed(layers))
        _, _, streamed = await layers.collected(replay.stream(keyed(layers)))
        with pytest.raises(IdempotencyMismatch):
            await replay.complete(keyed(layers, "Tell me about boats."))
    assert {away.answer.raw, back.answer.raw} == {first.answer.raw}
    assert [found.outcome.cached for found in (away, back, streamed)] == ["replayed"] * 3
    assert await layers.asked() == 1
    await replay.stop(0.0)


async def both_asked(layers):
    return await layers.sim.in_flight() == 2


async def test_what_is_kept_late_is_bounded():
    working, told, tried = set(), [], []

    async def refused():
        tried.append(1)
        raise Overloaded("away", reason="STORE_UNAVAILABLE")

    late = Late(working, within_s=0.3, most_bytes=10)
    late.put("a", Waiting("p", b"0123456789", refused, told.append))
    late.put("b", Waiting("p", b"0", refused, told.append))
    assert told == [False]
    assert (late.found("a", "p"), late.found("b", "p")) == (b"0123456789", None)
    await asyncio.gather(*working)
    assert told == [False, False]
    assert tried
    assert late.found("a", "p") is None
    late.put("c", Waiting("p", b"0123456789", lambda: asyncio.sleep(0, True), told.append))
    await asyncio.gather(*working)
    assert told == [False, False, True]


async def test_a_store_that_is_away_is_sent_one_record_at_a_time():
    working, told, tried = set(), [], []

    async def store(name):
        tried.append(name)
        await asyncio.sleep(0)
        if len(tried) == 5:
            raise ValueError("a defect ends one record, and none of the others")
        if len(tried) < 5:
            raise Overloaded("away", reason="STORE_UNAVAILABLE")
        return True

    late = Late(working)
    for number in range(40):
        late.put(number, Waiting("p", b"x", partial(store, number), told.append))
    (task,) = working
    await task
    # Four refusals with a pause behind each, and not of the same one; then the others.
    assert tried[:5] == [0, 1, 2, 3, 4]
    assert sorted(tried[5:]) == sorted({*range(40)} - {4})
    assert (told.count(True), told.count(False)) == (39, 1)


async def test_what_a_user_left_can_be_erased(layers, replay, valkey):
    async with layers.as_user("ana"):
        await replay.complete(keyed(layers, key="a"))
        await layers.collected(replay.stream(keyed(layers, key="b")))
    async with layers.as_user("ben"):
        await replay.complete(keyed(layers, key="c"))
    assert await replay.erase("globex", "ana") == 0
    assert await replay.erase("acme", "ana") == 2
    assert await replay.erase("acme", "ana") == 0
    async with layers.as_user("ana"):
        assert (await replay.complete(keyed(layers, key="a"))).outcome.cached == ""
    async with layers.as_user("ben"):
        assert (await replay.complete(keyed(layers, key="c"))).outcome.cached == "replayed"


async def test_a_stop_ends_what_goes_on_without_its_caller_and_frees_the_key(layers, valkey):
    replay = Replay(layers.completions, IdempotencyStore(valkey))
    await layers.sim.order("first_token_delay=3000", times=1)
    async with layers.as_user():
        gone = asyncio.create_task(replay.complete(keyed(layers)))
        await layers_busy(layers)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        await replay.stop(grace_s=0.01)
        assert (await replay.complete(keyed(layers))).outcome.cached == ""


async def test_all_layers_together(layers, valkey):
    whole = Replay(layers.caches, IdempotencyStore(valkey))
    await layers.sim.order("first_token_delay=200", times=1)
    async with layers.as_user():
        calls = [whole.complete(keyed(layers, key=key)) for key in ("a", "a", "b")] + [whole.complete(keyed(layers, key=""))]
        found = await asyncio.gather(*calls)
        later = [await whole.complete(keyed(layers, key=key)) for key in ("a", "b", "c", "")]
        with pytest.raises(IdempotencyMismatch):
            await whole.complete(keyed(layers, "else", key="c"))
    # One key twice, three callers in flight: one request, paid by one of them.
    assert sorted(one.outcome.cached for one in found) == ["", "replayed", "shared", "shared"]
    assert [one.outcome.cached for one in later] == ["replayed", "replayed", "exact", "exact"]
    assert len({one.answer.raw for one in [*found, *later]}) == 1
    assert await layers.asked() == 1
    assert len(layers.charged) == 1
