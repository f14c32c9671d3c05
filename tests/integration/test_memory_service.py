"""The memory service over real gRPC, Valkey and Milvus Lite; embeddings come from a fake llm_gateway."""

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied
from services.memory import fakes

GUIDE = """# Lanterns

Lanterns are lit at dusk by the harbour master.

## Oil

Each lantern burns whale oil, about two litres a night.

| lantern | litres |
|---|---|
| north | 2 |
| south | 3 |

## 数据库

灯塔的记录保存在数据库里。
"""


@pytest.fixture
async def llm(identities):
    async with fakes.fake_llm(identities) as (fake, address):
        fake.address = address
        yield fake


@pytest.fixture
async def memory(identities, state_url, milvus_uri, llm):
    async with fakes.memory_service(identities, state_url, milvus_uri, llm.address) as running:
        yield running


def ingest(document_id="guide", text=GUIDE, title="Guide", content_type="text/markdown", key=""):
    return memory_pb2.IngestDocumentRequest(document_id=document_id, title=title, content_type=content_type, text=text, idempotency_key=key)


def turn(run_id, user="hello", assistant="hi", tools=b""):
    return memory_pb2.Turn(run_id=run_id, user_text=user, assistant_text=assistant, tool_calls_json=tools)


async def test_recall_brings_turns_memories_and_cited_passages_together(memory, identities):
    with testing.calling(identities, testing.principal_of("recall-a")):
        await memory.documents.IngestDocument(ingest())
        await memory.memories.AddMemories(
            memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text="The user sails a boat named Lantern Rose")])
        )
        await memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id="s", turns=[turn("r1", "my lantern is north", "noted")]))
        found = await memory.sessions.Recall(
            memory_pb2.RecallRequest(
                session_id="s", query="how much oil burns a lantern", include_documents=True, include_memories=True, token_budget=2000
            )
        )
    kinds = [part.kind for part in found.parts]
    assert kinds[0] == memory_pb2.RECALL_KIND_RECENT_TURN
    assert found.parts[0].text == "my lantern is north"
    assert found.parts[0].source_id == "r1"
    assert memory_pb2.RECALL_KIND_MEMORY in kinds
    documents = [part for part in found.parts if part.kind == memory_pb2.RECALL_KIND_DOCUMENT]
    assert [part.citation.citation_id for part in documents] == [f"c{n}" for n in range(1, len(documents) + 1)]
    best = documents[0]
    assert "whale oil" in best.text
    assert best.citation.heading == "Lanterns > Oil"
    assert best.citation.title == "Guide"
    assert GUIDE[best.citation.char_start : best.citation.char_end] == best.text
    scores = [part.score for part in found.parts[1:]]
    assert scores == sorted(scores, reverse=True)
    assert not found.warnings
    assert found.token_count > 0


async def test_han_text_is_found_by_keyword_alone(memory, identities, llm):
    with testing.calling(identities, testing.principal_of("han")):
        await memory.documents.IngestDocument(ingest())
        llm.down = True
        found = await memory.documents.SearchDocuments(memory_pb2.SearchDocumentsRequest(query="数据库"))
    assert found.passages[0].citation.heading == "Lanterns > 数据库"
    assert found.passages[0].keyword_rank == 1
    assert found.passages[0].dense_rank == 0
    assert [warning.code for warning in found.warnings] == ["embeddings_unavailable"]
