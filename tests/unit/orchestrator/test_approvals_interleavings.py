"""Whatever people decide, in whatever order, and whoever is lost: an approved call runs once, with what was approved, and no other runs."""

import asyncio
from dataclasses import replace

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.common.identity import Minter, Verifier, generate_keys
from services.orchestrator.approvals.deciding import Choice
from services.orchestrator.ports import TextDelta
from services.orchestrator.testing.approving import calling, on_the_clock_of
from services.orchestrator.testing.memory_store_runs import ThreadSteps
from services.orchestrator.testing.stores import Site
from services.orchestrator.testing.turn_world import agent

EXAMPLES = {"memory": 60, "valkey": 10, "cluster": 3}
TOOLS = ("wipe", "fetch", "mail", "look")
CALLS = st.lists(st.tuples(st.sampled_from(TOOLS), st.fixed_dictionaries({"n": st.integers(0, 3)})), min_size=1, max_size=3)
CHOICES = st.sampled_from([
    Choice("approve"), Choice("approve", key="k"), Choice("edit", b'{"n": 9}'), Choice("reject", reason="no"),
    Choice("delegate", to="user:bo"), Choice("done", b'{"m": 1}'), Choice("failed"), Choice("retry"), Choice("cancel_run"),
])  # fmt: skip
OWN = st.tuples(st.just("own"), st.integers(0, 6), st.booleans())
DECIDE = st.tuples(st.just("decide"), st.sampled_from(["ana", "ana", "bo", "eve"]), st.integers(0, 3), CHOICES)
PASS = st.tuples(st.just("pass"), st.sampled_from([1.0, 50_000.0]))
RACE = st.tuples(st.just("race"), DECIDE, DECIDE)
ACTIONS = st.lists(st.one_of(OWN, DECIDE, DECIDE, RACE, PASS, st.just(("cancel",))), max_size=14)
AGENT = agent(tools=TOOLS)
FOUR = agent(tools=TOOLS, approval={"four_eyes": True, "approvers": {"users": ["ana", "bo", "eve"]}})


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder, ["orchestrator"])
    return {"minter": Minter.from_file(folder / "orchestrator.pem", "orchestrator"), "verifier": Verifier.from_file(folder / "jwks.json")}


async def decide(world, user, which, choice):
    raised = await world.interrupts()
    if not raised:
        return
    kind = raised[which % len(raised)].kind
    fits = choice.verb == "delegate" or (choice.verb in ("approve", "edit", "reject")) == (kind == "tool_call")
    if fits and choice.to != f"user:{user}":
        await world.decide(user, which, choice)


async def play(world, actions):
    for name, *values in actions:
        match name:
            case "own":
                await world.own(values[0], after=values[1])
            case "decide":
                await decide(world, *values)
            case "race":
                await asyncio.gather(*(decide(world, *values_of[1:]) for values_of in values))
            case "pass":
                await world.backend.advance(values[0])
            case "cancel":
                await world.cancel_run()


@pytest.mark.parametrize("definition", [AGENT, FOUR], ids=["one", "four_eyes"])
def test_each_approved_call_runs_once_with_what_was_approved_and_none_without_or_after_a_cancel(site, keys, definition):
    holds(site, keys, definition, max_examples=EXAMPLES[site.name])


class Deaf(ThreadSteps):
    """Does not tell who takes a run over that it is to end."""

    def claim(self, *args):
        lost, claim = self.found.status == "running", super().claim(*args)
        return replace(claim, record=replace(claim.record, cancel_requested=False)) if lost and claim.record is not None else claim


def test_a_call_that_is_started_after_an_acknowledged_cancel_is_found(keys):
    with pytest.raises(AssertionError, match=r"A8: r/1/. was started after an acknowledged cancel"):
        # One call, lost owners and cancels, so that it is found soon.
        calls = st.just([("mail", {"n": 1})])
        lost = st.tuples(st.just("own"), st.integers(1, 2), st.booleans())
        actions = st.lists(st.one_of(lost, st.just(("cancel",))), min_size=2, max_size=4)
        holds(Site("memory", steps=Deaf), keys, AGENT, actions, calls, max_examples=1000, derandomize=True, phases=[Phase.generate])


def holds(site, keys, definition, actions=ACTIONS, calls=CALLS, **how):
    """Judges many histories; `how` as of hypothesis."""

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False, **how)
    @given(calls=calls, actions=actions, unknown=st.sets(st.integers(0, 2)))
    def example(calls, actions, unknown):
        async def run():
            async with site.open() as backend:
                with on_the_clock_of(backend):
                    unknowable = {f"r/1/{n}" for n in unknown if n < len(calls) and calls[n][0] in ("wipe", "mail")}
                    world = calling(calls, definition, backend=backend, unknown=unknowable, **keys)
                    await world.begin()
                    await play(world, actions)
                    status = await world.finish()
                    assert not await world.judged(status)

        asyncio.run(run())

    example()


def history(site, keys, calls, scenario, definition=AGENT, **fields):
    """Runs one scenario on an empty store."""

    async def run():
        async with site.open() as backend:
            with on_the_clock_of(backend):
                world = calling(calls, definition, backend=backend, **fields, **keys)
                await world.begin()
                await scenario(world)
                status = await world.finish()
                assert not await world.judged(status)
                return world, status

    return asyncio.run(run())


def test_an_owner_that_is_lost_around_a_question_leaves_one_question(site, keys):
    for lost_at in range(1, 7):
        for after in (False, True):

            async def scenario(world, lost_at=lost_at, after=after):
                await world.own(lost_at, after=after)
                await world.own()
                await world.own()
                assert [interrupt.interrupt_id for interrupt in await world.interrupts()] == ["r/1/0", "r/1/1"]
                assert await world.decide("ana", 1, Choice("approve")) == "done"
                await world.own(lost_at, after=after)
                assert not world.effects["r/1/1"]
                assert await world.decide("ana", 0, Choice("edit", b'{"n": 9}')) == "done"
                await world.own(lost_at, after=after)

            world, status = history(site, keys, [("wipe", {"n": 1}), ("fetch", {"n": 2})], scenario)
            assert (status, dict(world.effects)) == ("succeeded", {"r/1/0": [b'{"n":9}'], "r/1/1": [b'{"n":2}']})


def test_the_answer_of_a_lost_owners_question_is_not_asked_for_again(site, keys):
    """Decided after the question was durable and before the checkpoint that says so."""

    async def scenario(world):
        # The first write is the model's answer, the second the question; behind it the owner is lost.
        await world.own(2, after=True)
        (interrupt,) = await world.interrupts()
        assert interrupt.open
        assert await world.decide("ana", 0, Choice("approve")) == "done"

    world, status = history(site, keys, [("wipe", {"n": 1})], scenario)
    assert (status, dict(world.effects)) == ("succeeded", {"r/1/0": [b'{"n":1}']})


def test_with_four_eyes_the_user_of_the_run_has_no_call_made_again(site, keys):
    async def scenario(world):
        await world.own()
        for user in ("bo", "eve"):
            assert await world.decide(user, 0, Choice("approve")) == "done"
        await world.own()
        approved, asked = await world.interrupts()
        assert (approved.outcome, asked.kind, asked.outcome) == ("approved", "outcome_unknown", "open")
        assert await world.decide("ana", 1, Choice("retry")) == "NOT_AN_APPROVER"
        assert len(world.effects["r/1/0"]) == 1
        assert await world.decide("bo", 1, Choice("retry")) == "done"

    world, status = history(site, keys, [("wipe", {"n": 1})], scenario, FOUR, unknown={"r/1/0"})
    assert (status, len(world.effects["r/1/0"])) == ("succeeded", 2)


def test_an_edit_that_comes_between_looking_and_writing_is_not_decided_over(site, keys):
    async def scenario(world):
        await world.own()
        (asked,) = await world.interrupts()
        check = world.check

        async def overtaken(*args):
            world.check = check
            assert await world.decide("eve", 0, Choice("edit", b'{"n": 3}')) == "done"
            return await check(*args)

        world.check = overtaken
        assert await world.decide("bo", 0, Choice("edit", b'{"n": 9}', saw=asked.digest)) == "ARGUMENTS_CHANGED"
        (after,) = await world.interrupts()
        assert (after.arguments, [(d.user, d.verb) for d in after.decisions]) == ('{"n":3}', [("eve", "edit")])
        assert await world.decide("bo", 0, Choice("approve")) == "ARGUMENTS_DIGEST_REQUIRED"
        assert await world.decide("bo", 0, Choice("approve", saw=after.digest)) == "done"
        await world.own()

    world, status = history(site, keys, [("wipe", {"n": 1})], scenario, FOUR)
    assert (status, dict(world.effects)) == ("succeeded", {"r/1/0": [b'{"n":3}']})


def test_a_decision_that_its_owner_has_not_heard_of_at_the_runs_end_is_told_once(site, keys):
    """Another call is at work while somebody decides, and the run is cancelled right behind it."""

    async def scenario(world):
        execute = world.execute

        async def cut_off(name, *args):
            if name == "look":
                assert await world.decide("ana", 0, Choice("approve")) == "done"
                await world.cancel_run()
                world.owned.interrupt("cancel")
                await asyncio.Event().wait()
            async for item in execute(name, *args):
                yield item

        world.execute = cut_off
        await world.own()

    _, status = history(site, keys, [("look", {"n": 1}), ("wipe", {"n": 2})], scenario)
    assert status == "cancelled"


def test_a_retry_is_made_once_however_often_its_owner_is_lost(site, keys):
    async def scenario(world):
        await world.own()
        (interrupt,) = await world.interrupts()
        assert interrupt.interrupt_id == "r/1/0/unknown/1"
        assert await world.decide("ana", 0, Choice("retry")) == "done"
        for lost_at in (1, 2, 3):
            await world.own(lost_at)

    world, status = history(site, keys, [("mail", {"n": 1})], scenario, unknown={"r/1/0"})
    assert (status, len(world.effects["r/1/0"])) == ("succeeded", 2)
    assert orjson.loads(world.effects["r/1/0"][1]) == {"n": 1}


def test_a_decision_sent_again_under_its_key_is_one_decision(site, keys):
    async def scenario(world):
        await world.own()
        for _ in range(2):
            assert await world.decide("ana", 0, Choice("approve", key="k")) == "done"
        await world.own()
        assert await world.decide("ana", 0, Choice("approve", key="k")) == "done"

    world, status = history(site, keys, [("wipe", {"n": 1})], scenario)
    assert (status, len(world.effects["r/1/0"])) == ("succeeded", 1)


def test_a_defect_in_ending_the_calls_of_a_cancelled_run_is_told(keys):
    async def broken(key, *, for_good):
        raise TypeError("a defect")

    async def scenario(world):
        world.cancel = broken
        await world.own(2)
        await world.cancel_run()

    with pytest.raises(AssertionError, match="tool_call_not_ended"):
        history(Site("memory"), keys, [("mail", {"n": 1})], scenario)


def test_a_cancelled_run_ends_cancelled_however_often_its_owner_was_lost(site, keys):
    """The question that is open is closed, and the call at work is told of, as with an owner that lives."""

    async def scenario(world):
        world.budget = 3
        await world.own(2, after=True)
        for _ in range(2):
            await world.own(1)
        await world.cancel_run()
        await world.own(1)

    _, status = history(site, keys, [("mail", {"n": 1}), ("wipe", {"n": 2})], scenario)
    assert status == "cancelled"


def test_text_that_the_last_of_too_many_owners_showed_is_kept_with_a_cancelled_run(site, keys):
    async def half(call):
        yield TextDelta("half")
        await asyncio.Event().wait()

    async def scenario(world):
        world.budget, world.stream = 3, half
        for _ in range(3):
            # Behind its first write, which shows the text.
            await world.own(1, after=True)
        await world.cancel_run()
        await world.own()
        record = await world.store.run(world.ref)
        assert (record.status, record.result["output_text"]) == ("cancelled", "half")

    history(site, keys, [], scenario)
