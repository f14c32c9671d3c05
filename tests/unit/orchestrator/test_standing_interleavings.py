"""Owners stand still between any two of their calls, others take over, and those that stood still go on: each call runs at most once, as it
was announced, and none is begun after a cancel that was acknowledged."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.common.identity import Minter, Verifier, generate_keys
from services.orchestrator.approvals.deciding import Choice
from services.orchestrator.ports import ToolOutcome
from services.orchestrator.testing.approving import on_the_clock_of
from services.orchestrator.testing.memory_store_runs import ThreadSteps
from services.orchestrator.testing.standing import ENDLESS, Standing
from services.orchestrator.testing.stores import Site
from services.orchestrator.testing.turn_world import agent

EXAMPLES = {"memory": 200, "valkey": 15, "cluster": 5}
TOOLS = ("wipe", "fetch", "mail", "look")
CALLS = st.lists(st.tuples(st.sampled_from(TOOLS), st.fixed_dictionaries({"n": st.integers(0, 3)})), min_size=1, max_size=2)
# An owner that is not disturbed takes about 17 for one call.
STEPS = st.sampled_from([*range(25), ENDLESS, ENDLESS])
OWN = st.tuples(st.just("own"), STEPS)
WAKE = st.tuples(st.just("wake"), st.integers(0, 2), STEPS)
CHOICES = st.sampled_from([Choice("approve"), Choice("approve"), Choice("edit", b'{"n": 9}'), Choice("reject", reason="no")])
DECIDE = st.tuples(st.just("decide"), st.integers(0, 1), CHOICES)
ACTIONS = st.lists(st.one_of(OWN, OWN, WAKE, WAKE, DECIDE, st.just(("cancel",))), max_size=14)
AGENT = agent(tools=TOOLS)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder, ["orchestrator"])
    return {"minter": Minter.from_file(folder / "orchestrator.pem", "orchestrator"), "verifier": Verifier.from_file(folder / "jwks.json")}


async def play(world, actions):
    for name, *values in actions:
        match name:
            case "own":
                await world.own_beside(*values)
            case "wake":
                await world.wake(*values)
            case "decide":
                await world.decide("ana", *values)
            case "cancel":
                await world.cancel_run()


def holds(site, keys, calls=CALLS, actions=ACTIONS, made=Standing, **how):
    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False, **how)
    @given(calls=calls, actions=actions, late=st.booleans())
    def example(calls, actions, late):
        async def run():
            async with site.open() as backend:
                with on_the_clock_of(backend), capture_logs() as told:
                    world = made(lambda call: "", AGENT, calls=calls, backend=backend, **keys)
                    await world.begin()
                    try:
                        await play(world, actions)
                        if not late:
                            await world.all_wake()
                        status = await world.finish()
                    finally:
                        await world.all_wake()
                    assert not [line for line in told if line["log_level"] == "error"]
                    found = await world.judged(status)
                    assert not found, found

        asyncio.run(run())

    example()


def test_owners_that_stand_still_and_go_on_repeat_nothing(site, keys):
    holds(site, keys, max_examples=EXAMPLES[site.name])


class NoFence(ThreadSteps):
    """Anybody may write."""

    def fence(self, epoch):
        return self._thread.runs[self._ref.run_id]


class Deaf(ThreadSteps):
    """Does not tell who takes a run over that it is to end."""

    def claim(self, *args):
        lost, claim = self.found.status == "running", super().claim(*args)
        return replace(claim, record=replace(claim.record, cancel_requested=False)) if lost and claim.record is not None else claim


class Forgetful(Standing):
    """Its executor forgets what was ended for good."""

    async def cancel(self, key, *, for_good):
        return self.known.get(key) or ToolOutcome("failed", code="transport.cancelled")


MAILS = st.just([("mail", {"n": 1})])
CANCELS = st.tuples(OWN, st.just(("cancel",)), st.lists(st.one_of(OWN, WAKE), max_size=3)).map(lambda drawn: [*drawn[:2], *drawn[2]])


@pytest.mark.parametrize(
    ("promise", "steps", "world"),
    [("A[248]", NoFence, Standing), ("A8: .* was started", Deaf, Standing), ("A8: .* and ran", ThreadSteps, Forgetful)],
)
def test_a_defect_is_found(keys, promise, steps, world):
    with pytest.raises(AssertionError, match=promise):
        holds(Site("memory", steps=steps), keys, MAILS, CANCELS, world, max_examples=2000, derandomize=True, phases=[Phase.generate])
