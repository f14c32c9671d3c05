"""Calls that somebody ends by their key: what became of them is told as it is, once and for good, at whichever process they run."""

import asyncio

import pytest
from bulkhead.tools.v1 import tools_pb2

from services.common import testing
from services.common.errors import InvalidInput, NotFound
from services.common.identity import Principal
from tests.integration.tool_executor.harness import DONE, FAILED, UNKNOWN, executor, http_tool, outside_server, write_config

READS = {"annotations": {"read_only": True}}


@pytest.fixture
async def outside():
    async with outside_server() as server:
        yield server


@pytest.fixture
async def tools(tmp_path, state_url, identities, outside):
    write_config(tmp_path / "config", [http_tool(outside, "order", "/order"), http_tool(outside, "look", "/look", **READS)])
    async with executor(tmp_path / "config", state_url, identities) as client:
        yield client


@pytest.fixture
def caller(identities):
    with testing.calling(identities):
        yield


async def stop(client, key, *, for_good=True):
    return (await client.stub.CancelToolCall(tools_pb2.CancelToolCallRequest(idempotency_key=key, for_good=for_good))).result


async def at_work(client, outside, name, key):
    """A call that has reached the outside and waits there."""
    outside.gate.clear()
    before = len(outside.seen)
    call = asyncio.create_task(client.result(name, key=key))
    await testing.eventually_async(lambda: len(outside.seen) > before, "the call is at work")
    return call


async def test_a_call_that_may_have_had_its_effect_is_stopped_and_its_outcome_unknown(tools, caller, outside):
    call = await at_work(tools, outside, "order", "r/1/0")
    answer = await stop(tools, "r/1/0")
    assert answer.outcome == UNKNOWN
    assert (await call).outcome == UNKNOWN, "the caller that waits for it hears the same"
    assert outside.given_up == 1, "the request was ended"
    assert (await stop(tools, "r/1/0")).outcome == UNKNOWN
    outside.gate.set()
    assert (await tools.result("order", key="r/1/0")).outcome == UNKNOWN
    assert len(outside.seen) == 1


async def test_a_call_that_changes_nothing_is_cancelled_and_runs_again_only_where_that_was_wanted(tools, caller, outside):
    for key, for_good in (("again", False), ("never", True)):
        call = await at_work(tools, outside, "look", key)
        answer = await stop(tools, key, for_good=for_good)
        assert (answer.outcome, answer.error.code) == (FAILED, "transport.cancelled")
        assert (await call).error.code == "transport.cancelled"
    outside.gate.set()
    before = len(outside.seen)
    assert (await tools.result("look", key="again")).outcome == DONE
    assert (await tools.result("look", key="never")).error.code == "transport.cancelled"
    assert len(outside.seen) == before + 1


async def test_a_call_that_is_done_was_done_and_a_cancel_that_comes_first_holds(tools, caller, outside):
    assert (await tools.result("order", key="done")).outcome == DONE
    late = await stop(tools, "done")
    assert (late.outcome, late.replayed, late.output_json) == (DONE, True, b'{"number":1}')
    with pytest.raises(NotFound):
        await stop(tools, "unseen", for_good=False)
    assert (await stop(tools, "unseen")).error.code == "transport.cancelled"
    assert (await tools.result("order", key="unseen")).error.code == "transport.cancelled"
    assert len(outside.seen) == 1
    with pytest.raises(InvalidInput):
        await stop(tools, "")


async def test_another_tenant_ends_no_call(tools, identities, outside):
    with testing.calling(identities):
        call = await at_work(tools, outside, "order", "r/1/0")
    with testing.calling(identities, Principal("other", "eve", scopes=("tools:execute",))):
        with pytest.raises(NotFound):
            await stop(tools, "r/1/0", for_good=False)
        await stop(tools, "r/1/0")
    outside.gate.set()
    assert (await call).outcome == DONE


async def test_a_call_of_another_process_is_ended_there(tools, caller, outside, tmp_path, state_url, identities):
    call = await at_work(tools, outside, "order", "r/1/0")
    async with executor(tmp_path / "config", state_url, identities) as other:
        assert (await stop(other, "r/1/0")).outcome == UNKNOWN
    assert (await call).outcome == UNKNOWN
    assert outside.given_up == 1
