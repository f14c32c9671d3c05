"""Composition root of the memory service."""

from functools import partial

from bulkhead.llm.v1 import llm_pb2_grpc
from bulkhead.memory.v1 import memory_pb2_grpc

from services.common.envelope import opened_envelope
from services.common.idempotency import IdempotencyStore
from services.common.identity import Minter, Verifier
from services.common.rpc.addresses import Addresses
from services.common.rpc.channel import Dialer
from services.common.rpc.server import Service
from services.common.settings import StartRefused
from services.common.valkey import connect, ping, refuse_shards
from services.memory.adapters.llm_embeddings import LlmEmbeddings
from services.memory.adapters.milvus_client import MilvusConnection
from services.memory.adapters.milvus_index import MilvusIndex
from services.memory.adapters.valkey_documents import ValkeyDocuments
from services.memory.adapters.valkey_memories import ValkeyMemories
from services.memory.adapters.valkey_sessions import ValkeySessions
from services.memory.adapters.valkey_work import ValkeyWork
from services.memory.documents import TenantDocuments
from services.memory.erasure import Erasure
from services.memory.memories import LongTermMemories
from services.memory.once import Once
from services.memory.recall import Recall
from services.memory.search import HybridSearch
from services.memory.servicer import DocumentServicer, MemoryServicer, SessionServicer
from services.memory.sessions import SessionWindows
from services.memory.settings import Settings
from services.memory.upkeep import REINDEX, Upkeep


def build(settings: Settings) -> Service:
    """Wires the service. Nothing outside needs to be reachable yet; readiness tells when it is."""
    try:
        verifier = Verifier.from_file(settings.identity_keys_file)
        minter = Minter.from_file(settings.identity_signing_key_file, "memory")
    except (OSError, ValueError) as error:
        raise StartRefused([f"identity keys: {error}"]) from error
    state = connect(settings.state_url)
    dialer = Dialer("memory", Addresses(settings.addresses(), settings.address_file))
    embedder = LlmEmbeddings(
        llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway")),
        settings.embedding_model,
        settings.query_cache_entries,
        settings.query_embedding_timeout_s,
    )
    milvus = MilvusConnection(settings.milvus_uri, settings.milvus_token.get_secret_value())
    work = ValkeyWork(state)
    index = MilvusIndex(
        milvus,
        state,
        model=settings.embedding_model,
        ef=settings.search_ef,
        consistency=settings.milvus_consistency,
        search_timeout_s=settings.search_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        on_new=partial(work.intend, REINDEX, 0),
    )
    search = HybridSearch(index, embedder)
    envelope = opened_envelope(state, settings.envelope_keys_file, replicas=settings.state_replicas)
    session_store = ValkeySessions(state, settings.window_turns, settings.session_ttl_s, envelope)
    records = ValkeyMemories(state, envelope)
    memories = LongTermMemories(records, index, embedder, search, work, settings.duplicate_similarity)
    documents = TenantDocuments(ValkeyDocuments(state), index, embedder, search, work, settings.chunk_chars, settings.chunk_overlap_chars)
    upkeep = Upkeep(work, memories, documents, minter, index.maintain)
    once = Once(IdempotencyStore(state, settings.state_replicas))
    erasure = Erasure(session_store, records, documents, index, work, once, envelope, embedder)
    sessions = SessionServicer(
        SessionWindows(session_store, settings.window_tokens),
        Recall(session_store, memories, documents, search, settings.recall_top_k),
        once,
        settings.recall_tokens,
    )
    return Service(
        "memory",
        [
            partial(memory_pb2_grpc.add_SessionServiceServicer_to_server, sessions),
            partial(memory_pb2_grpc.add_MemoryServiceServicer_to_server, MemoryServicer(memories, once, erasure)),
            partial(memory_pb2_grpc.add_DocumentServiceServicer_to_server, DocumentServicer(documents, once)),
        ],
        # llm_gateway is not among them: without embeddings memory still answers, with a warning.
        checks={"state": partial(ping, state), "milvus": milvus.check},
        start=[partial(refuse_shards, state), upkeep.start],
        close=[state.aclose, milvus.close, dialer.close, upkeep.stop],
        verifier=verifier,
    )
