"""Single-flight around real completions, in front of a real simulator whose log says how often it was asked."""

import asyncio
from dataclasses import replace

import pytest

from services.common.errors import BudgetExceeded, BulkheadError, PermissionDenied
from services.common.testing import eventually_async
from services.llm_gateway.terms import PLAIN


async def test_identical_calls_in_flight_are_one(layers):
    await layers.sim.order("first_token_delay=300")
    async with layers.as_user("ana"):
        leader = asyncio.create_task(layers.flight.complete(layers.chat(temperature=1)))
        await asyncio.sleep(0)
    async with layers.as_user("ben"):
        followers = [asyncio.create_task(layers.flight.complete(layers.chat(temperature=1.0, metadata={"n": str(n)}))) for n in range(9)]
    first, *others = await asyncio.gather(leader, *followers)
    assert await layers.asked() == 1
    assert first.outcome.cached == ""
    assert first.outcome.usage.cost_picousd > 0
    assert {other.outcome.cached for other in others} == {"shared"}
    assert {other.outcome.usage.cost_picousd for other in others} == {0}
    assert {other.answer.raw for other in others} == {first.answer.raw}
    assert layers.charged == ["ana"]
    assert layers.flight.in_flight == 0


async def test_other_questions_users_of_other_tenants_and_other_terms_do_not_share(layers):
    await layers.sim.order("first_token_delay=200")
    chat, no_cache = layers.chat, layers.terms(read=False)
    calls = [chat(), chat(seed=1), chat(seed=2), chat(n=2), chat(user="u"), chat(max_tokens=50), chat("another"), chat(temperature=0)]
    calls += [chat(terms=replace(PLAIN, low_priority=True)), chat(terms=no_cache), chat(terms=no_cache), chat(store=True)]
    async with layers.as_user():
        tasks = [asyncio.create_task(layers.flight.complete(call)) for call in calls]
    async with layers.as_user(tenant="globex"):
        tasks.append(asyncio.create_task(layers.flight.complete(calls[0])))
    await asyncio.gather(*tasks)
    assert await layers.asked() == len(tasks)


async def test_sampling_calls_want_answers_of_their_own_where_no_cache_is_on(layers):
    await layers.sim.order("first_token_delay=200")
    sampled, exact = layers.chat(temperature=0.7), layers.chat(temperature=0)
    asks = layers.chat(temperature=0.7, terms=layers.terms(ttl_s=5.0))
    async with layers.as_user():
        await asyncio.gather(*(layers.choosy.complete(call) for call in [sampled, sampled, exact, exact, asks, asks]))
    assert await layers.asked() == 4


async def test_a_stream_is_fanned_out_and_late_joiners_get_its_beginning(layers):
    await layers.sim.order({"tokens_per_s": 100, "first_token_delay": 50})
    began = asyncio.Event()

    async def first():
        raws = []
        async for event in layers.flight.stream(layers.chat()):
            if isinstance(event, list):
                raws += [chunk.raw for chunk in event]
                if len(raws) > 4:
                    began.set()
            else:
                end = event
        return raws, [], end

    async with layers.as_user():
        leader = asyncio.create_task(first())
        await began.wait()
        followers = [asyncio.create_task(layers.collected(layers.flight.stream(layers.chat()))) for _ in range(5)]
    (raws, _, end), *others = await asyncio.gather(leader, *followers)
    assert await layers.asked() == 1
    assert all(other[0] == raws for other in others)
    assert end.outcome.cached == ""
    assert {other[2].outcome.cached for other in others} == {"shared"}
    assert {other[2].text for other in others} == {end.text}
    assert len(layers.charged) == 1


async def test_the_leader_may_leave_and_the_last_one_ends_the_work(layers):
    await layers.sim.order({"tokens_per_s": 50})
    async with layers.as_user():
        leader, follower = layers.flight.stream(layers.chat()), layers.flight.stream(layers.chat())
        assert isinstance(await anext(leader), list)
        assert isinstance(await anext(follower), list)
        await leader.aclose()
        assert isinstance(await anext(follower), list)
        assert await layers.sim.in_flight() == 1
        await follower.aclose()
    await eventually_async(lambda: not layers.purse.open, "the attempt is settled")
    (line,) = await layers.sim.logged(1)
    assert line["aborted"]
    assert layers.flight.in_flight == 0


async def test_an_error_reaches_everybody_and_is_not_kept(layers):
    await layers.sim.order({"status": 500, "first_token_delay": 200}, times=1)
    async with layers.as_user():
        results = await asyncio.gather(*(layers.flight.complete(layers.chat()) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(result, BulkheadError) for result in results)
        assert len({id(result) for result in results}) == 4
        assert await layers.asked() == 1
        assert (await layers.flight.complete(layers.chat())).outcome.finish_reason == "stop"


async def test_the_leaders_empty_purse_is_not_the_followers(layers):
    layers.purse.broke.add("ana")
    async with layers.as_user("ana"):
        leader = asyncio.create_task(layers.flight.complete(layers.chat()))
        streamed = asyncio.create_task(layers.collected(layers.flight.stream(layers.chat())))
        await asyncio.sleep(0.01)
    async with layers.as_user("ben"):
        follower = asyncio.create_task(layers.flight.complete(layers.chat()))
        follows = asyncio.create_task(layers.collected(layers.flight.stream(layers.chat())))
    with pytest.raises(BudgetExceeded):
        await leader
    with pytest.raises(BudgetExceeded):
        await streamed
    assert (await follower).outcome.cached == ""
    assert (await follows)[2].outcome.cached == ""
    assert layers.charged == ["ben", "ben"]


async def test_a_follower_outlives_the_leaders_deadline(layers):
    await layers.sim.order("first_token_delay=700", times=1)
    async with layers.as_user(timeout_s=0.3):
        leader = asyncio.create_task(layers.flight.complete(layers.chat()))
        await asyncio.sleep(0)
    async with layers.as_user(timeout_s=0.55):
        follower = asyncio.create_task(layers.flight.complete(layers.chat()))
    async with layers.as_user(timeout_s=30):
        patient = asyncio.create_task(layers.flight.complete(layers.chat()))
    # It would have had to wait for the leader's end, and began its own at once.
    assert (await patient).outcome.cached == ""
    assert not leader.done()
    with pytest.raises(BulkheadError):
        await leader
    assert (await follower).outcome.finish_reason == "stop"


async def test_a_caller_who_may_not_use_the_model_gets_no_answer_of_others(layers):
    await layers.sim.order("first_token_delay=200")
    layers.refused.add("eve")
    async with layers.as_user("ana"):
        leader = asyncio.create_task(layers.caches.complete(layers.chat()))
        await asyncio.sleep(0.05)
    async with layers.as_user("eve"):
        with pytest.raises(PermissionDenied):
            await layers.caches.complete(layers.chat())
        await leader
        with pytest.raises(PermissionDenied):
            await layers.caches.complete(layers.chat())


async def test_users_whom_the_policy_keeps_apart_do_not_share(layers):
    await layers.sim.order("first_token_delay=200")
    layers.policy = replace(layers.policy, per_user=True)
    tasks = []
    for user in ("ana", "ben", "ana"):
        async with layers.as_user(user):
            tasks.append(asyncio.create_task(layers.flight.complete(layers.chat())))
    await asyncio.gather(*tasks)
    assert await layers.asked() == 2
