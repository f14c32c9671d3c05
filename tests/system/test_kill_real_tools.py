"""The rows of the kill matrix that are about tools, with a real tool executor: its ledger, its claims, its requests to the world outside.

Two orchestrators, one executor, all processes of their own, over one Valkey; the tools are HTTP requests to a server that counts them
and is never killed, and Python in the sandbox. Struck are the orchestrator that a call is made for, the executor that makes it, and both.
What is known of a call afterwards, only the executor's ledger can tell. In the end the oracle looks at everything.
"""

import asyncio
import signal
import time

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.testing.counting import calls
from services.orchestrator.testing.harness import data_of, types
from tests.system.kill_site import TALK, each
from tests.system.real_tools import ORDER, READ, SET, real_site

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]
CANCELLED = pb.RUN_STATUS_CANCELLED
DONE = approvals_pb.Outcome(done_json=b'{"did":"a"}')
# Longer than a busy machine keeps a process from its turn.
SLACK_S = 4.0
LOOPS = 4_000_000
CODE = f"print('begun')\nx = 0\nfor i in range({LOOPS}):\n    x += i\nx"


async def ended_of(site, run_id):
    """How the calls of a run ended, as its log tells it."""
    return [(event.type, data_of(event)) for event in await site.second.client.log(run_id) if event.type in OUTCOMES]


OUTCOMES = ("tool_call_completed", "tool_call_failed")


# Each row brings its run to the kill point; goes on when the fault has struck; goes on when all are back.


def repeatable(tool):
    async def mid_repeatable_tool(site, fault):
        run_id = f"mid-{tool}"
        key = await site.at_work(run_id, tool)
        yield
        if fault in ("stop", "cut"):
            # Its owner still waits for the answer, as far as the executor knows; whoever takes it over waits for the same call.
            await site.taken(run_id)
            assert len(site.effects(run_id)) == 1
        else:
            await testing.eventually_async(lambda: len(site.effects(run_id)) == 2, "it is made again")
        yield
        # An owner that returns ends its call, and the one that has the run makes it again.
        await testing.eventually_async(lambda: len(site.effects(run_id)) == 2, "it is made again")
        assert len(site.outside.cut[key]) == 1
        site.tools.of(run_id).open()
        await site.ended(run_id)
        assert [effect.key for effect in site.effects(run_id)] == [key, key]
        assert [(kind, data["output"]) for kind, data in await ended_of(site, run_id)] == [("tool_call_completed", {"did": "a"})]

    return mid_repeatable_tool


async def mid_unrepeatable_tool(site, fault):
    """Cut off midway, nobody can tell what became of it, and a person is asked."""
    run_id = "mid-order"
    key = await site.at_work(run_id, ORDER, agent="asking")
    yield
    if fault in ("stop", "cut"):
        await site.taken(run_id)
    else:
        await site.asked(run_id)
    yield
    (asked,) = await site.asked(run_id)
    assert asked.approval_id == f"{key}/unknown/1"
    assert len(site.outside.cut[key]) == 1
    site.tools.of(run_id).open()
    await site.second.client.decide(asked.approval_id, outcome=DONE)
    await site.ended(run_id)
    assert len(site.effects(run_id)) == 1


async def done_and_not_told(site, fault):
    """The tool has answered, and whoever it was for is lost before that is written down: the ledger knows."""
    run_id = "order-done-and-not-told"
    await site.at_work(run_id, ORDER, agent="asking")
    yield
    held = site.first.proxy.hold(b"run_write_v1", run_id.encode(), b"tool_call_completed")
    site.tools.of(run_id).open()
    await held.reached()
    yield
    await told_once(site, run_id)
    yield
    held.release()


async def done_meanwhile(site, fault):
    """The tool answers while its owner is away, and the one that has taken the run over hears it."""
    run_id = "order-done-meanwhile"
    await site.at_work(run_id, ORDER, agent="asking")
    yield
    await site.taken(run_id)
    site.tools.of(run_id).open()
    await told_once(site, run_id)
    yield


async def told_once(site, run_id):
    await site.ended(run_id)
    assert len(site.effects(run_id)) == 1
    assert [(kind, data["output"]) for kind, data in await ended_of(site, run_id)] == [("tool_call_completed", {"did": "a"})]
    assert "interrupt_raised" not in types(await site.second.client.log(run_id))


async def cancelled(site, fault):
    """Its owner is lost, and a user wants the run to end: the request that nobody waits for any more is ended too."""
    run_id = "order-cancelled"
    key = await site.at_work(run_id, ORDER)
    yield
    await cancel(site, run_id, key)
    yield


async def cancel(site, run_id, key):
    await site.second.client.cancel(run_id)
    site.cancels[run_id] = int(time.time() * 1000)
    await site.ended(run_id, CANCELLED)
    await site.given_up(key)
    assert len(site.effects(run_id)) == 1


async def in_the_sandbox(site, fault):
    run_id = "python"
    await site.start(run_id, {"say": "", "calls": [["python", {"code": CODE}]]}, "done")
    await testing.eventually_async(lambda: "tool_call_progress" in types(site.shown(run_id)), "the code runs")
    yield
    await site.ended(run_id)
    ((kind, data),) = await ended_of(site, run_id)
    assert (kind, data["output"]["result"], data["output"]["stdout"]) == ("tool_call_completed", LOOPS * (LOOPS - 1) // 2, "begun\n")
    yield


@pytest.mark.parametrize("fault", ["kill", "stop", "cut"])
async def test_the_orchestrator_is_lost_mid_tool(fault, identities, state_url, tmp_path):
    # A lease that a slow machine keeps until the fault.
    async with real_site(identities, state_url, tmp_path, lease_s=2.0, heartbeat_s=0.5) as site:
        rows = [row(site, fault) for row in (repeatable(READ), repeatable(SET), mid_unrepeatable_tool, cancelled)]
        if fault != "kill":
            # The executor ends what it does for somebody who has died.
            rows.append(done_meanwhile(site, fault))
        brief = done_and_not_told(site, fault)
        with site.first_alone():
            await each((*rows, brief))
            await anext(brief)
            rows += [brief, code := in_the_sandbox(site, fault)]
            await anext(code)
        await site.befall(fault, rows)


@pytest.mark.parametrize("both", [False, True], ids=["executor", "both"])
async def test_the_executor_is_lost_mid_tool(both, identities, state_url, tmp_path):
    async with real_site(identities, state_url, tmp_path, lease_s=2.0, heartbeat_s=0.5) as site:
        rows = [row(site, "kill") for row in (repeatable(READ), repeatable(SET), mid_unrepeatable_tool, in_the_sandbox)]
        await site.executor.stand_by()
        again = await site.at_work("made-again", ORDER, agent="asking")
        await each(rows)
        await site.executor.replaced(*([site.first] if both else []))
        # Whoever was at a call that may be made twice is known to be gone when its lease ends; at another one, when its deadline passes.
        await site.outlast("mid-order/1/0", again)
        await each(rows)
        (asked,) = await site.asked("made-again")
        # A person says so, and it is done a second time, under its key.
        await site.second.client.decide(asked.approval_id, outcome=approvals_pb.Outcome(retry=True))
        await testing.eventually_async(lambda: len(site.effects("made-again")) == 2, "it is made again")
        site.tools.of("made-again").open()
        await site.ended("made-again")
        assert [effect.key for effect in site.effects("made-again")] == [again, again]
        if both:
            await site.first.back()
        await each(rows)
        # To the oracle one call is one effect, whatever a person wants.
        del site.effects("made-again")[1:]
        await site.judge()


# Around its call the executor is lost at each point where its ledger knows something else.


async def stored_not_told(site):
    run_id = "order-stored-not-told"
    key = await site.at_work(run_id, ORDER, agent="asking")
    held = site.executor.hold(b"tool_call_finish_v1", key, answer=True)
    site.tools.of(run_id).open()
    await held.reached()
    yield
    await told_once(site, run_id)


async def claimed_not_begun(site):
    """Nothing was done, and nobody can tell: a person says whether it is to be."""
    run_id = "order-claimed-not-begun"
    key = f"{run_id}/1/0"
    held = site.executor.hold(b"tool_call_begin_of_run_v1", key, answer=True)
    # Nor is its claim given back where the store seems to be away for long.
    kept = site.executor.hold(b"tool_call_finish_v1", key, once=False)
    await site.ordering(run_id)
    await held.reached()
    yield
    await site.outlast(key)
    (asked,) = await site.asked(run_id)
    assert not site.effects(run_id)
    kept.release()
    await site.second.client.decide(asked.approval_id, outcome=approvals_pb.Outcome(retry=True))
    await site.ended(run_id)
    assert [effect.key for effect in site.effects(run_id)] == [key]


async def not_claimed(site):
    """Never seen is never begun."""
    run_id = "order-not-claimed"
    held = site.executor.hold(b"tool_call_begin_of_run_v1", f"{run_id}/1/0")
    await site.ordering(run_id)
    await held.reached()
    yield
    await told_once(site, run_id)


async def test_the_executor_is_lost_around_a_call_that_must_not_be_made_twice(identities, state_url, tmp_path):
    async with real_site(identities, state_url, tmp_path) as site:
        await site.executor.stand_by()
        rows = [row(site) for row in (stored_not_told, claimed_not_begun, not_claimed)]
        # One by one: each is at its point before the next one sets out.
        for row in rows:
            await anext(row)
        await site.executor.replaced()
        await each(rows)
        await site.judge()


async def test_calls_at_work_end_with_an_executor_that_is_told_to_go(identities, state_url, tmp_path):
    """And calls of the next step go to the one in its place: nobody notices a rollout."""
    async with real_site(identities, state_url, tmp_path) as site:
        runs = {"goes-order": ORDER, "goes-read": READ}
        for run_id, tool in runs.items():
            await site.at_work(run_id, tool, following=[calls((SET, "b"))])
        leaving = await site.executor.rolled()
        await testing.eventually_async(lambda: "draining" in leaving.output(), "it drains")
        for run_id in runs:
            site.tools.of(run_id).open()
        assert await asyncio.to_thread(leaving.wait) == 0
        for run_id, tool in runs.items():
            await site.ended(run_id)
            assert [(effect.tool, effect.nonce) for effect in site.effects(run_id)] == [(tool, "a"), (SET, "b")]
            assert {kind for kind, _ in await ended_of(site, run_id)} == {"tool_call_completed"}
        await site.judge()


@pytest.mark.parametrize("lost", ["executor", "orchestrator"])
async def test_a_repetition_that_is_lost_as_well_is_asked_about_anew(lost, identities, state_url, tmp_path):
    """A person's word makes a call once more, and no more than once."""
    run_id = "lost-twice"
    async with real_site(identities, state_url, tmp_path) as site:
        key = await site.at_work(run_id, ORDER, agent="asking")
        for time_lost in (1, 2):
            if lost == "executor":
                await site.executor.stand_by()
                await site.executor.replaced()
                await site.outlast(key)
            else:
                name = await site.field(run_id, "owner")
                owner = next(replica for replica in (site.first, site.second) if name.startswith(replica.name))
                owner.strike("kill")
                await owner.back()
            (asked,) = await site.asked(run_id)
            assert asked.approval_id == f"{key}/unknown/{time_lost}"
            assert len(site.effects(run_id)) == time_lost
            if time_lost == 1:
                await site.second.client.decide(asked.approval_id, outcome=approvals_pb.Outcome(retry=True))
                await testing.eventually_async(lambda: len(site.effects(run_id)) == 2, "it is made again")
        await site.second.client.decide(asked.approval_id, outcome=DONE)
        await site.ended(run_id)
        assert [effect.key for effect in site.effects(run_id)] == [key, key]
        # To the oracle one call is one effect, whatever a person wants.
        del site.effects(run_id)[1:]
        await site.judge()


async def test_tools_that_outlast_the_drain_of_their_orchestrator(identities, state_url, tmp_path):
    """They are ended with its grace: what may be made again is, of the other a person is asked; nobody was lost."""
    async with real_site(identities, state_url, tmp_path, drain_grace_s=2.0) as site:
        read, order = await site.at_work("outlasts-read", READ), await site.at_work("outlasts-order", ORDER, agent="asking")
        site.first.process.signal(signal.SIGTERM)
        await testing.eventually_async(lambda: len(site.effects("outlasts-read")) == 2, "it is made again")
        (asked,) = await site.asked("outlasts-order")
        assert asked.approval_id == f"{order}/unknown/1"
        assert await asyncio.to_thread(site.first.process.wait) == 0
        for run_id, key in (("outlasts-read", read), ("outlasts-order", order)):
            assert len(site.outside.cut[key]) == 1
            assert await site.field(run_id, "crashes") == "0"
            site.tools.of(run_id).open()
        await site.second.client.decide(asked.approval_id, outcome=DONE)
        for run_id in ("outlasts-read", "outlasts-order"):
            await site.ended(run_id)
        assert {effect.key for effect in site.effects("outlasts-read")} == {read}
        assert len(site.effects("outlasts-order")) == 1
        await site.judge()


async def test_a_cancel_ends_the_request_of_a_tool_at_work(identities, state_url, tmp_path):
    async with real_site(identities, state_url, tmp_path) as site:
        keys = {f"cancelled-{tool}": await site.at_work(f"cancelled-{tool}", tool) for tool in (READ, ORDER)}
        await asyncio.gather(*(cancel(site, run_id, key) for run_id, key in keys.items()))
        codes = {run_id: [data["error"]["code"] for _, data in await ended_of(site, run_id)] for run_id in keys}
        assert codes == {f"cancelled-{READ}": ["cancelled"], f"cancelled-{ORDER}": ["tool_outcome_unknown"]}
        await site.judge()


@pytest.mark.parametrize("fault", ["stop", "cut", "freeze"])
async def test_an_owner_that_returns_stops_its_calls_within_a_heartbeat(fault, identities, state_url, tmp_path):
    heartbeat_s = 1.0
    async with real_site(identities, state_url, tmp_path, lease_s=3.0, heartbeat_s=heartbeat_s) as site:
        await site.streaming("talk")
        key = await site.at_work("order", ORDER, agent="asking")
        site.first.strike(fault)
        await asyncio.gather(site.taken("talk"), site.taken("order"))
        former, owner = await testing.eventually_async(lambda: both(site.calls_of("talk")), "the model is asked again")
        # It knows nothing of it: what it does goes on.
        assert not former.cancelled
        assert not site.outside.cut[key]
        site.first.mend()
        back = time.monotonic()
        stopped = await asyncio.gather(site.given_up(key), ended_at(former))
        print(f"{fault}: its tool and model calls ended after {[round(at - back, 3) for at in stopped]} s")
        assert max(stopped) - back < heartbeat_s + SLACK_S
        assert not owner.cancelled
        site.models.of("talk").open()
        assert (await site.ended("talk")).output_text == TALK
        (asked,) = await site.asked("order")
        site.tools.of("order").open()
        await site.second.client.decide(asked.approval_id, outcome=DONE)
        await site.ended("order")
        assert len(site.effects("order")) == 1
        assert len(site.calls_of("talk")) == 2
        await site.judge()


def both(calls):
    return calls if len(calls) == 2 else None


async def ended_at(call):
    await testing.eventually_async(lambda: call.cancelled, "the model call is ended")
    return time.monotonic()
