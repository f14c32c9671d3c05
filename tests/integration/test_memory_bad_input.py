"""Bad input to every method of the memory service is refused with the name of the field."""

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.common.errors import InvalidInput
from services.memory import fakes


@pytest.fixture
async def memory(identities, state_url, milvus_uri):
    async with fakes.fake_llm(identities) as (_, address):
        async with fakes.memory_service(identities, state_url, milvus_uri, address) as running:
            yield running


def ingest(document_id="guide", text="Some text.", title="Guide", content_type="text/markdown"):
    return memory_pb2.IngestDocumentRequest(document_id=document_id, title=title, content_type=content_type, text=text)


R, T = memory_pb2, memory_pb2.Turn(run_id="r")
MUCH = "x" * (2 * 1024 * 1024 + 1)
BAD = [
    ("sessions.AppendTurns", R.AppendTurnsRequest(turns=[T]), "session_id"),
    ("sessions.AppendTurns", R.AppendTurnsRequest(session_id="s" * 257, turns=[T]), "session_id"),
    ("sessions.AppendTurns", R.AppendTurnsRequest(session_id="a\nb", turns=[T]), "session_id"),
    ("sessions.AppendTurns", R.AppendTurnsRequest(session_id="s"), "turns"),
    ("sessions.AppendTurns", R.AppendTurnsRequest(session_id="s", turns=[R.Turn()]), "turns[0].run_id"),
    ("sessions.AppendTurns", R.AppendTurnsRequest(session_id="s", turns=[T], idempotency_key="k" * 256), "idempotency_key"),
    ("sessions.AppendTurns", R.AppendTurnsRequest(session_id="s", turns=[R.Turn(run_id="r", user_text="x" * 600_000)]), "turns[0]"),
    (
        "sessions.AppendTurns",
        R.AppendTurnsRequest(session_id="s", turns=[R.Turn(run_id="r", ended_at={"seconds": -(10**15)})]),
        "turns[0].ended_at",
    ),
    ("sessions.Recall", R.RecallRequest(query="q"), "session_id"),
    ("sessions.Recall", R.RecallRequest(session_id="s", token_budget=-1), "token_budget"),
    ("sessions.ResetSession", R.ResetSessionRequest(), "session_id"),
    ("memories.AddMemories", R.AddMemoriesRequest(), "memories"),
    ("memories.AddMemories", R.AddMemoriesRequest(memories=[R.NewMemory(text="a")] * 101), "memories"),
    ("memories.AddMemories", R.AddMemoriesRequest(memories=[R.NewMemory(text=" ")]), "memories[0].text"),
    ("memories.AddMemories", R.AddMemoriesRequest(memories=[R.NewMemory(text="x" * 8_001)]), "memories[0].text"),
    ("memories.AddMemories", R.AddMemoriesRequest(memories=[R.NewMemory(text="a", importance=2)]), "memories[0].importance"),
    ("memories.AddMemories", R.AddMemoriesRequest(memories=[R.NewMemory(text="a", importance=float("nan"))]), "memories[0].importance"),
    ("memories.AddMemories", R.AddMemoriesRequest(memories=[R.NewMemory(text="a", kind="dream")]), "memories[0].kind"),
    ("memories.AddMemories", R.AddMemoriesRequest(memories=[R.NewMemory(text="a", expires_at={"seconds": 1})]), "memories[0].expires_at"),
    ("memories.SearchMemories", R.SearchMemoriesRequest(query=" "), "query"),
    ("memories.SearchMemories", R.SearchMemoriesRequest(query="q", page_size=101), "page_size"),
    ("memories.GetMemory", R.GetMemoryRequest(), "memory_id"),
    ("memories.ListMemories", R.ListMemoriesRequest(page_size=-1), "page_size"),
    ("memories.ListMemories", R.ListMemoriesRequest(page_token="garbage"), "page_token"),
    ("memories.DeleteMemory", R.DeleteMemoryRequest(), "memory_id"),
    ("documents.IngestDocument", ingest(document_id="a b"), "document_id"),
    ("documents.IngestDocument", ingest(text=""), "text"),
    ("documents.IngestDocument", ingest(text=MUCH), "text"),
    ("documents.IngestDocument", ingest(document_id="", title=""), "title"),
    ("documents.IngestDocument", ingest(title="x" * 513), "title"),
    ("documents.IngestDocument", ingest(content_type="application/pdf"), "content_type"),
    ("documents.ListDocuments", R.ListDocumentsRequest(page_size=1_001), "page_size"),
    ("documents.ListDocuments", R.ListDocumentsRequest(page_token="é"), "page_token"),
    ("documents.DeleteDocument", R.DeleteDocumentRequest(document_id="*"), "document_id"),
    ("documents.SearchDocuments", R.SearchDocumentsRequest(query="x" * 8_001), "query"),
    ("documents.SearchDocuments", R.SearchDocumentsRequest(query="q", page_size=51), "page_size"),
    ("documents.SearchDocuments", R.SearchDocumentsRequest(query="q", document_ids=["a", '" or 1==1']), "document_ids[1]"),
]


async def test_bad_input_names_its_field(memory, identities):
    with testing.calling(identities, timeout_s=60):
        for call, request, field in BAD:
            part, method = call.split(".")
            with pytest.raises(InvalidInput) as caught:
                await getattr(getattr(memory, part), method)(request)
            assert caught.value.violations[0].field == field, (call, field)
