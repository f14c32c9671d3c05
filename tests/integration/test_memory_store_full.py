"""What memory answers while its state store's memory is full: what an ended run leaves is taken, everything new is refused."""

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.memory import fakes
from tests.integration.test_memory_failures import add, ingest


async def test_the_turn_of_an_ended_run_is_taken_and_nothing_new_is(identities, milvus_uri):
    with testing.valkey_server() as (url, _):
        client = connect(url, timeout_s=testing.PATIENCE_S)
        async with fakes.fake_llm(identities) as (_, address), fakes.memory_service(identities, url, milvus_uri, address) as memory:

            async def append(session, run_id):
                turn = memory_pb2.Turn(run_id=run_id, user_text="a", assistant_text="b")
                request = memory_pb2.AppendTurnsRequest(session_id=session, turns=[turn], idempotency_key=f"{run_id}/turn")
                return (await memory.sessions.AppendTurns(request)).window_turns

            with testing.calling(identities, timeout_s=60):
                assert await append("before", "r0") == 1
                assert [await append("long", run_id) for run_id in ("l1", "l2")] == [1, 2]
                await client.config_set("maxmemory", "1mb")
                assert [await append("s", run_id) for run_id in ("r1", "r2", "r2")] == [1, 2, 2]
                await memory.sessions.ResetSession(memory_pb2.ResetSessionRequest(session_id="before"))
                left = memory_pb2.Turn(run_id="l1", user_text="a", assistant_text="b")
                rolled_back = memory_pb2.ReplaceSessionRequest(session_id="long", turns=[left], forgotten_run_ids=["l2"])
                assert (await memory.sessions.ReplaceSession(rolled_back)).window_turns == 1
                assert (await memory.sessions.DeleteSession(memory_pb2.DeleteSessionRequest(session_id="long"))).deleted_turns == 1
                for call, request in ((memory.memories.AddMemories, add("x")), (memory.documents.IngestDocument, ingest("x", "y"))):
                    with pytest.raises(Overloaded):
                        await call(request)
        await client.aclose()


async def test_what_is_there_can_be_removed_and_leaves_room(identities, milvus_uri):
    with testing.valkey_server() as (url, _):
        client = connect(url, timeout_s=testing.PATIENCE_S)
        async with fakes.fake_llm(identities) as (_, address), fakes.memory_service(identities, url, milvus_uri, address) as memory:
            with testing.calling(identities, timeout_s=60):
                (kept,) = (await memory.memories.AddMemories(add("The user keeps a lighthouse"))).memories
                await memory.documents.IngestDocument(ingest("guide", "The keeper polishes brass."))
                await client.config_set("maxmemory", "1mb")
                with pytest.raises(Overloaded):
                    await memory.memories.AddMemories(add("x"))
                by_key = memory_pb2.DeleteDocumentRequest(document_id="guide", idempotency_key="d")
                deleted = await memory.documents.DeleteDocument(by_key)
                assert deleted.deleted_chunks == 1
                assert (await memory.documents.DeleteDocument(by_key)).deleted_chunks == 1
                await memory.memories.DeleteMemory(memory_pb2.DeleteMemoryRequest(memory_id=kept.memory_id, idempotency_key="m"))
                assert not (await memory.documents.ListDocuments(memory_pb2.ListDocumentsRequest())).documents
                assert not (await memory.memories.ListMemories(memory_pb2.ListMemoriesRequest())).memories
                # All that was to be done for them is done.
                assert [item for item in await client.zrange("memory:work", 0, -1) if b"reindex" not in item] == []
        await client.aclose()
