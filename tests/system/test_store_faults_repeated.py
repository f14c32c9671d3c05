"""What was written and refused, because too few replicas took it, is refused as well when it is asked for again: an answer that only reads
what is there would acknowledge what a promotion is about to lose."""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import BulkheadError, Overloaded
from services.orchestrator.testing.counting import ONCE, CountingTools, RunGates, calls, script, scripted
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.replica_set import replica_set

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture
def members(tmp_path):
    """A primary that goes on to take writes without its replica: it is the orchestrator that waits for it."""
    with replica_set(tmp_path / "set", nodes=2) as made:
        for node in made.nodes:
            with node.client() as client:
                client.config_set("min-replicas-to-write", 0)
        yield made


@pytest.fixture
async def behind(identities):
    async with fakes(identities, made=Fakes(tools=CountingTools())) as made:
        made.models.reply = scripted
        yield made


async def taken(ask):
    """The answer, as soon as a replica follows; after a full copy that is when it has written all of it."""
    async with asyncio.timeout(testing.PATIENCE_S):
        while True:
            try:
                return await ask()
            except Overloaded:
                await asyncio.sleep(0.1)


async def refused(ask):
    """What it was refused with, '' where it was acknowledged."""
    try:
        await ask()
    except BulkheadError as error:
        return error.reason
    return ""


async def test_asked_again_it_is_refused_again(identities, members, behind, tmp_path):
    gates = behind.tools.gate = RunGates()
    settings = settings_for(identities, behind, members.url, write_config(tmp_path / "config"), state_replicas=1)
    async with served(settings, identities) as client:

        async def started(text, **fields):
            return await taken(lambda: client.start(text, **fields))

        ended = await client.wait((await started(script("hi"), thread_id="th-forked")).run_id)
        doomed = await client.wait((await started(script("hi"), thread_id="th-doomed")).run_id)
        asking = await started(script(calls((ONCE, "asked")), "done"), agent="careful")
        questions = await testing.eventually_async(lambda: client.asked(asking.run_id), "a person is asked")
        held = await started(script(calls((ONCE, "held")), "done"), thread_id="th-held")
        gates.of(held.run_id).close()
        await testing.eventually_async(lambda: behind.tools.effects.get(held.run_id), "a tool is at work")
        decision = approvals.DecideApprovalRequest(approval_id=questions[0].approval_id, idempotency_key="k")
        decision.approve.SetInParent()
        steer = pb.SteerRunRequest(run_id=held.run_id, text=script("heard"), idempotency_key="k")
        order = pb.CancelToolCallRequest(
            run_id=held.run_id, call_id="c0.0", idempotency_key="k", continuation=pb.TOOL_CALL_CONTINUATION_SKIP
        )
        run = pb.CreateRunRequest(
            agent="quick", run_id="r-made", idempotency_key="k", input=[pb.InputMessage(role="user", text=script("hi"))]
        )
        wanted = {
            "a run": lambda: client.runs.CreateRun(run),
            "a cancel before its run": lambda: client.runs.CancelRun(pb.CancelRunRequest(run_id="r-not-there")),
            "a thread": lambda: client.threads.CreateThread(pb.CreateThreadRequest(thread_id="th-made", metadata={"a": "b"})),
            "a deletion": lambda: client.threads.DeleteThread(pb.DeleteThreadRequest(thread_id=doomed.thread_id)),
            "a fork": lambda: client.threads.ForkThread(pb.ForkThreadRequest(thread_id=ended.thread_id, idempotency_key="k")),
            "feedback": lambda: client.runs.RecordFeedback(
                pb.RecordFeedbackRequest(run_id=ended.run_id, idempotency_key="k", rating=5)
            ),
            "a message": lambda: client.runs.SteerRun(steer),
            "an order for a call": lambda: client.runs.CancelToolCall(order),
            "a decision": lambda: client.approvals.DecideApproval(decision),
        }  # fmt: skip
        (replica,) = members.replicas()
        replica.pause()
        try:
            with client.calling():
                for time in ("first", "again"):
                    answers = dict(zip(wanted, await asyncio.gather(*map(refused, wanted.values())), strict=True))
                    print(time, answers)
                    assert set(answers.values()) == {"STORE_UNAVAILABLE"}, f"{time}: {answers}"
        finally:
            replica.go_on()
        with client.calling(timeout_s=testing.PATIENCE_S):
            for ask in wanted.values():
                await taken(ask)
        gates.of(held.run_id).open()
        for run_id in (asking.run_id, held.run_id, "r-made"):
            assert (await client.wait(run_id)).status == pb.RUN_STATUS_SUCCEEDED
        log = [event.type for event in await client.log(held.run_id)]
        assert (log.count("steer_received"), log.count("tool_cancel_received")) == (1, 1)
        assert len(behind.tools.effects[asking.run_id]) == 1
        log = [event.type for event in await client.log(thread_id=ended.thread_id)]
        assert log.count("feedback") == 1


async def test_claims_that_no_replica_took_cost_a_run_none_of_its_owners(identities, members, behind, tmp_path):
    settings = settings_for(identities, behind, members.url, write_config(tmp_path / "config"), state_replicas=1)
    async with served(settings, identities) as client:
        run = await taken(lambda: client.start(script(calls((ONCE, "asked")), "done"), agent="careful"))
        questions = await testing.eventually_async(lambda: client.asked(run.run_id), "a person is asked")
        (replica,) = members.replicas()
        replica.pause()
        try:
            # It is at the primary, and the run is to go on.
            with pytest.raises(Overloaded):
                await client.decide(questions[0].approval_id, approve=approvals.Approve(), idempotency_key="k")

            async def tried_often():
                found = await client.get(run.run_id)
                assert found.status in (pb.RUN_STATUS_QUEUED, pb.RUN_STATUS_RUNNING), found
                return found.attempt > settings.crash_budget + 2

            await testing.eventually_async(tried_often, "it is claimed more often than owners may be lost", every_s=0.1)
        finally:
            replica.go_on()
        assert (await client.wait(run.run_id)).status == pb.RUN_STATUS_SUCCEEDED
