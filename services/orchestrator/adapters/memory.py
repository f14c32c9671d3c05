"""Memory over gRPC."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc

from services.common.errors import NotFound
from services.common.rpc.channel import Dialer
from services.orchestrator.adapters.llm import warned
from services.orchestrator.adapters.tools import citation
from services.orchestrator.ports import Recalled, RecalledPart

_KINDS = {
    memory_pb2.RECALL_KIND_RECENT_TURN: "turn",
    memory_pb2.RECALL_KIND_MEMORY: "memory",
    memory_pb2.RECALL_KIND_DOCUMENT: "document",
}


class MemoryService:
    """The memory service."""

    def __init__(self, dialer: Dialer) -> None:
        channel = dialer.channel("memory")
        self._sessions = memory_pb2_grpc.SessionServiceStub(channel)
        self._memories = memory_pb2_grpc.MemoryServiceStub(channel)

    async def recall(self, session_id: str, query: str, token_budget: int, documents: bool, memories: bool, run_id: str) -> Recalled:
        """As ports.Memory.recall."""
        answer = await self._sessions.Recall(
            memory_pb2.RecallRequest(
                session_id=session_id,
                query=query,
                token_budget=token_budget,
                include_documents=documents,
                include_memories=memories,
                run_id=run_id,
            )
        )
        parts = [
            RecalledPart(_KINDS[p.kind], p.text, p.assistant_text, p.source_id, citation(p.citation) if p.HasField("citation") else {})
            for p in answer.parts
            if p.kind in _KINDS
        ]
        return Recalled(parts, [warned(w) for w in answer.warnings])

    async def reset_session(self, session_id: str, ended_before_ms: int, key: str) -> bool:
        """As ports.Memory.reset_session."""
        request = memory_pb2.ResetSessionRequest(session_id=session_id, idempotency_key=key)
        request.ended_before.FromMilliseconds(ended_before_ms)
        try:
            await self._sessions.ResetSession(request)
        except NotFound:
            return False
        return True

    async def append_turn(self, session_id: str, turn: Mapping[str, Any], key: str) -> None:
        """As ports.Memory.append_turn."""
        request = memory_pb2.AppendTurnsRequest(session_id=session_id, turns=[_turn(turn)], idempotency_key=key)
        await self._sessions.AppendTurns(request)

    async def replace_session(self, session_id: str, turns: Sequence[Mapping[str, Any]], forgotten: Sequence[str], as_of: int) -> None:
        """As threads.ports.Sessions.replace_session."""
        request = memory_pb2.ReplaceSessionRequest(
            session_id=session_id, turns=[_turn(turn) for turn in turns], forgotten_run_ids=forgotten, as_of=as_of
        )
        await self._sessions.ReplaceSession(request)

    async def delete_session(self, session_id: str, key: str) -> None:
        """As threads.ports.Sessions.delete_session."""
        await self._sessions.DeleteSession(memory_pb2.DeleteSessionRequest(session_id=session_id, idempotency_key=key))

    async def add_memory(self, session_id: str, text: str, importance: float, key: str) -> None:
        """As ports.Memory.add_memory."""
        memory = memory_pb2.NewMemory(text=text, importance=importance, kind="fact", session_id=session_id)
        await self._memories.AddMemories(memory_pb2.AddMemoriesRequest(memories=[memory], idempotency_key=key))


def _turn(turn: Mapping[str, Any]) -> memory_pb2.Turn:
    message = memory_pb2.Turn(
        run_id=turn["run_id"], user_text=turn["user_text"], assistant_text=turn["assistant_text"],
        tool_calls_json=orjson.dumps(turn["tool_calls"]),
    )  # fmt: skip
    message.ended_at.FromMilliseconds(turn["ended_ms"])
    return message
