"""Documents of a tenant: cut into passages, embedded, and replaced as a whole.

The record in the state store names the live version, and a search drops rows of any other. A new version is written
beside the live one and becomes live in one step; an epoch that this step raises tells a search that ran meanwhile to
look again. So a reader sees one version or the other and never none, both or a mixture.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import Conflict, InvalidInput, NotFound, Overloaded
from services.common.idempotency import fingerprint
from services.common.identity import Principal
from services.memory.chunking import Passage, passages
from services.memory.degradation import Degradation
from services.memory.fusion import Fused
from services.memory.ports import DOCUMENT, Among, DocumentRecord, Documents, Embedder, Hit, Index, IndexUnavailable, Row, Work
from services.memory.search import Found, HybridSearch, Query
from services.memory.terms import index_terms

BATCH = 256
# Longer than an ingest may take: before that, rows of a version that is not live belong to work in progress.
INTENT_S = 180.0
INGEST_S = 150.0
RETRY_S = 1.0
ERASE_PAGE = 200
# Rows that are not live crowd out others only while a document is being replaced.
DEEPEST = 8
LOOKS = 4
log = structlog.get_logger("bulkhead.memory.documents")
_chunks = get_meter("bulkhead.memory").create_counter(
    "bulkhead_memory_ingested_chunks", description="Passages stored by ingesting documents."
)


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage as a search found it."""

    hit: Hit
    title: str
    fused: Fused


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What is to be ingested; checked already."""

    document_id: str
    title: str
    content_type: str
    text: str


class TenantDocuments:
    """The use cases of DocumentService."""

    def __init__(
        self, records: Documents, index: Index, embedder: Embedder, search: HybridSearch, work: Work, chunk_chars: int, overlap_chars: int
    ) -> None:
        self._records = records
        self._index = index
        self._embedder = embedder
        self._search = search
        self._work = work
        self._chunk_chars = chunk_chars
        self._overlap_chars = overlap_chars

    async def ingest(self, principal: Principal, document: NewDocument) -> tuple[DocumentRecord, bool]:
        """Stores a version; answers the live record and whether the content changed.

        Raises Conflict when a later version became live meanwhile, Overloaded when the index is away, TimeoutError past
        INGEST_S, and what embeddings raise.
        """
        async with asyncio.timeout(INGEST_S):
            return await self._ingest(principal, document)

    async def _ingest(self, principal: Principal, document: NewDocument) -> tuple[DocumentRecord, bool]:
        tenant = principal.tenant
        raw = document.text.encode()
        digest = hashlib.sha256(raw).hexdigest()
        live = (await self._records.find(tenant, [document.document_id]))[1].get(document.document_id)
        if live and live.content_hash == digest and live.content_type == document.content_type and await self._is_current(live):
            if live.title != document.title:
                live = replace(live, title=document.title)
                await self._records.retitle(tenant, live)
            return live, False
        spans = await asyncio.to_thread(passages, document.text, document.content_type, self._chunk_chars, self._overlap_chars)
        if not spans:
            raise InvalidInput.field("text", "holds no text")
        version = await self._records.reserve(tenant, document.document_id)
        ticket = await self._work.intend(_item(tenant, document.document_id, version), INTENT_S)
        try:
            collection = await self._store(principal, document, version, spans)
        except IndexUnavailable as error:
            await self._work.intend(_item(tenant, document.document_id, version), RETRY_S)
            raise Overloaded("the document store cannot be reached", reason="STORE_UNAVAILABLE", retry_after_s=1.0) from error
        record = DocumentRecord(
            document_id=document.document_id,
            version=version,
            title=document.title,
            content_type=document.content_type,
            chunk_count=len(spans),
            size_bytes=len(raw),
            content_hash=digest,
            created_ms=int(time.time() * 1000),
            collection=collection,
            owner=owner_of(principal.tenant, principal.user),
        )
        published = await self._records.publish(tenant, record)
        await self._sweep(tenant, document.document_id, version, ticket)
        if not published:
            live = (await self._records.find(tenant, [document.document_id]))[1].get(document.document_id)
            if live is not None and live.content_hash == digest:
                return live, True  # the same content by a call that ran beside this one
            raise Conflict("a later version of the document was stored meanwhile", reason="DOCUMENT_SUPERSEDED")
        _chunks.add(len(spans))
        return record, True

    async def _is_current(self, live: DocumentRecord) -> bool:
        # Rows of another embedding model's collection are not searched: the same content is then stored anew.
        try:
            return await self._index.collection() in ("", live.collection)
        except IndexUnavailable:
            return True

    async def _store(self, principal: Principal, document: NewDocument, version: int, spans: list[Passage]) -> str:
        collection = ""
        writing: asyncio.Task | None = None
        try:
            for first in range(0, len(spans), BATCH):
                batch = spans[first : first + BATCH]
                vectors = await self._embedder.passages([_embedded(document, span) for span in batch])
                rows = await asyncio.to_thread(_rows, principal.tenant, document, version, first, batch, vectors)
                if writing is not None:
                    await writing
                collection = await self._index.collection(len(vectors[0]))
                writing = asyncio.create_task(self._index.insert(collection, rows))
            if writing is not None:
                await writing
        finally:
            if writing is not None and not writing.done():
                writing.cancel()
        return collection

    async def _sweep(self, tenant: str, document_id: str, version: int, ticket: str) -> None:
        try:
            await self.converge(tenant, document_id, version)
        except IndexUnavailable:
            await self._work.intend(_item(tenant, document_id, version), RETRY_S, removes=True)
            return
        await self._work.settle(ticket)

    async def converge(self, tenant: str, document_id: str, version: int) -> None:
        """Deletes the rows that `version` made obsolete, or its own where it is not live. Safe to repeat. Raises IndexUnavailable."""
        live = (await self._records.find(tenant, [document_id]))[1].get(document_id)
        if live is None:
            await self._index.delete_versions(tenant, document_id, 1, version)
            return
        if live.version > 1:
            await self._index.delete_versions(tenant, document_id, 1, live.version - 1)
        if version > live.version:
            await self._index.delete_versions(tenant, document_id, version, version)

    async def search(
        self, principal: Principal, text: str, limit: int, document_ids: Sequence[str]
    ) -> tuple[list[ScoredPassage], tuple[Degradation, ...]]:
        """The best passages of live versions by meaning and keyword."""
        query = await self._search.prepare(text)
        found, lost = await self.find(principal, query, max(limit, 10), document_ids)
        return found[:limit], lost

    async def find(
        self, principal: Principal, query: Query, depth: int, document_ids: Sequence[str] = ()
    ) -> tuple[list[ScoredPassage], tuple[Degradation, ...]]:
        """As `search`, for a prepared query and with every result of routes of `depth`."""
        among = Among(principal.tenant, documents=True, document_ids=tuple(document_ids))
        reach, found, records = depth, Found(), {}
        for _ in range(LOOKS):
            epoch, _ = await self._records.find(principal.tenant, [])
            everything = await self._search.find(among, query, reach)
            ids = sorted({hit.document_id for hit in everything.rows().values()})
            after, records = await self._records.find(principal.tenant, ids)
            found = everything.only({pk for pk, hit in everything.rows().items() if _is_live(hit, records)})
            crowded_out = len(found.rows()) < len(everything.rows()) and everything.full(reach) and reach < depth * DEEPEST
            if epoch == after and not crowded_out:
                break
            reach = min(reach * 2, depth * DEEPEST) if crowded_out else reach
        found = Found(found.dense[:depth], found.keyword[:depth], found.lost, found.unavailable)
        rows = found.rows()
        results = [ScoredPassage(rows[r.key], records[rows[r.key].document_id].title, r) for r in found.fused("document")]
        return results, found.lost

    async def page(self, principal: Principal, size: int, after: tuple[int, str] | None) -> tuple[list[DocumentRecord], bool]:
        """Newest first, and whether there are more."""
        return await self._records.page(principal.tenant, size, after)

    async def count(self, principal: Principal) -> int:
        """How many documents the tenant has."""
        return await self._records.count(principal.tenant)

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes the documents whose live version the user brought; answers how many."""
        owner, after, more, count = owner_of(tenant, user), None, True, 0
        while more:
            page, more = await self._records.page(tenant, ERASE_PAGE, after)
            after = (page[-1].created_ms, page[-1].document_id) if page else None
            for record in page:
                if record.owner == owner:
                    await self._delete(tenant, record.document_id)
                    count += 1
        return count

    async def delete(self, principal: Principal, document_id: str) -> int:
        """Deletes a document: hidden at once, its rows removed now or by upkeep; answers its passages. Raises NotFound."""
        count = await self._delete(principal.tenant, document_id)
        if count is None:
            raise NotFound("no such document")
        return count

    async def _delete(self, tenant: str, document_id: str) -> int | None:
        removed = await self._records.remove(tenant, document_id)
        if removed is None:
            return None
        record, highest = removed
        ticket = await self._work.intend(_item(tenant, document_id, highest), INTENT_S, removes=True)
        await self._sweep(tenant, document_id, record.version, ticket)
        return record.chunk_count


def owner_of(tenant: str, user: str) -> str:
    """How who brought a document stands in its record, which outlives them and must not name them."""
    return fingerprint("document owner", tenant, user)[:32]


def _is_live(hit: Hit, records: dict[str, DocumentRecord]) -> bool:
    record = records.get(hit.document_id)
    return record is not None and record.version == hit.document_version


def _item(tenant: str, document_id: str, version: int) -> dict[str, Any]:
    return {"kind": DOCUMENT, "tenant": tenant, "document_id": document_id, "version": version}


def _embedded(document: NewDocument, span: Passage) -> str:
    # A passage alone often does not say what it is about; its title and headings do.
    return f"{document.title}\n{span.heading}\n{document.text[span.start : span.end]}"


def _rows(
    tenant: str, document: NewDocument, version: int, first: int, spans: list[Passage], vectors: Sequence[Sequence[float]]
) -> list[Row]:
    rows = []
    for number, (span, vector) in enumerate(zip(spans, vectors, strict=True), start=first):
        text = document.text[span.start : span.end]
        name = "\0".join((tenant, document.document_id, str(version), str(number)))
        rows.append(
            Row(
                pk="doc_" + hashlib.sha256(name.encode()).hexdigest()[:40],
                tenant=tenant,
                subject="",
                kind=DOCUMENT,
                text=text,
                terms=index_terms(_embedded(document, span)),
                dense=vector,
                document_id=document.document_id,
                document_version=version,
                chunk_no=number,
                char_start=span.start,
                char_end=span.end,
                heading=span.heading,
                content_hash=hashlib.sha256(text.encode()).hexdigest(),
            )
        )
    return rows
