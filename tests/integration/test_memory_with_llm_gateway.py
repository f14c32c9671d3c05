"""Memory and the real llm_gateway with WordLlama embeddings: the platform's own design text answers a question."""

from pathlib import Path

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.llm_gateway.app import build as build_llm_gateway
from services.llm_gateway.settings import Settings as LlmGatewaySettings
from services.memory import fakes

README = (Path(testing.ROOT) / "docs" / "memory.md").read_text(encoding="utf-8")
CONFIG = Path(testing.ROOT) / "k8s" / "environments" / "local" / "config"


@pytest.fixture
async def memory(identities, state_url, milvus_uri, monkeypatch):
    monkeypatch.setenv("BULKHEAD_SIMULATOR_URL", "http://127.0.0.1:9/v1")
    port = testing.free_port()
    settings = LlmGatewaySettings(
        grpc_port=port, metrics_port=0, state_url=state_url, config_dir=CONFIG, drain_grace_s=0.5, **identities.settings("llm_gateway")
    )
    async with testing.running(settings, build_llm_gateway):
        async with fakes.memory_service(
            identities, state_url, milvus_uri, f"127.0.0.1:{port}", query_embedding_timeout_s=20, embedding_model="embedding-default"
        ) as running:
            yield running


async def test_a_real_document_answers_by_meaning_with_an_exact_citation(memory, identities):
    with testing.calling(identities, testing.principal_of("real"), timeout_s=120):
        stored = await memory.documents.IngestDocument(
            memory_pb2.IngestDocumentRequest(title="memory.md", content_type="text/markdown", text=README)
        )
        assert stored.document.document_id == "memory.md"
        assert stored.document.chunk_count > 3
        found = await memory.documents.SearchDocuments(
            memory_pb2.SearchDocumentsRequest(query="what happens to a reader while a document is being replaced?")
        )
        assert not found.warnings
        assert any(passage.dense_rank for passage in found.passages)
        assert any("Documents" in passage.citation.heading for passage in found.passages[:3])
        for passage in found.passages:
            assert README[passage.citation.char_start : passage.citation.char_end] == passage.text
        await memory.memories.AddMemories(
            memory_pb2.AddMemoriesRequest(memories=[memory_pb2.NewMemory(text="The user's dog is called Barnaby and loves the sea.")])
        )
        recalled = await memory.sessions.Recall(
            memory_pb2.RecallRequest(session_id="s", query="what is the name of my pet?", include_memories=True)
        )
        assert [part.text for part in recalled.parts] == ["The user's dog is called Barnaby and loves the sea."]
