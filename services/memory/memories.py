"""Long-term memories of a user: records in the state store are the truth, the index follows them."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from services.common.errors import BulkheadError, Cancelled, NotFound
from services.common.identity import Principal
from services.memory.degradation import Degradation
from services.memory.ports import NEVER_MS, Among, Embedder, Index, IndexUnavailable, Memories, MemoryRecord, Row, Work
from services.memory.search import HybridSearch, Query
from services.memory.terms import index_terms, query_terms, segment

# A memory that was acknowledged but not indexed is picked up by upkeep after this long, or sooner when indexing failed.
INTENT_S = 60.0
RETRY_S = 1.0
# Memories that are looked through by keyword when the index is away.
RECENT = 200
# Memories that are planned at a time when all are indexed anew.
PAGE = 200
# From this share of common terms two texts may say the same.
SAME_TERMS = 0.85
NEGATIONS = frozenset(
    (
        *("not", "no", "never", "nor", "none", "cannot", "without", "don", "doesn", "didn", "isn", "aren", "wasn", "weren", "won"),
        *("nicht", "kein", "keine", "nie", "pas", "jamais"),
    )
)
log = structlog.get_logger("bulkhead.memory.memories")


@dataclass(frozen=True, slots=True)
class Scored:
    """A memory as a search found it."""

    record: MemoryRecord
    score: float


def near_duplicate(one: str, other: str) -> bool:
    """Whether two texts say the same: nearly the same terms, and exactly the same numbers and negations.

    Embeddings alone cannot tell "the PIN is 1234" from "the PIN is 1235", and a wrong merge loses what a user said.
    """
    first, second = set(segment(one)), set(segment(other))
    if not first or not second:
        return one.split() == other.split()
    differing = first ^ second
    if any(any(c.isdigit() for c in term) or term in NEGATIONS for term in differing):
        return False
    return len(first & second) / len(first | second) >= SAME_TERMS


class LongTermMemories:
    """The use cases of MemoryService."""

    def __init__(
        self, records: Memories, index: Index, embedder: Embedder, search: HybridSearch, work: Work, duplicate_similarity: float
    ) -> None:
        self._records = records
        self._index = index
        self._embedder = embedder
        self._search = search
        self._work = work
        self._duplicate_similarity = duplicate_similarity

    async def add(self, principal: Principal, memories: Sequence[MemoryRecord], key: str) -> list[MemoryRecord]:
        """Stores memories, given without ids; a near-duplicate answers the memory that is already there.

        What is answered is durable. Where embeddings or the index are away it is indexed later.
        """
        memories = [_with_id(principal, memory, key, ordinal) for ordinal, memory in enumerate(memories)]
        vectors = await self._vectors([memory.text for memory in memories])
        # In a thread, as the first Han text loads a dictionary.
        terms = await asyncio.to_thread(lambda: [index_terms(memory.text) for memory in memories])
        stored: list[MemoryRecord] = []
        new: list[tuple[str, MemoryRecord, Row | None]] = []
        for position, memory in enumerate(memories):
            vector = vectors[position] if vectors else None
            known = await self._duplicate(principal, memory, vector)
            known = known or next((earlier for earlier in stored if near_duplicate(earlier.text, memory.text)), None)
            if known is not None:
                stored.append(known)
                continue
            ticket = await self._work.intend(_item(principal, memory.memory_id), INTENT_S)
            standing = await self._records.add(principal, memory)
            stored.append(standing)
            if standing.memory_id != memory.memory_id:
                await self._work.settle(ticket)
                continue
            if memory.expires_ms < NEVER_MS:
                ending = {**_item(principal, memory.memory_id), "at": memory.expires_ms}
                await self._work.intend(ending, max(0.0, memory.expires_ms / 1000 - time.time()))
            new.append((ticket, standing, _row(principal, standing, terms[position], vector) if vector is not None else None))
        await self._put(principal, new)
        return stored

    async def _vectors(self, texts: list[str]) -> list[Sequence[float]] | None:
        try:
            return await self._embedder.passages(texts)
        except Cancelled:
            raise
        except BulkheadError as error:
            log.warning("memories_not_embedded", reason=error.reason, memories=len(texts))
            return None

    async def _duplicate(self, principal: Principal, memory: MemoryRecord, vector: Sequence[float] | None) -> MemoryRecord | None:
        if vector is None:
            return None
        try:
            hits = await self._index.dense(Among(principal.tenant, principal.user), vector, 3)
        except IndexUnavailable:
            return None
        close = [hit.pk for hit in hits if hit.similarity >= self._duplicate_similarity]
        living = await self._records.find(principal.tenant, principal.user, close)
        return next((record for record in living.values() if near_duplicate(record.text, memory.text)), None)

    async def _put(self, principal: Principal, new: list[tuple[str, MemoryRecord, Row | None]]) -> None:
        rows = [row for _, _, row in new if row is not None]
        if not new:
            return
        try:
            if not rows:
                raise IndexUnavailable("no embeddings")
            await self._index.upsert(await self._index.collection(len(rows[0].dense)), rows)
        except IndexUnavailable as error:
            log.warning("memories_not_indexed", reason=str(error), memories=len(new))
            await asyncio.gather(*(self._work.intend(_item(principal, record.memory_id), RETRY_S) for _, record, _ in new))
            return
        await asyncio.gather(*(self._work.settle(ticket) for ticket, _, _ in new))

    async def converge(self, principal: Principal, memory_id: str) -> None:
        """Makes the index agree with the record. Raises what embeddings and the index raise; safe to repeat."""
        living = (await self._records.find(principal.tenant, principal.user, [memory_id])).get(memory_id)
        if living is not None:
            vector = (await self._embedder.passages([living.text]))[0]
            terms = await asyncio.to_thread(index_terms, living.text)
            await self._index.upsert(await self._index.collection(len(vector)), [_row(principal, living, terms, vector)])
            living = (await self._records.find(principal.tenant, principal.user, [memory_id])).get(memory_id)
        if living is None:
            await self._records.remove(principal.tenant, principal.user, memory_id)
            await self._index.delete_memory(principal.tenant, memory_id)

    async def reindex(self) -> int:
        """Plans the indexing of every memory there is: for a collection that is new, as after a change of the model."""
        planned, cursor = 0, 0
        while True:
            cursor, owners = await self._records.owners(cursor)
            for owner in owners:
                after, more = None, True
                while more:
                    page, more = await self._records.page(owner.tenant, owner.user, PAGE, after)
                    await asyncio.gather(*(self._work.intend(_item(owner, record.memory_id), RETRY_S) for record in page))
                    after = (page[-1].created_ms, page[-1].memory_id) if page else None
                    planned += len(page)
            if not cursor:
                return planned

    async def search(self, principal: Principal, text: str, limit: int) -> tuple[list[Scored], tuple[Degradation, ...]]:
        """The best memories by meaning and keyword."""
        query = await self._search.prepare(text)
        found, lost = await self.find(principal, text, query, max(limit, 10))
        return found[:limit], lost

    async def find(self, principal: Principal, text: str, query: Query, depth: int) -> tuple[list[Scored], tuple[Degradation, ...]]:
        """As `search`, for a prepared query and with every result of routes of `depth`."""
        found = await self._search.find(Among(principal.tenant, principal.user), query, depth)
        if found.unavailable:
            return await self._recent(principal, text, depth), found.lost
        records = await self._records.find(principal.tenant, principal.user, list(found.rows()))
        fused = found.only(set(records)).fused("memory")
        return [Scored(records[result.key], result.score) for result in fused], found.lost

    async def _recent(self, principal: Principal, text: str, limit: int) -> list[Scored]:
        """Without the index: recent memories that share terms with the query, by how many."""
        wanted = set((await asyncio.to_thread(query_terms, text)).split())
        records, _ = await self._records.page(principal.tenant, principal.user, RECENT, None)
        shared = [(len(wanted & set(index_terms(record.text).split())), record) for record in records]
        best = sorted(((n, record) for n, record in shared if n), key=lambda entry: -entry[0])[:limit]
        return [Scored(record, n / (len(wanted) or 1) / 100) for n, record in best]

    async def get(self, principal: Principal, memory_id: str) -> MemoryRecord:
        """One memory. Raises NotFound."""
        found = await self._records.find(principal.tenant, principal.user, [memory_id])
        if memory_id not in found:
            raise NotFound("no such memory")
        return found[memory_id]

    async def page(self, principal: Principal, size: int, after: tuple[int, str] | None) -> tuple[list[MemoryRecord], bool]:
        """Newest first, and whether there are more."""
        return await self._records.page(principal.tenant, principal.user, size, after)

    async def count(self, principal: Principal) -> int:
        """How many memories the user has."""
        return await self._records.count(principal.tenant, principal.user)

    async def delete(self, principal: Principal, memory_id: str) -> None:
        """Deletes a memory: hidden at once, its row removed now or by upkeep. Raises NotFound."""
        item = _item(principal, memory_id)
        await self.get(principal, memory_id)
        ticket = await self._work.intend(item, INTENT_S, removes=True)
        await self._records.remove(principal.tenant, principal.user, memory_id)
        try:
            await self._index.delete_memory(principal.tenant, memory_id)
        except IndexUnavailable:
            await self._work.intend(item, RETRY_S, removes=True)
            return
        await self._work.settle(ticket)


def _with_id(principal: Principal, memory: MemoryRecord, key: str, ordinal: int) -> MemoryRecord:
    # A call that is repeated after a crash finds the memories of the first by their ids.
    name = "\0".join((principal.tenant, principal.user, key, str(ordinal)))
    made = hashlib.sha256(name.encode()).hexdigest()[:24] if key else secrets.token_hex(12)
    return MemoryRecord(f"mem_{made}", memory.text, memory.importance, memory.kind, memory.session_id, memory.created_ms, memory.expires_ms)


def _item(principal: Principal, memory_id: str) -> dict[str, Any]:
    return {"kind": "memory", "principal": principal.as_dict(), "memory_id": memory_id}


def _row(principal: Principal, record: MemoryRecord, terms: str, vector: Sequence[float]) -> Row:
    return Row(
        pk=record.memory_id,
        tenant=principal.tenant,
        subject=principal.user,
        kind="memory",
        text=record.text,
        terms=terms,
        dense=vector,
        expires_ms=record.expires_ms,
    )
