"""Proto to domain and back, nothing else."""

import hashlib
import re
import time
from datetime import UTC, datetime

from bulkhead.common.v1 import common_pb2
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import FieldViolation, InvalidInput
from services.common.idempotency import check_key
from services.common.rpc.context import principal
from services.memory import checks
from services.memory.degradation import Degradation
from services.memory.documents import NewDocument, ScoredPassage, TenantDocuments
from services.memory.erasure import Erasure
from services.memory.memories import LongTermMemories, Scored
from services.memory.once import Once
from services.memory.ports import NEVER_MS, DocumentRecord, MemoryRecord, Turn
from services.memory.recall import Context, Recall, Wanted, score_of
from services.memory.sessions import SessionWindows

MAX_TOKEN_BUDGET = 1_000_000
DEFAULT_IMPORTANCE = 0.5
LONGEST_SLUG = 100
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._-]+")


def _time(ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp


def _milliseconds(field: str, stamp: Timestamp) -> int:
    try:
        moment = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInput.field(field, "is not a time") from error
    if moment.year < 1970 or moment >= datetime(9999, 12, 31, tzinfo=UTC):
        raise InvalidInput.field(field, "must be from 1970 to 9999")
    return stamp.ToMilliseconds()


def _warnings(lost: tuple[Degradation, ...]) -> list[common_pb2.Warning]:
    return [
        common_pb2.Warning(code=d.code, capability_lost=d.capability_lost, fallback=d.fallback, user_message=d.user_message) for d in lost
    ]


def _citation(found: ScoredPassage, citation_id: str) -> common_pb2.Citation:
    return common_pb2.Citation(
        citation_id=citation_id,
        document_id=found.hit.document_id,
        document_version=found.hit.document_version,
        title=found.title,
        char_start=found.hit.char_start,
        char_end=found.hit.char_end,
        content_hash=found.hit.content_hash,
        heading=found.hit.heading,
    )


class SessionServicer(memory_pb2_grpc.SessionServiceServicer):
    """A session is its user's own; Recall looks further only as far as the caller's scopes go."""

    def __init__(self, sessions: SessionWindows, recall: Recall, once: Once, default_tokens: int) -> None:
        self._sessions = sessions
        self._recall = recall
        self._once = once
        self._default_tokens = default_tokens

    async def AppendTurns(self, request, context):
        """See memory.proto."""
        session = checks.identifier("session_id", request.session_id)
        if not 1 <= len(request.turns) <= checks.MAX_TURNS:
            raise InvalidInput.field("turns", f"must hold 1 to {checks.MAX_TURNS} turns")
        turns = [_turn(f"turns[{position}]", turn) for position, turn in enumerate(request.turns)]
        count = await self._sessions.append(principal(), session, turns, check_key(request.idempotency_key))
        return memory_pb2.AppendTurnsResponse(window_turns=count)

    async def GetSession(self, request, context):
        """See memory.proto."""
        turns = await self._sessions.get(principal(), checks.identifier("session_id", request.session_id))
        return memory_pb2.GetSessionResponse(
            turns=[
                memory_pb2.Turn(
                    run_id=turn.run_id,
                    user_text=turn.user_text,
                    assistant_text=turn.assistant_text,
                    ended_at=_time(turn.ended_ms),
                    tool_calls_json=turn.tool_calls_json,
                )
                for turn in turns
            ]
        )

    async def ResetSession(self, request, context):
        """See memory.proto."""
        session = checks.identifier("session_id", request.session_id)
        check_key(request.idempotency_key)
        ended_before_ms = 0
        if request.HasField("ended_before"):
            ended_before_ms = request.ended_before.ToMilliseconds()
            if ended_before_ms <= 0:
                raise InvalidInput.field("ended_before", "must be a time after 1970")
        who = principal()

        async def work() -> memory_pb2.ResetSessionResponse:
            return memory_pb2.ResetSessionResponse(forgotten_turns=await self._sessions.reset(who, session, ended_before_ms))

        return await self._once(who, "ResetSession", request, memory_pb2.ResetSessionResponse, work)

    async def ReplaceSession(self, request, context):
        """See memory.proto. Its number keeps it from being made twice, so the key needs no record."""
        session = checks.identifier("session_id", request.session_id)
        check_key(request.idempotency_key)
        if len(request.turns) > checks.MAX_TURNS:
            raise InvalidInput.field("turns", f"must hold at most {checks.MAX_TURNS} turns")
        if len(request.forgotten_run_ids) > checks.MAX_FORGOTTEN:
            raise InvalidInput.field("forgotten_run_ids", f"must hold at most {checks.MAX_FORGOTTEN:,} ids")
        turns = [_turn(f"turns[{position}]", turn) for position, turn in enumerate(request.turns)]
        forgotten = [checks.identifier(f"forgotten_run_ids[{position}]", run) for position, run in enumerate(request.forgotten_run_ids)]
        if request.as_of < 0:
            raise InvalidInput.field("as_of", "must not be negative")
        count = await self._sessions.replace(principal(), session, turns, forgotten, request.as_of)
        return memory_pb2.ReplaceSessionResponse(window_turns=count)

    async def DeleteSession(self, request, context):
        """See memory.proto. Done twice it is the same, so the key needs no record."""
        session = checks.identifier("session_id", request.session_id)
        check_key(request.idempotency_key)
        return memory_pb2.DeleteSessionResponse(deleted_turns=await self._sessions.delete(principal(), session))

    async def Recall(self, request, context):
        """See memory.proto."""
        if not 0 <= request.token_budget <= MAX_TOKEN_BUDGET:
            raise InvalidInput.field("token_budget", f"must be from 0 to {MAX_TOKEN_BUDGET:,}")
        wanted = Wanted(
            session_id=checks.identifier("session_id", request.session_id),
            query=request.query,
            token_budget=request.token_budget or self._default_tokens,
            memories=request.include_memories,
            documents=request.include_documents,
        )
        found = await self._recall(principal(), wanted)
        return memory_pb2.RecallResponse(parts=_parts(found), warnings=_warnings(found.lost), token_count=found.token_count)


def _turn(field: str, turn: memory_pb2.Turn) -> Turn:
    size = len(turn.user_text.encode()) + len(turn.assistant_text.encode()) + len(turn.tool_calls_json)
    if size > checks.MAX_TURN_BYTES:
        raise InvalidInput.field(field, f"must be at most {checks.MAX_TURN_BYTES:,} bytes")
    return Turn(
        run_id=checks.identifier(f"{field}.run_id", turn.run_id),
        user_text=turn.user_text,
        assistant_text=turn.assistant_text,
        ended_ms=_milliseconds(f"{field}.ended_at", turn.ended_at) if turn.HasField("ended_at") else int(time.time() * 1000),
        tool_calls_json=turn.tool_calls_json,
    )


def _parts(found: Context) -> list[memory_pb2.RecallPart]:
    parts = [
        memory_pb2.RecallPart(
            kind=memory_pb2.RECALL_KIND_RECENT_TURN,
            text=turn.user_text,
            assistant_text=turn.assistant_text,
            source_id=turn.run_id,
            created_at=_time(turn.ended_ms),
        )
        for turn in found.turns
    ]
    cited = 0
    for hit in found.hits:
        if isinstance(hit, Scored):
            kind, record = memory_pb2.RECALL_KIND_MEMORY, hit.record
            part = memory_pb2.RecallPart(kind=kind, text=record.text, source_id=record.memory_id, created_at=_time(record.created_ms))
        else:
            cited += 1
            kind = memory_pb2.RECALL_KIND_DOCUMENT
            part = memory_pb2.RecallPart(kind=kind, text=hit.hit.text, citation=_citation(hit, f"c{cited}"))
        part.score = score_of(hit)
        parts.append(part)
    return parts


class MemoryServicer(memory_pb2_grpc.MemoryServiceServicer):
    """Scopes memories:read and memories:write."""

    def __init__(self, memories: LongTermMemories, once: Once, erasure: Erasure) -> None:
        self._memories = memories
        self._erasure = erasure
        self._once = once

    async def AddMemories(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("memories:write")
        check_key(request.idempotency_key)
        if not 1 <= len(request.memories) <= checks.MAX_MEMORIES:
            raise InvalidInput.field("memories", f"must hold 1 to {checks.MAX_MEMORIES} memories")
        # Checked before the claim on the key: a call with wrong fields has no effect that could be repeated.
        records = [_new_memory(f"memories[{position}]", memory) for position, memory in enumerate(request.memories)]

        async def work() -> memory_pb2.AddMemoriesResponse:
            stored = await self._memories.add(who, records, request.idempotency_key)
            return memory_pb2.AddMemoriesResponse(memories=[_memory(record) for record in stored])

        return await self._once(who, "AddMemories", request, memory_pb2.AddMemoriesResponse, work)

    async def SearchMemories(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("memories:read")
        query = checks.text("query", request.query, checks.MAX_QUERY_CHARS)
        found, lost = await self._memories.search(who, query, checks.page_size(request.page_size, 10, 100))
        return memory_pb2.SearchMemoriesResponse(memories=[_memory(hit.record, hit.score) for hit in found], warnings=_warnings(lost))

    async def GetMemory(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("memories:read")
        return memory_pb2.GetMemoryResponse(
            memory=_memory(await self._memories.get(who, checks.identifier("memory_id", request.memory_id)))
        )

    async def ListMemories(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("memories:read")
        size = checks.page_size(request.page_size, 100, 1_000)
        found, more = await self._memories.page(who, size, checks.after(request.page_token))
        token = checks.page_token((found[-1].created_ms, found[-1].memory_id)) if more else ""
        return memory_pb2.ListMemoriesResponse(memories=[_memory(record) for record in found], next_page_token=token)

    async def DeleteMemory(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("memories:write")
        memory_id = checks.identifier("memory_id", request.memory_id)
        check_key(request.idempotency_key)

        async def work() -> memory_pb2.DeleteMemoryResponse:
            await self._memories.delete(who, memory_id)
            return memory_pb2.DeleteMemoryResponse()

        return await self._once(who, "DeleteMemory", request, memory_pb2.DeleteMemoryResponse, work)

    async def EraseSubject(self, request, context):
        """See memory.proto. Doing it again is harmless, so the key needs no record."""
        who = principal()
        who.require("admin")
        check_key(request.idempotency_key)
        if not request.user:
            raise InvalidInput.field("user", "is required")
        if len(request.session_ids) > checks.MAX_ERASED_SESSIONS:
            raise InvalidInput.field("session_ids", f"must hold at most {checks.MAX_ERASED_SESSIONS} sessions")
        erased = await self._erasure(who.tenant, request.user, list(request.session_ids))
        return memory_pb2.EraseSubjectResponse(erased=[memory_pb2.ErasedKind(kind=kind, count=count) for kind, count in erased])


def _new_memory(field: str, memory: memory_pb2.NewMemory) -> MemoryRecord:
    now_ms = int(time.time() * 1000)
    expires_ms = NEVER_MS
    if memory.HasField("expires_at"):
        expires_ms = _milliseconds(f"{field}.expires_at", memory.expires_at)
        if expires_ms <= now_ms:
            raise InvalidInput.field(f"{field}.expires_at", "is in the past")
    return MemoryRecord(
        memory_id="",
        text=checks.text(f"{field}.text", memory.text, checks.MAX_MEMORY_CHARS),
        importance=checks.share(f"{field}.importance", memory.importance, DEFAULT_IMPORTANCE),
        kind=checks.one_of(f"{field}.kind", memory.kind or "fact", checks.MEMORY_KINDS),
        session_id=checks.identifier(f"{field}.session_id", memory.session_id) if memory.session_id else "",
        created_ms=now_ms,
        expires_ms=expires_ms,
    )


def _memory(record: MemoryRecord, score: float = 0.0) -> memory_pb2.Memory:
    return memory_pb2.Memory(
        memory_id=record.memory_id,
        text=record.text,
        importance=record.importance,
        kind=record.kind,
        session_id=record.session_id,
        created_at=_time(record.created_ms),
        expires_at=_time(record.expires_ms) if record.expires_ms < NEVER_MS else None,
        score=score,
    )


class DocumentServicer(memory_pb2_grpc.DocumentServiceServicer):
    """Scopes documents:read and documents:write. Documents are the tenant's: all of its users see them."""

    def __init__(self, documents: TenantDocuments, once: Once) -> None:
        self._documents = documents
        self._once = once

    async def IngestDocument(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("documents:write")
        check_key(request.idempotency_key)
        document = _new_document(request)

        async def work() -> memory_pb2.IngestDocumentResponse:
            record, changed = await self._documents.ingest(who, document)
            return memory_pb2.IngestDocumentResponse(document=_document(record), changed=changed)

        return await self._once(who, "IngestDocument", request, memory_pb2.IngestDocumentResponse, work)

    async def ListDocuments(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("documents:read")
        size = checks.page_size(request.page_size, 100, 1_000)
        found, more = await self._documents.page(who, size, checks.after(request.page_token))
        token = checks.page_token((found[-1].created_ms, found[-1].document_id)) if more else ""
        return memory_pb2.ListDocumentsResponse(documents=[_document(record) for record in found], next_page_token=token)

    async def DeleteDocument(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("documents:write")
        document_id = checks.document_id("document_id", request.document_id)
        check_key(request.idempotency_key)

        async def work() -> memory_pb2.DeleteDocumentResponse:
            return memory_pb2.DeleteDocumentResponse(deleted_chunks=await self._documents.delete(who, document_id))

        return await self._once(who, "DeleteDocument", request, memory_pb2.DeleteDocumentResponse, work)

    async def SearchDocuments(self, request, context):
        """See memory.proto."""
        who = principal()
        who.require("documents:read")
        query = checks.text("query", request.query, checks.MAX_QUERY_CHARS)
        if len(request.document_ids) > checks.MAX_DOCUMENT_IDS:
            raise InvalidInput.field("document_ids", f"must hold at most {checks.MAX_DOCUMENT_IDS} ids")
        ids = [checks.document_id(f"document_ids[{position}]", value) for position, value in enumerate(request.document_ids)]
        found, lost = await self._documents.search(who, query, checks.page_size(request.page_size, 5, 50), ids)
        passages = [
            memory_pb2.Passage(
                text=passage.hit.text,
                # Another letter than Recall's, as both may be cited in one turn.
                citation=_citation(passage, f"d{number}"),
                score=passage.fused.score,
                dense_rank=passage.fused.ranks.get("dense", 0),
                keyword_rank=passage.fused.ranks.get("keyword", 0),
            )
            for number, passage in enumerate(found, start=1)
        ]
        return memory_pb2.SearchDocumentsResponse(passages=passages, warnings=_warnings(lost))


def _new_document(request: memory_pb2.IngestDocumentRequest) -> NewDocument:
    violations = []
    if not request.text.strip():
        violations.append(FieldViolation("text", "is required"))
    elif len(request.text.encode()) > checks.MAX_DOCUMENT_BYTES:
        violations.append(FieldViolation("text", f"must be at most {checks.MAX_DOCUMENT_BYTES:,} bytes"))
    if len(request.title) > checks.MAX_TITLE_CHARS or not request.title.isprintable():
        violations.append(FieldViolation("title", f"must be at most {checks.MAX_TITLE_CHARS} printable characters"))
    if not request.title.strip() and not request.document_id:
        violations.append(FieldViolation("title", "is required when document_id is empty"))
    if request.content_type not in checks.CONTENT_TYPES:
        violations.append(FieldViolation("content_type", f"must be one of {', '.join(checks.CONTENT_TYPES)}"))
    if violations:
        raise InvalidInput("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)
    document_id = checks.document_id("document_id", request.document_id) if request.document_id else _id_of_title(request.title)
    return NewDocument(document_id, request.title or document_id, request.content_type, request.text)


def _id_of_title(title: str) -> str:
    slug = _NOT_IN_ID.sub("-", title).strip("-")[:LONGEST_SLUG]
    # Two titles must not meet in one slug; a title that is a slug already stays readable.
    return slug if slug == title else f"{slug or 'document'}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def _document(record: DocumentRecord) -> memory_pb2.Document:
    return memory_pb2.Document(
        document_id=record.document_id,
        version=record.version,
        title=record.title,
        content_type=record.content_type,
        chunk_count=record.chunk_count,
        size_bytes=record.size_bytes,
        content_hash=record.content_hash,
        created_at=_time(record.created_ms),
    )
