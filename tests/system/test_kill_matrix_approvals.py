"""The kill matrix where people are asked: an owner is lost around a question, or while its run waits for the answer.

The rows `waiting for approval` and `mid tool, not idempotent, outcome unknown` of the matrix in test_kill_matrix.py, each with SIGKILL,
SIGSTOP longer than the lease, and a store that is cut off; in the end the oracle looks at everything.
"""

import asyncio
import time

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as pb

from services.common import testing
from services.orchestrator.testing.counting import ONCE, calls
from services.orchestrator.testing.fakes import UNKNOWN
from services.orchestrator.testing.harness import data_of, types
from tests.system.kill_site import LEASE_S, two_replicas

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
APPROVE = pb.Approve()


# Each row brings its run to the kill point; goes on when the fault has struck; goes on when the replica has come back. A kill point that
# lasts for a moment only is reached in two steps, of which the first takes time.


async def mid_tool_that_is_asked_about(site):
    run_id = "mid-tool-that-is-asked-about"
    site.tools.of(run_id).close()
    await site.start(run_id, calls((ONCE, "a")), "done", agent="asking")
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the tool is at work")
    site.behind.tools.forced[f"{run_id}/1/0"] = UNKNOWN
    yield
    (asked,) = await site.asked(run_id)
    assert asked.approval_id == f"{run_id}/1/0/unknown/1"
    yield
    site.tools.of(run_id).open()
    await site.second.client.decide(asked.approval_id, outcome=pb.Outcome(done_json=b'{"did":"a"}'))
    await site.ended(run_id)
    assert len(site.behind.tools.effects[run_id]) == 1
    done = next(data_of(event) for event in await site.second.client.log(run_id) if event.type == "tool_call_completed")
    assert done["output"] == {"did": "a"}


async def waiting_for_approval(site):
    run_id = "waiting-for-approval"
    await site.start(run_id, calls((ONCE, "a")), "done", agent="careful")
    (asked,) = await site.asked(run_id)
    yield
    assert not site.behind.tools.effects[run_id]
    decided = time.monotonic()
    await site.second.client.decide(asked.approval_id, approve=APPROVE)
    await site.ended(run_id)
    # It waited for nobody's lease: the replica that took the decision took the run.
    assert time.monotonic() - decided < LEASE_S
    yield
    assert len(site.behind.tools.effects[run_id]) == 1


async def asked_not_told(site):
    """The question is durable, and its owner is lost before the checkpoint that says so."""
    run_id = "asked-not-told"
    held = site.first.proxy.hold(b"interrupts_raise_v1", run_id.encode(), answer=True)
    await site.waiting(run_id, calls((ONCE, "a")), "done", agent="careful")
    yield
    site.models.of(run_id).open()
    await held.reached()
    yield
    (asked,) = await site.asked(run_id)
    assert types(await site.second.client.log(run_id)).count("interrupt_raised") == 1
    await site.second.client.decide(asked.approval_id, approve=APPROVE)
    await site.ended(run_id)
    yield
    held.release()
    assert len(site.behind.tools.effects[run_id]) == 1


async def decided_not_told(site):
    """The decision is durable, and whoever took it is lost before the run is woken and the caller answered."""
    run_id = "decided-not-told"
    await site.start(run_id, calls((ONCE, "a")), "done", agent="careful")
    (asked,) = await site.asked(run_id)
    yield
    held = site.first.proxy.hold(b"interrupt_settle_v1", run_id.encode(), answer=True)
    deciding = asyncio.create_task(site.first.client.decide(asked.approval_id, approve=APPROVE, idempotency_key="k"))
    await held.reached()
    yield
    again = await site.second.client.decide(asked.approval_id, approve=APPROVE, idempotency_key="k")
    assert again.state == pb.APPROVAL_STATE_APPROVED
    await site.ended(run_id)
    yield
    held.release()
    await asyncio.gather(deciding, return_exceptions=True)
    assert len(site.behind.tools.effects[run_id]) == 1


LASTING = (mid_tool_that_is_asked_about, waiting_for_approval)
BRIEF = (decided_not_told, asked_not_told)


@pytest.mark.parametrize("fault", ["kill", "stop", "cut"])
async def test_lost_where_people_are_asked(fault, identities, behind, state_url, tmp_path):
    async with two_replicas(identities, behind, state_url, tmp_path) as site:
        await site.befall(fault, await site.at_their_points(LASTING, BRIEF))
