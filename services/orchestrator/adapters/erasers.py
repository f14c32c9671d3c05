"""EraseSubject of the services behind the orchestrator, over gRPC."""

from collections.abc import Mapping, Sequence

from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc

from services.common.rpc.channel import Dialer


class Erasers:
    """SubjectEraser over gRPC."""

    def __init__(self, dialer: Dialer) -> None:
        self._llm = llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway"))
        self._tools = tools_pb2_grpc.ToolServiceStub(dialer.channel("tool_executor"))
        self._memory = memory_pb2_grpc.MemoryServiceStub(dialer.channel("memory"))

    async def erase(self, service: str, user: str, key: str, sessions: Sequence[str]) -> Mapping[str, int]:
        """As SubjectEraser.erase."""
        if service == "llm_gateway":
            answer = await self._llm.EraseSubject(llm_pb2.EraseSubjectRequest(user=user, idempotency_key=key))
        elif service == "tool_executor":
            answer = await self._tools.EraseSubject(tools_pb2.EraseSubjectRequest(user=user, idempotency_key=key))
        else:
            request = memory_pb2.EraseSubjectRequest(user=user, idempotency_key=key, session_ids=sessions)
            answer = await self._memory.EraseSubject(request)
        return {entry.kind: entry.count for entry in answer.erased}
