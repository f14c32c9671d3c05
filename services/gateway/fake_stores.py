"""Memory and tools behind the gateway, small and in memory, for its tests."""

import hashlib
import re
from functools import partial
from typing import Any

from bulkhead.memory.v1 import memory_pb2 as pb
from bulkhead.memory.v1 import memory_pb2_grpc as rpc
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc

from services.common.errors import InvalidInput, NotFound
from services.common.rpc.context import principal


class FakeMemory(rpc.MemoryServiceServicer, rpc.DocumentServiceServicer):
    """Documents and memories by tenant; a search is a substring."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], tuple[pb.Document, str]] = {}
        self.memories: dict[tuple[str, str], pb.Memory] = {}

    async def IngestDocument(self, request, context):
        """As the real one."""
        made = re.sub(r"[^a-z0-9]+", "-", request.title.lower())[:64]
        document_id = request.document_id or made
        digest = hashlib.sha256(request.text.encode()).hexdigest()
        known = self.documents.get((principal().tenant, document_id))
        if known is not None and known[0].content_hash == digest:
            return pb.IngestDocumentResponse(document=known[0], changed=False)
        document = pb.Document(
            document_id=document_id, version=known[0].version + 1 if known else 1, title=request.title, content_type=request.content_type,
            chunk_count=1, size_bytes=len(request.text.encode()), content_hash=digest,
        )  # fmt: skip
        document.created_at.GetCurrentTime()
        self.documents[(principal().tenant, document_id)] = (document, request.text)
        return pb.IngestDocumentResponse(document=document, changed=True)

    async def ListDocuments(self, request, context):
        """As the real one."""
        _check(request)
        return pb.ListDocumentsResponse(documents=[d for (tenant, _), (d, _) in self.documents.items() if tenant == principal().tenant])

    async def DeleteDocument(self, request, context):
        """As the real one."""
        if self.documents.pop((principal().tenant, request.document_id), None) is None:
            raise NotFound("no such document")
        return pb.DeleteDocumentResponse(deleted_chunks=1)

    async def SearchDocuments(self, request, context):
        """As the real one."""
        found = pb.SearchDocumentsResponse()
        for (tenant, _), (document, text) in self.documents.items():
            if tenant == principal().tenant and request.query.lower() in text.lower():
                passage = found.passages.add(text=text[:200], score=1.0, dense_rank=1)
                passage.citation.document_id, passage.citation.title = document.document_id, document.title
        return found

    async def AddMemories(self, request, context):
        """As the real one."""
        answer = pb.AddMemoriesResponse()
        for new in request.memories:
            memory = pb.Memory(
                memory_id=f"mem_{len(self.memories) + 1}",
                text=new.text,
                importance=new.importance,
                kind=new.kind,
                session_id=new.session_id,
            )
            memory.created_at.GetCurrentTime()
            self.memories[(principal().tenant, memory.memory_id)] = memory
            answer.memories.append(memory)
        return answer

    async def SearchMemories(self, request, context):
        """As the real one."""
        mine = [m for (tenant, _), m in self.memories.items() if tenant == principal().tenant]
        return pb.SearchMemoriesResponse(memories=[m for m in mine if request.query.lower() in m.text.lower()])

    async def GetMemory(self, request, context):
        """As the real one."""
        return pb.GetMemoryResponse(memory=self._one(request.memory_id))

    async def ListMemories(self, request, context):
        """As the real one."""
        _check(request)
        return pb.ListMemoriesResponse(memories=[m for (tenant, _), m in self.memories.items() if tenant == principal().tenant])

    async def DeleteMemory(self, request, context):
        """As the real one."""
        self._one(request.memory_id)
        del self.memories[(principal().tenant, request.memory_id)]
        return pb.DeleteMemoryResponse()

    def _one(self, memory_id: str) -> pb.Memory:
        found = self.memories.get((principal().tenant, memory_id))
        if found is None:
            raise NotFound("no such memory")
        return found


class FakeTools(tools_pb2_grpc.ToolServiceServicer):
    """One tool."""

    async def ListTools(self, request, context):
        """As the real one."""
        _check(request)
        tool = tools_pb2.Tool(name="calculator", version="1.0.0", description="Calculates.", input_schema_json=b'{"type":"object"}')
        return tools_pb2.ListToolsResponse(tools=[tool])


def _check(request: Any) -> None:
    if request.page_token and not request.page_token.isdigit():
        raise InvalidInput.field("page_token", "is not a token of this list")


def memory_adders() -> list:
    """Add functions of a memory service."""
    fake = FakeMemory()
    return [partial(rpc.add_MemoryServiceServicer_to_server, fake), partial(rpc.add_DocumentServiceServicer_to_server, fake)]


def tool_adders() -> list:
    """Add functions of a tool executor."""
    return [partial(tools_pb2_grpc.add_ToolServiceServicer_to_server, FakeTools())]
