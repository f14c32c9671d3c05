"""Stand-ins for tests: an llm_gateway that embeds by hashing words, and the memory service wired to it."""

import hashlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from bulkhead.memory.v1 import memory_pb2_grpc

from services.common import testing
from services.common.errors import Overloaded
from services.common.rpc import context as call_context
from services.common.rpc.server import Service
from services.common.settings import ServiceSettings
from services.memory.app import build
from services.memory.settings import Settings
from services.memory.terms import segment

DIMENSION = 64


def embed(text: str, dimension: int = DIMENSION) -> list[float]:
    """A bag of hashed words of unit length: texts that share words are near each other."""
    vector = [0.0] * dimension
    for word in segment(text):
        digest = hashlib.sha256(word.encode()).digest()
        vector[int.from_bytes(digest[:4], "big") % dimension] += 1.0 if digest[4] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


@dataclass
class FakeLlm(llm_pb2_grpc.LlmServiceServicer):
    """Embeds deterministically; `down` makes it refuse, `seen` keeps (texts, call context) of each call."""

    down: bool = False
    dimension: int = DIMENSION
    seen: list[tuple[list[str], Any]] = field(default_factory=list)

    async def Embed(self, request, context):
        """See llm.proto."""
        if self.down:
            raise Overloaded("the fake is down")
        self.seen.append((list(request.texts), call_context.current()))
        embeddings = [llm_pb2.Embedding(values=embed(text, self.dimension)) for text in request.texts]
        return llm_pb2.EmbedResponse(embeddings=embeddings, model=request.model, dimension=self.dimension)


@dataclass
class Running:
    """A memory service in this loop, with stubs that dial it as the orchestrator and as the gateway may."""

    address: str
    settings: Settings
    sessions: memory_pb2_grpc.SessionServiceStub
    memories: memory_pb2_grpc.MemoryServiceStub
    documents: memory_pb2_grpc.DocumentServiceStub


@asynccontextmanager
async def fake_llm(identities: testing.Identities) -> AsyncIterator[tuple[FakeLlm, str]]:
    """A FakeLlm on a port of its own, and its address."""
    fake = FakeLlm()
    port = testing.free_port()
    add = partial(llm_pb2_grpc.add_LlmServiceServicer_to_server, fake)
    settings = ServiceSettings(grpc_port=port, drain_grace_s=0.5)
    async with testing.running(settings, lambda _: Service("llm_gateway", [add], verifier=identities.verifier)):
        yield fake, f"127.0.0.1:{port}"


@asynccontextmanager
async def memory_service(
    identities: testing.Identities, state_url: str, milvus_uri: str, llm_address: str, **overrides: Any
) -> AsyncIterator[Running]:
    """The memory service; stubs need `testing.calling`."""
    port = testing.free_port()
    values = {
        "grpc_port": port,
        "metrics_port": 0,
        "state_url": state_url,
        "milvus_uri": milvus_uri,
        "llm_gateway_address": llm_address,
        "drain_grace_s": 0.5,
        **identities.settings("memory"),
        **overrides,
    }
    settings = Settings(**values)
    address = f"127.0.0.1:{port}"
    async with (
        testing.running(settings, build),
        testing.dialer("orchestrator", {"memory": address}) as orchestrator,
        testing.dialer("gateway", {"memory": address}) as gateway,
    ):
        yield Running(
            address,
            settings,
            memory_pb2_grpc.SessionServiceStub(orchestrator.channel("memory")),
            memory_pb2_grpc.MemoryServiceStub(gateway.channel("memory")),
            memory_pb2_grpc.DocumentServiceStub(gateway.channel("memory")),
        )


@asynccontextmanager
async def raw_sessions(address: str) -> AsyncIterator[memory_pb2_grpc.SessionServiceStub]:
    """A bare stub for methods that no service of ours calls; the caller passes metadata and timeout."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield memory_pb2_grpc.SessionServiceStub(channel)
