"""EraseSubject: nothing of a user's calls is left, and those of others are."""

import asyncio

import pytest
from bulkhead.tools.v1 import tools_pb2

from services.common import testing
from services.common.errors import NotFound, PermissionDenied
from services.common.valkey import connect
from tests.integration.tool_executor.harness import DONE, executor, http_tool, write_config

SECRET = "swordfish-4711"


async def test_calls_of_an_erased_user_are_gone_and_those_of_others_stay(tmp_path, state_url, identities, outside):
    outside.answers["/find"] = [{"found": SECRET}]
    write_config(tmp_path, [http_tool(outside, "find", "/find")])
    ana, bob = testing.principal_of(user="ana"), testing.principal_of(user="bob")
    async with executor(tmp_path, state_url, identities) as client:
        for who, key in ((ana, "of-ana"), (bob, "of-bob")):
            with testing.calling(identities, who):
                assert (await client.result("find", {"n": 1}, key)).outcome == DONE
        erase = tools_pb2.EraseSubjectRequest(user="ana", idempotency_key="e")
        with testing.calling(identities, testing.principal_of(user="ana", scopes=["tools:execute"])), pytest.raises(PermissionDenied):
            await client.stub.EraseSubject(erase)
        with testing.calling(identities):
            assert [(e.kind, e.count) for e in (await client.stub.EraseSubject(erase)).erased] == [("tool_calls", 1)]
            assert [(e.kind, e.count) for e in (await client.stub.EraseSubject(erase)).erased] == [("tool_calls", 0)]
            with pytest.raises(NotFound):
                await client.known("of-ana")
            assert (await client.known("of-bob")).outcome == DONE
    store = connect(state_url)
    left = [key for key in await store.keys("tool_calls:*") if SECRET.encode() in await store.dump(key)]
    await store.aclose()
    assert len(left) == 1


async def test_a_call_at_work_stores_nothing_once_its_user_is_erased(tmp_path, state_url, identities, outside):
    outside.answers["/slow"] = [{"found": SECRET}]
    write_config(tmp_path, [http_tool(outside, "slow", "/slow")])
    outside.gate.clear()
    async with executor(tmp_path, state_url, identities) as client:
        with testing.calling(identities):
            call = asyncio.create_task(client.result("slow", {"n": 1}, "slow"))
            await testing.eventually_async(lambda: outside.seen, "the tool is at work")
            await client.stub.EraseSubject(tools_pb2.EraseSubjectRequest(user="ana", idempotency_key="e"))
            outside.gate.set()
            assert (await call).outcome == DONE
    store = connect(state_url)
    assert not [key for key in await store.keys("*") if SECRET.encode() in await store.dump(key)]
    await store.aclose()
