"""Embeddings through llm_gateway, with the token of the call that is being served."""

import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from opentelemetry.metrics import get_meter

from services.common.errors import UpstreamFailed
from services.common.rpc import context as call_context

MAX_TEXTS = 512
# A message may hold 4 MiB; this leaves room for its other parts.
MAX_BYTES = 3_500_000
# The dimension is not known before the first answer; no model in use has more than this.
ASSUMED_DIMENSION = 4_096
# A query that nobody asked for so long leaves the cache with the next one that comes.
CACHED_S = 900.0
_cache_lookups = get_meter("bulkhead.memory").create_counter(
    "bulkhead_memory_embedding_cache_lookups", description="Lookups of query embeddings, by result (hit or miss)."
)


class LlmEmbeddings:
    """See `Embedder`. A query's embedding depends on nothing but its text and the model, so the cache serves all tenants."""

    def __init__(self, stub: llm_pb2_grpc.LlmServiceStub, model: str, cache_entries: int, query_timeout_s: float) -> None:
        self._stub = stub
        self._model = model
        self._entries = cache_entries
        self._query_timeout_s = query_timeout_s
        # By digest: what was asked is not kept. The least recently used first.
        self._cache: OrderedDict[bytes, tuple[float, array]] = OrderedDict()
        self._dimension = 0

    async def query(self, text: str) -> Sequence[float]:
        """See `Embedder`."""
        name, now = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), time.monotonic()
        while self._cache and next(iter(self._cache.values()))[0] <= now:
            self._cache.popitem(last=False)
        kept = self._cache.get(name)
        _cache_lookups.add(1, {"result": "miss" if kept is None else "hit"})
        found = kept[1] if kept is not None else (await self._embed([text], self._query_timeout_s))[0]
        self._cache[name] = (now + CACHED_S, found)
        self._cache.move_to_end(name)
        if len(self._cache) > self._entries:
            self._cache.popitem(last=False)
        return found

    def forget_queries(self) -> None:
        """Empties the cache. Nobody can tell whose queries are in it."""
        self._cache.clear()

    async def passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """See `Embedder`."""
        found: list[Sequence[float]] = []
        batch: list[str] = []
        size = 0
        for text in texts:
            length = len(text.encode()) + 8
            most = min(MAX_TEXTS, MAX_BYTES // (4 * (self._dimension or ASSUMED_DIMENSION)))
            if batch and (len(batch) >= most or size + length > MAX_BYTES):
                found += await self._embed(batch, None)
                batch, size = [], 0
            batch.append(text)
            size += length
        if batch:
            found += await self._embed(batch, None)
        return found

    async def _embed(self, texts: list[str], timeout_s: float | None) -> list[array]:
        context = call_context.current()
        run_id = context.principal.run_id if context is not None and context.principal is not None else ""
        answer = await self._stub.Embed(llm_pb2.EmbedRequest(model=self._model, texts=texts, run_id=run_id), timeout=timeout_s)
        vectors = [array("f", embedding.values) for embedding in answer.embeddings]
        if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) > 1:
            raise UpstreamFailed("the embedding model answered with another number of vectors", reason="EMBEDDINGS_MALFORMED")
        self._dimension = len(vectors[0])
        return vectors
