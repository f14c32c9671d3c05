"""The kill matrix where users control a run at work: whoever took a command is lost before anybody heard of it, and its owner too.

A stop, a message, an order for a tool call: each with SIGKILL, SIGSTOP longer than the lease, and a store that is cut off. The caller asks
again under its key at another replica. Nothing is lost, and nothing is done or told twice; in the end the oracle looks at everything.
"""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.testing.counting import REPEATABLE, calls, script
from services.orchestrator.testing.harness import data_of, types
from tests.system.kill_site import two_replicas

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


# Each row brings its run to the kill point; has its command taken; goes on when the fault has struck; and when the replica has come back.


async def stopped_not_told(site):
    run_id = "stopped-not-told"
    await site.streaming(run_id)
    async for _ in taken(
        site, run_id, lambda client: client.runs.StopGeneration(pb.StopGenerationRequest(run_id=run_id, idempotency_key="k"))
    ):
        yield
    run = await site.second.client.get(run_id)
    assert run.output_text.startswith("one two")
    assert counts(await site.second.client.log(run_id), "stop_received", "run_finished") == [1, 1]


async def steered_not_told(site):
    run_id = "steered-not-told"
    await site.streaming(run_id)
    request = pb.SteerRunRequest(run_id=run_id, text=script("as you say"), idempotency_key="k")
    async for _ in taken(site, run_id, lambda client: client.runs.SteerRun(request)):
        yield
    assert (await site.second.client.get(run_id)).output_text == "as you say"
    assert counts(await site.second.client.log(run_id), "steer_received", "steer_applied", "steer_dropped") == [1, 1, 0]


async def ordered_not_told(site):
    run_id = "ordered-not-told"
    site.tools.of(run_id).close()
    await site.start(run_id, calls((REPEATABLE, "a")), "done")
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the tool is at work")
    substitute = pb.TOOL_CALL_CONTINUATION_SUBSTITUTE
    request = pb.CancelToolCallRequest(run_id=run_id, call_id="c0.0", continuation=substitute, result_json=b'"mine"', idempotency_key="k")
    async for _ in taken(site, run_id, lambda client: client.runs.CancelToolCall(request)):
        yield
    log = await site.second.client.log(run_id)
    assert counts(log, "tool_cancel_received", "tool_call_completed", "tool_call_failed") == [1, 1, 0]
    (completed,) = (data_of(event) for event in log if event.type == "tool_call_completed")
    assert (completed["output"], completed["cancel"]["continuation"]) == ("mine", "substitute")


async def taken(site, run_id, send):
    """The store has the command, and its sender hears nothing of it."""
    yield
    held = site.first.proxy.hold(b"run_post_v1", run_id.encode(), answer=True)

    async def sent(client):
        with client.calling():
            return await send(client)

    first = asyncio.create_task(sent(site.first.client))
    await held.reached()
    yield
    assert (await sent(site.second.client)).number == 1
    site.models.of(run_id).open()
    await site.ended(run_id)
    yield
    held.release()
    await asyncio.gather(first, return_exceptions=True)


def counts(log, *kinds):
    return [types(log).count(kind) for kind in kinds]


@pytest.mark.parametrize("fault", ["kill", "stop", "cut"])
async def test_commands_whose_taker_is_lost(fault, identities, behind, state_url, tmp_path):
    async with two_replicas(identities, behind, state_url, tmp_path) as site:
        await site.befall(fault, await site.at_their_points((), (stopped_not_told, steered_not_told, ordered_not_told)))
