"""What an agent is said to do while it does it: its log is read while memory, a tool or a person has not answered yet."""

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as pb

from services.common import testing
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as client:
        yield client


async def statuses(client, run_id):
    return [tuple(data_of(event).values()) for event in await client.told(run_id, "agent_status")]


async def test_while_memory_is_asked_the_agent_searches_and_while_its_tool_is_at_work_it_calls_it(client, behind):
    behind.sessions.recalls.close()
    behind.tools.gate.close()
    run = await client.start('tool calculator {"expression": "1+2"}', agent="helper")

    async def told(*expected):
        async def same():
            return await statuses(client, run.run_id) == list(expected)

        await testing.eventually_async(same, f"its last status is {expected[-1]}")

    await told(("searching",))
    assert await client.told(run.run_id, "memory_recalled") == []
    behind.sessions.recalls.open()
    await told(("searching",), ("thinking",), ("calling_tool", "calculator"))
    behind.tools.gate.open()
    await client.wait(run.run_id)
    await told(("searching",), ("thinking",), ("calling_tool", "calculator"), ("thinking",), ("writing",))


async def test_a_run_that_waits_for_people_says_so_and_goes_on_with_what_they_approved(client):
    run = await client.start('tool send_mail {"to": "bob"}', agent="careful")
    waiting = [("thinking",), ("waiting_approval",)]

    async def waits():
        return await statuses(client, run.run_id) == waiting

    await testing.eventually_async(waits, "the run waits for an approval")
    (asked,) = [data_of(event) for event in await client.told(run.run_id, "interrupt_raised")]
    with client.calling():
        await client.approvals.DecideApproval(pb.DecideApprovalRequest(approval_id=asked["interrupt_id"], approve=pb.Approve()))
    await client.wait(run.run_id)
    assert await statuses(client, run.run_id) == [*waiting, ("calling_tool", "send_mail"), ("thinking",), ("writing",)]
