"""Whoever has a call ended that waits for an approval, whatever people decide and whoever is lost: it never runs without an approval, runs
at most once, and what was asked about it is answered once."""

import asyncio
from functools import partial

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import testing
from services.common.identity import Minter, Verifier, generate_keys
from services.orchestrator.approvals.deciding import Choice
from services.orchestrator.testing.approving import Approving, Losing, calling, on_the_clock_of
from services.orchestrator.testing.turn_world import World, agent
from services.orchestrator.turn.orders import COMMAND, CONTINUATIONS, SKIP, SUBSTITUTE

EXAMPLES = {"memory": 80, "valkey": 10, "cluster": 3}
CALLS = [("wipe", {"n": 1}), ("look", {"n": 2}), ("wipe", {"n": 3})]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("own"), st.integers(0, 6), st.booleans()),
        st.tuples(st.just("decide"), st.integers(0, 1), st.sampled_from([Choice("approve"), Choice("reject")])),
        st.tuples(st.just("end"), st.integers(0, 2), st.sampled_from(CONTINUATIONS)),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder, ["orchestrator"])
    return {"minter": Minter.from_file(folder / "orchestrator.pem", "orchestrator"), "verifier": Verifier.from_file(folder / "jwks.json")}


def made(calls, backend, keys, tools=("wipe", "look")):
    world = calling(calls, agent(tools=tools), backend=backend, **keys)
    # Of a call, and not of the run.
    world.cancel = partial(World.cancel, world)
    return world


async def end(world, which, continuation):
    order = {"call_id": f"s1c{which}", "continuation": continuation, "result": "41" if continuation == SUBSTITUTE else ""}
    await world.store.post(world.ref, COMMAND, orjson.dumps(order))


def test_a_call_that_is_ended_while_it_waits_never_runs_without_an_approval(site, keys):
    @settings(max_examples=EXAMPLES[site.name], deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(actions=ACTIONS)
    def example(actions):
        async def run():
            async with site.open() as backend:
                with on_the_clock_of(backend):
                    world = made(CALLS, backend, keys)
                    await world.begin()
                    for name, *values in actions:
                        if name == "own":
                            await world.own(values[0], after=values[1])
                        elif name == "decide":
                            await world.decide("ana", *values)
                        else:
                            await end(world, *values)
                    found = await world.judged(await world.finish())
                    # One that was approved and then ended does not run.
                    assert not [fault for fault in found if not fault.endswith("was approved and never ran")]

        asyncio.run(run())

    example()


@pytest.mark.parametrize("lost_at", range(7))
@pytest.mark.parametrize("after", [False, True])
def test_what_stands_in_for_a_call_does_so_whoever_is_lost(site, keys, lost_at, after):
    async def run():
        async with site.open() as backend:
            with on_the_clock_of(backend):
                world = made(CALLS[:2], backend, keys)
                await world.begin()
                await world.own()
                assert (await world.store.run(world.ref)).status == "waiting"
                await end(world, 0, SUBSTITUTE)
                await world.own(lost_at, after=after)
                assert await world.finish() == "succeeded"
                assert not await world.judged("succeeded")
                events = (await world.store.read(world.ref, 0, 10_000, False))[3]
                done = [orjson.loads(event.data) for event in events if event.type == "tool_call_completed"]
                assert [(data["call_id"], data["output"]) for data in done if "cancel" in data] == [("s1c0", 41)]
                assert not world.effects["r/1/0"]

    asyncio.run(run())


@pytest.mark.parametrize("which", [[2], [2, 3]])
def test_an_order_for_a_held_call_that_is_heard_while_others_are_written_down_waits_for_none_of_them(site, keys, monkeypatch, which):
    async def run():
        async with site.open() as backend:
            with on_the_clock_of(backend):
                world = made(
                    [("mail", {"n": 1}), ("look", {"n": 2}), ("wipe", {"n": 3}), ("wipe", {"n": 4})],
                    backend,
                    keys,
                    ("mail", "look", "wipe"),
                )
                # Its first owner goes away between two calls.
                world.leaving = lambda: bool(world.effects["r/1/0"])
                looks, seen = asyncio.Event(), asyncio.Event()

                async def execute(name, *rest):
                    if name == "look":
                        looks.set()
                        await seen.wait()
                    async for outcome in Approving.execute(world, name, *rest):
                        yield outcome

                async def write(losing, *args, **parts):
                    written = await writing(losing, *args, **parts)
                    if not heard and any(call.name == "look" and call.started for call in world.owned.turn.state.pending):
                        heard.extend(which)
                        for number in which:
                            await end(world, number, SKIP)
                        world.owned.turn.hear(await world.store.commands(world.ref, world.owned.turn.state.inbox))
                    return written

                async def ended():
                    events = (await world.store.read(world.ref, 0, 10_000, False))[3]
                    failed = [orjson.loads(event.data)["call_id"] for event in events if event.type == "tool_call_failed"]
                    return sorted(failed) == [f"s1c{number}" for number in which]

                heard, writing = [], Losing.write
                world.execute = execute
                monkeypatch.setattr(Losing, "write", write)
                await world.begin()
                await asyncio.wait_for(world.own(), 10)
                world.leaving = lambda: False
                owner = asyncio.create_task(world.own())
                try:
                    await asyncio.wait_for(looks.wait(), 10)
                    await testing.eventually_async(ended, "the held calls have ended while another is at work", 3)
                finally:
                    seen.set()
                    await owner
                    monkeypatch.undo()
                assert await world.finish() == "succeeded"
                assert not await world.judged("succeeded")

    asyncio.run(run())
