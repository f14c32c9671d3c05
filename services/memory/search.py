"""Hybrid search: a dense route and a keyword route, each of which can surface a result alone, fused by reciprocal rank."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import BulkheadError, Cancelled
from services.memory import degradation
from services.memory.degradation import Degradation
from services.memory.fusion import Fused, fuse
from services.memory.ports import Among, Embedder, Hit, Index, IndexUnavailable
from services.memory.terms import query_terms

# What is looked for is a question and no document: the rest of a very long message would only blur it.
QUERY_CHARS = 4_000
log = structlog.get_logger("bulkhead.memory.search")
_meter = get_meter("bulkhead.memory")
_duration = _meter.create_histogram(
    "bulkhead_memory_search_duration_seconds", unit="s", description="Time of a hybrid search in the index, by kind of what is sought."
)
_hits = _meter.create_counter(
    "bulkhead_memory_retrieval_hits", description="Results of searches by kind and by the routes that found them."
)


@dataclass(frozen=True, slots=True)
class Query:
    """A query as both routes need it; no vector when embeddings are away."""

    terms: str
    vector: Sequence[float] | None
    lost: tuple[Degradation, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of both routes, best first."""

    dense: list[Hit] = field(default_factory=list)
    keyword: list[Hit] = field(default_factory=list)
    lost: tuple[Degradation, ...] = ()
    unavailable: bool = False

    def full(self, depth: int) -> bool:
        """Whether a route stopped at its depth, so that there may be more."""
        return max(len(self.dense), len(self.keyword)) >= depth

    def only(self, wanted: set[str]) -> "Found":
        """The rows whose keys are wanted."""
        return Found(
            [hit for hit in self.dense if hit.pk in wanted], [hit for hit in self.keyword if hit.pk in wanted], self.lost, self.unavailable
        )

    def rows(self) -> dict[str, Hit]:
        """Every row once, by key."""
        return {hit.pk: hit for hit in (*self.keyword, *self.dense)}

    def fused(self, kind: str) -> list[Fused]:
        """Both routes fused; counts the hits of `kind` for the metrics."""
        results = fuse({"dense": [hit.pk for hit in self.dense], "keyword": [hit.pk for hit in self.keyword]})
        for result in results:
            _hits.add(1, {"kind": kind, "route": "both" if len(result.ranks) == 2 else next(iter(result.ranks))})
        return results


class HybridSearch:
    """Searches of both kinds of rows."""

    def __init__(self, index: Index, embedder: Embedder) -> None:
        self._index = index
        self._embedder = embedder

    async def prepare(self, text: str) -> Query:
        """The terms and the embedding of a query; a failed embedding is a degradation and no error."""
        text = text.strip()[:QUERY_CHARS]
        # In a thread where it may be Han, as the first such text loads a dictionary.
        terms = query_terms(text) if text.isascii() else await asyncio.to_thread(query_terms, text)
        try:
            return Query(terms, await self._embedder.query(text))
        except Cancelled:
            raise
        except BulkheadError as error:
            log.warning("embeddings_unavailable", reason=error.reason)
            return Query(terms, None, (degradation.EMBEDDINGS_UNAVAILABLE,))

    async def find(self, among: Among, query: Query, depth: int) -> Found:
        """Up to `depth` rows of each route; a route that fails is a degradation, and so is the loss of both."""
        started = time.perf_counter()
        dense, keyword = await asyncio.gather(self._dense(among, query, depth), self._keyword(among, query, depth))
        _duration.record(time.perf_counter() - started, {"kind": "document" if among.documents else "memory"})
        if keyword is None and (dense is None or query.vector is None):
            lost = degradation.DOCUMENTS_UNAVAILABLE if among.documents else degradation.MEMORIES_UNAVAILABLE
            return Found(lost=(lost,), unavailable=True)
        partial = [degradation.SEMANTIC_ROUTE_FAILED] if dense is None else [degradation.KEYWORD_ROUTE_FAILED] if keyword is None else []
        return Found(dense or [], keyword or [], (*query.lost, *partial))

    async def _dense(self, among: Among, query: Query, depth: int) -> list[Hit] | None:
        if query.vector is None:
            return []
        try:
            return await self._index.dense(among, query.vector, depth)
        except IndexUnavailable as error:
            log.warning("route_failed", route="dense", reason=str(error))
            return None

    async def _keyword(self, among: Among, query: Query, depth: int) -> list[Hit] | None:
        try:
            return await self._index.keyword(among, query.terms, depth)
        except IndexUnavailable as error:
            log.warning("route_failed", route="keyword", reason=str(error))
            return None
