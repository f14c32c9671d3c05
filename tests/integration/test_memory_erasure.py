"""EraseSubject of memory: nothing of a user is left in store or index, others are untouched; and encryption of what is kept."""

import base64
import json
import os

import pytest
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc

from services.common import testing
from services.common.errors import PermissionDenied
from services.memory import fakes
from tests.integration.searched_store import holding

SECRET = "swordfish4711"


@pytest.fixture
async def llm(identities):
    async with fakes.fake_llm(identities) as (fake, address):
        fake.address = address
        yield fake


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "roots.json"
    path.write_text(json.dumps({"keys": [{"id": "one", "key": base64.b64encode(os.urandom(32)).decode()}]}))
    return path


async def fill(memory, identities, who, word):
    with testing.calling(identities, who):
        turn = memory_pb2.Turn(run_id=f"r-{who.user}", user_text=f"my word is {word}", assistant_text="noted")
        await memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id=f"s-{who.user}", turns=[turn], idempotency_key="k"))
        added = memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text=f"the word is {word}")], idempotency_key="k")
        await memory.memories.AddMemories(added)
        await memory.documents.IngestDocument(
            memory_pb2.IngestDocumentRequest(
                document_id=f"d-{word}", title=f"about {word}", content_type="text/plain", text=f"{word} it is, said {who.user}."
            )
        )


async def erase(memory, identities, tenant, **fields):
    async with testing.dialer("orchestrator", {"memory": memory.address}) as dialer:
        stub = memory_pb2_grpc.MemoryServiceStub(dialer.channel("memory"))
        with testing.calling(identities, testing.principal_of(tenant, "erasure", scopes=["admin"])):
            answer = await stub.EraseSubject(memory_pb2.EraseSubjectRequest(idempotency_key="e", **fields))
    return {entry.kind: entry.count for entry in answer.erased}


@pytest.mark.parametrize("encrypted", [False, True])
async def test_an_erased_user_is_in_no_record_and_no_vector(identities, state_url, milvus_uri, llm, keys_file, encrypted):
    tenant = f"erasure-{encrypted}"
    ana, bob = testing.principal_of(tenant, "ana"), testing.principal_of(tenant, "bob")
    options = {"envelope_keys_file": keys_file} if encrypted else {}
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address, **options) as memory:
        await fill(memory, identities, ana, SECRET)
        await fill(memory, identities, bob, "haddock")
        if not encrypted:
            assert await holding(state_url, SECRET)
        counts = await erase(memory, identities, tenant, user="ana")
        assert counts == {"sessions": 1, "memories": 1, "documents": 1, "replayable_answers": 1}
        assert not any((await erase(memory, identities, tenant, user="ana")).values())
        assert await holding(state_url, SECRET) == []
        assert await holding(state_url, '"ana"') == []
        with testing.calling(identities, ana):
            assert not (await memory.memories.ListMemories(memory_pb2.ListMemoriesRequest())).memories
            found = await memory.sessions.Recall(
                memory_pb2.RecallRequest(session_id="s-ana", query=SECRET, include_memories=True, include_documents=True)
            )
            assert SECRET not in str(found)
        with testing.calling(identities, bob):
            found = await memory.sessions.Recall(
                memory_pb2.RecallRequest(session_id="s-bob", query="haddock", include_memories=True, include_documents=True)
            )
            assert sorted({part.kind for part in found.parts}) == [
                memory_pb2.RECALL_KIND_RECENT_TURN, memory_pb2.RECALL_KIND_MEMORY, memory_pb2.RECALL_KIND_DOCUMENT,
            ]  # fmt: skip
            with pytest.raises(PermissionDenied):
                async with testing.dialer("orchestrator", {"memory": memory.address}) as dialer:
                    with testing.calling(identities, testing.principal_of(tenant, "bob", scopes=["memories:write"])):
                        stub = memory_pb2_grpc.MemoryServiceStub(dialer.channel("memory"))
                        await stub.EraseSubject(memory_pb2.EraseSubjectRequest(user="ana"))
        # Whoever brings a document of that name anew gets a version that was never there.
        with testing.calling(identities, bob):
            anew = memory_pb2.IngestDocumentRequest(document_id=f"d-{SECRET}", title="new", content_type="text/plain", text="another")
            assert [(await memory.documents.IngestDocument(anew)).document.version for _ in range(2)] == [2, 2]


async def test_encrypted_records_are_read_beside_plain_ones_and_are_nowhere_in_the_store(identities, state_url, milvus_uri, llm, keys_file):
    who = testing.principal_of("mixed", "ana")
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address) as memory:
        with testing.calling(identities, who):
            turn = memory_pb2.Turn(run_id="r1", user_text="plainword", assistant_text="ok")
            await memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id="s", turns=[turn]))
            await memory.memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text="a plainword")]))
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address, envelope_keys_file=keys_file) as memory:
        with testing.calling(identities, who):
            turn = memory_pb2.Turn(run_id="r2", user_text=SECRET, assistant_text="ok")
            await memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id="s", turns=[turn]))
            await memory.memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text=f"is {SECRET}")]))
            listed = (await memory.memories.ListMemories(memory_pb2.ListMemoriesRequest())).memories
            assert sorted(m.text for m in listed) == ["a plainword", f"is {SECRET}"]
            found = await memory.sessions.Recall(memory_pb2.RecallRequest(session_id="s", query="nothing"))
            assert [part.text for part in found.parts] == ["plainword", SECRET]
    assert await holding(state_url, SECRET) == []
