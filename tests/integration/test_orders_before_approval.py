"""Tool calls that somebody ends while they wait for an approval and others of their step are at work, over gRPC and a real store."""

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config

OK, FAILED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED
SKIP, FAIL = pb.TOOL_CALL_CONTINUATION_SKIP, pb.TOOL_CALL_CONTINUATION_FAIL
RETRY, SUBSTITUTE = pb.TOOL_CALL_CONTINUATION_RETRY, pb.TOOL_CALL_CONTINUATION_SUBSTITUTE
TEXT = 'tools\ntool calculator {"expression": "1+2"}\ntool send_mail {"to": "bob"}'


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as client:
        yield client
        # Nobody should have to wait for what is held.
        behind.tools.gate.open()


async def asking(client, behind):
    """A run of which one call is at work and held, and another one waits for an approval: the run, and the question."""
    behind.tools.gate.close()
    run = await client.start(TEXT, agent="careful")
    await testing.eventually_async(lambda: behind.tools.gate.waiting == 1, "the calculator is at work")
    return run, await testing.eventually_async(lambda: opened(client, run.run_id), "somebody is asked")


async def opened(client, run_id):
    with client.calling():
        request = approvals_pb.ListApprovalsRequest(run_id=run_id, state=approvals_pb.APPROVAL_STATE_OPEN)
        found = (await client.approvals.ListApprovals(request)).approvals
    return found[0] if found else None


async def end_call(client, run_id, **fields):
    with client.calling():
        await client.runs.CancelToolCall(pb.CancelToolCallRequest(run_id=run_id, call_id="c1", **fields))


async def told(client, run_id, *kinds):
    return [data_of(event) for event in await client.log(run_id) if event.type in kinds and data_of(event).get("call_id") == "c1"]


@pytest.mark.parametrize(("fields", "kind"), [
    ({"continuation": SKIP}, "tool_call_failed"), ({"continuation": SUBSTITUTE, "result_json": b"41"}, "tool_call_completed"),
])  # fmt: skip
async def test_a_call_that_waits_for_an_approval_is_ended_at_once(client, behind, fields, kind):
    run, question = await asking(client, behind)
    await end_call(client, run.run_id, **fields)
    (ended,) = await testing.eventually_async(lambda: told(client, run.run_id, kind), "the call has ended")
    assert behind.tools.gate.waiting == 1, "the other call is at work still"
    assert ended["cancel"]["executor"] == "cancelled"
    assert [data["outcome"] for data in await told(client, run.run_id, "interrupt_resolved")] == ["rejected"]
    assert await opened(client, run.run_id) is None
    with pytest.raises(Conflict):
        await client.decide(question.approval_id, approve=approvals_pb.Approve())
    behind.tools.gate.open()
    done = await client.wait(run.run_id)
    assert (done.status, behind.tools.sent, done.usage.tool_calls) == (OK, [], 1)
    assert ("41" if kind == "tool_call_completed" else "cancelled.skipped") in done.output_text


async def test_a_run_ends_with_a_call_that_waits_for_an_approval(client, behind):
    run, _ = await asking(client, behind)
    await end_call(client, run.run_id, continuation=FAIL)
    ended = await client.wait(run.run_id)
    assert (ended.status, ended.error.reason, behind.tools.sent) == (FAILED, "TOOL_CALL_CANCELLED", [])
    assert len(await told(client, run.run_id, "interrupt_resolved")) == 1


async def test_what_is_to_be_made_again_still_waits_for_its_approval(client, behind):
    run, question = await asking(client, behind)
    await end_call(client, run.run_id, continuation=RETRY)
    behind.tools.gate.open()

    async def parked():
        return (await client.get(run.run_id)).status == pb.RUN_STATUS_WAITING

    await testing.eventually_async(parked, "the run waits for its approval")
    assert behind.tools.sent == []
    await client.decide(question.approval_id, approve=approvals_pb.Approve())
    assert ((await client.wait(run.run_id)).status, len(behind.tools.sent)) == (OK, 1)
