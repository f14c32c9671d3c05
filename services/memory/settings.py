"""Settings of the memory service."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, SecretStr

from services.common.settings import Port, PositiveSeconds, ReplicatedSettings

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(ReplicatedSettings):
    """BULKHEAD_STATE_URL=redis://valkey:6379/0        sessions, records of memories and documents
    BULKHEAD_MILVUS_URI=http://milvus:19530            vectors and keywords
    BULKHEAD_LLM_GATEWAY_ADDRESS=llm-gateway:50052     embeddings
    BULKHEAD_EMBEDDING_MODEL=embedding-default         a model of llm_gateway's registry
    """

    service_name: ClassVar[str] = "memory"

    grpc_port: Port = Field(50054, description="Port of the gRPC listener.")
    metrics_port: Port = Field(9465, description="Port of the Prometheus metrics; 0 turns them off.")
    state_url: str = Field("", description="Valkey of the kind `state`: sessions, records of memories and documents.")
    state_replicas: int = Field(
        0, ge=0, le=5, description="Replicas that must have a key of encrypted data or an idempotency record on disk (WAITAOF)."
    )
    least_state_replicas: int = Field(
        0, ge=0, le=5, description="Refuses to start with a lower BULKHEAD_STATE_REPLICAS: with a key all that it encrypts is lost."
    )
    envelope_keys_file: Path | None = Field(
        None, description="Root keys that encrypt personal data, the same for orchestrator and memory; absent: nothing is encrypted."
    )
    envelope_keys_required: bool = Field(
        False, description="Refuses to start without BULKHEAD_ENVELOPE_KEYS_FILE: personal data is not stored in plain text."
    )
    milvus_uri: str = Field("", description="Milvus or Milvus Lite server, as http(s)://host:port.")
    milvus_token: SecretStr = Field(SecretStr(""), description="Token or user:password of Milvus; empty for none.")
    milvus_consistency: str = Field(
        "Session", pattern="^(Strong|Session|Bounded|Eventually)$", description="Consistency level of new Milvus collections."
    )
    embedding_model: str = Field("embedding-default", min_length=1, description="Embedding model of llm_gateway's registry.")

    window_turns: Count = Field(5, description="Turns that a session's window keeps.")
    window_tokens: Count = Field(8_000, description="Upper bound of a session's window in GetSession, in estimated tokens.")
    session_ttl_s: PositiveSeconds = Field(7 * 24 * 3600.0, description="A session is forgotten this long after its last turn, in seconds.")
    recall_tokens: Count = Field(2_000, description="Token budget of Recall when the caller names none.")
    recall_top_k: Count = Field(3, description="Hits of each route before fusion in Recall.")
    search_ef: Count = Field(128, description="HNSW search width; recall@10 was 0.10 at 10 and 0.95 at 512 on a hard set.")
    search_timeout_s: PositiveSeconds = Field(2.0, description="Bound of one search in Milvus; past it the answer is degraded, in seconds.")
    write_timeout_s: PositiveSeconds = Field(30.0, description="Bound of one write to Milvus, in seconds.")
    query_embedding_timeout_s: PositiveSeconds = Field(2.0, description="Bound of embedding one query, in seconds.")
    query_cache_entries: Count = Field(1_024, description="Query embeddings that are remembered.")
    duplicate_similarity: Share = Field(0.92, description="Cosine similarity from which a memory may be a near-duplicate.")
    chunk_chars: Annotated[int, Field(ge=200, le=8_000)] = Field(1_000, description="Aimed length of a passage, in characters.")
    chunk_overlap_chars: Annotated[int, Field(ge=0, le=1_000)] = Field(
        150, description="Overlap of passages within one section, in characters."
    )

    def problems(self) -> list[str]:
        """Everything that keeps the service from starting."""
        found = [*super().problems(), *self.missing("state_url", "milvus_uri")]
        found += self.unreadable("identity_keys_file", "identity_signing_key_file")
        found += self.unencrypted(self.envelope_keys_file, required=self.envelope_keys_required)
        if not self.llm_gateway_address and self.address_file is None:
            found.append("BULKHEAD_LLM_GATEWAY_ADDRESS (or BULKHEAD_ADDRESS_FILE) is required")
        if self.milvus_uri and not self.milvus_uri.startswith(("http://", "https://", "tcp://")):
            found.append("BULKHEAD_MILVUS_URI must be a server as http(s)://host:port, not a local file")
        if self.chunk_overlap_chars * 2 > self.chunk_chars:
            found.append("BULKHEAD_CHUNK_OVERLAP_CHARS must be at most half of BULKHEAD_CHUNK_CHARS")
        return found
