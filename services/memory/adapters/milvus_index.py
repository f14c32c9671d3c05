"""The index in Milvus: one collection an embedding model and dimension, dense vectors and BM25 over our own terms."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import orjson
import redis.asyncio as redis
import structlog

from services.common.errors import Internal
from services.common.valkey_replicas import refusals
from services.memory.adapters.barrier import Barrier
from services.memory.adapters.milvus_client import CollectionMissing, MilvusConnection
from services.memory.adapters.milvus_filters import OF_SUBJECT, ONE_MEMORY, VERSIONS, render, stored_id, visible
from services.memory.adapters.write_lock import WriteLock
from services.memory.ports import Among, Hit, Row

SCHEMA_VERSION = 1
REGISTRY = "memory:collections"
OUTPUT = ["tenant_id", "subject_id", "text", "doc_id", "doc_version", "char_start", "char_end", "heading", "content_hash"]
# Milvus Lite searches rows that it has not flushed one by one in Python (0.1 ms a row for keywords), and a flush makes a
# file: so it flushes at this many rows, and earlier once writes pause. Milvus itself needs none of this.
FLUSH_ROWS = 512
FLUSH_ROWS_IDLE = 32
IDLE_S = 1.0
FLUSH_TIMEOUT_S = 30.0
MAX_TEXT_BYTES = 65_535
INDEXES = (
    ("dense", "HNSW", "COSINE", (("M", 16), ("efConstruction", 128))),
    ("sparse", "SPARSE_INVERTED_INDEX", "BM25", (("bm25_k1", 1.2), ("bm25_b", 0.75))),
)
log = structlog.get_logger("bulkhead.memory.index")


class MilvusIndex:
    """See `Index`. Knows the collection's name before any embedding is made, once some replica has made one."""

    def __init__(
        self,
        connection: MilvusConnection,
        state: redis.Redis,
        *,
        model: str,
        ef: int,
        consistency: str,
        search_timeout_s: float,
        write_timeout_s: float,
        on_new: Callable[[], Awaitable[object]],
    ) -> None:
        """`on_new` is called when a collection was made: what has a record must be indexed in it."""
        self._connection = connection
        self._state = state
        self._model = model
        self._ef = ef
        self._consistency = consistency
        self._search_timeout_s = search_timeout_s
        self._write_timeout_s = write_timeout_s
        self._on_new = on_new
        self._name = ""
        self._dimension = 0
        self._making = asyncio.Lock()
        self._barrier = Barrier()
        self._write_lock = WriteLock(state, "milvus")
        # Rows of an earlier process may wait unflushed as well.
        self._unflushed = FLUSH_ROWS_IDLE
        self._written_at = 0.0

    async def collection(self, dimension: int = 0) -> str:
        """See `Index`."""
        if self._name and dimension in (0, self._dimension):
            return self._name
        async with self._making:
            if not self._name and not dimension:
                known = (await self._registered()).get(self._model)
                if known:
                    self._name, self._dimension = known["name"], known["dimension"]
            elif dimension and dimension != self._dimension:
                await self._make(dimension)
        return self._name

    async def _make(self, dimension: int) -> None:
        name = _collection_name(self._model, dimension)
        is_new = await self._connection.ddl(lambda client: _create(client, name, dimension, self._consistency))
        async with refusals(self._state):
            await self._state.hset(REGISTRY, f"collection:{name}", b"{}")
            # Planned before the collection counts as known: whoever made it may have died before this.
            if is_new or self._model not in await self._registered():
                await self._on_new()
            await self._state.hset(REGISTRY, self._model, orjson.dumps({"v": 1, "name": name, "dimension": dimension}))
        self._name, self._dimension = name, dimension
        log.info("collection_ready", is_new=is_new, collection=name, model=self._model, dimension=dimension)

    async def _forget(self) -> None:
        """Somebody emptied the store: the next row that is written makes the collection again."""
        log.error("collection_missing", collection=self._name)
        self._name, self._dimension = "", 0
        async with refusals(self._state):
            await self._state.hdel(REGISTRY, self._model)

    async def _registered(self) -> dict[str, Any]:
        async with refusals(self._state):
            found = await self._state.hgetall(REGISTRY)
        return {key.decode(): orjson.loads(value) for key, value in found.items()}

    async def insert(self, collection: str, rows: Sequence[Row]) -> None:
        """See `Index`."""
        await self._write("insert", collection, rows)

    async def upsert(self, collection: str, rows: Sequence[Row]) -> None:
        """See `Index`."""
        await self._write("upsert", collection, rows)

    async def _write(self, method: str, collection: str, rows: Sequence[Row]) -> None:
        data = await asyncio.to_thread(lambda: [_fields(row) for row in rows])
        async with self._writing(len(rows)):
            try:
                await self._connection.write(method, collection, data, self._write_timeout_s)
            except CollectionMissing:
                await self._forget()
                raise

    async def delete_memory(self, tenant: str, memory_id: str) -> None:
        """See `Index`."""
        await self._delete(render(ONE_MEMORY, tenant=tenant, pk=memory_id))

    async def delete_subject(self, tenant: str, user: str) -> None:
        """See `Index`."""
        await self._delete(render(OF_SUBJECT, tenant=tenant, subject=user))

    async def delete_versions(self, tenant: str, document_id: str, first: int, last: int) -> None:
        """See `Index`."""
        await self._delete(render(VERSIONS, tenant=tenant, doc=document_id, first=first, last=last))

    async def _delete(self, filter_: str) -> None:
        names = [key.removeprefix("collection:") for key in await self._registered() if key.startswith("collection:")]
        for name in names:
            async with self._writing(1):
                try:
                    await self._connection.call("delete", name, timeout_s=self._write_timeout_s, filter=filter_)
                except CollectionMissing:
                    continue

    @asynccontextmanager
    async def _writing(self, rows: int) -> AsyncIterator[None]:
        await self._connection.connect()  # tells which of the two kinds it is
        async with self._write_lock.held() if self._connection.is_lite else nullcontext():
            yield
            self._written_at = time.monotonic()
            self._unflushed += rows
            if self._connection.is_lite and self._unflushed >= FLUSH_ROWS:
                await self._flush()

    async def maintain(self) -> None:
        """Flushes what Milvus Lite still holds unflushed once writes pause. Called about each second."""
        quiet = time.monotonic() - self._written_at > IDLE_S
        if self._name and quiet and self._unflushed >= FLUSH_ROWS_IDLE:
            await self._connection.connect()
            if self._connection.is_lite:
                async with self._write_lock.held():
                    await self._flush()
                # Its keyword index of a new segment is built by the first search: let that be ours and not a user's.
                warm = {"search_params": {"metric_type": "BM25"}, "anns_field": "sparse", "limit": 1}
                await self._connection.call("search", self._name, ["warm"], timeout_s=FLUSH_TIMEOUT_S, **warm)

    async def _flush(self) -> None:
        async with self._barrier.closed():
            await self._connection.call("flush", self._name, timeout_s=FLUSH_TIMEOUT_S)
        self._unflushed = 0

    async def dense(self, among: Among, vector: Sequence[float], limit: int) -> list[Hit]:
        """See `Index`."""
        params = {"metric_type": "COSINE", "params": {"ef": max(self._ef, limit)}}
        return await self._search(among, [list(vector)], "dense", params, limit)

    async def keyword(self, among: Among, terms: str, limit: int) -> list[Hit]:
        """See `Index`."""
        if not terms:
            return []
        return await self._search(among, [terms], "sparse", {"metric_type": "BM25"}, limit)

    async def _search(self, among: Among, data: list, field: str, params: dict, limit: int) -> list[Hit]:
        name = await self.collection()
        if not name:
            return []
        options = {"filter": visible(among), "limit": limit, "output_fields": OUTPUT, "search_params": params, "anns_field": field}
        async with self._barrier.reading(self._search_timeout_s):
            try:
                found = await self._connection.call("search", name, data, timeout_s=self._search_timeout_s, **options)
            except CollectionMissing:
                await self._forget()
                raise
        return [_hit(raw, among) for raw in found[0]]


def _collection_name(model: str, dimension: int) -> str:
    digest = hashlib.sha256(f"{model}\0{dimension}\0{SCHEMA_VERSION}".encode()).hexdigest()
    return f"bulkhead_{digest[:16]}"


def _create(client: Any, name: str, dimension: int, consistency: str) -> bool:
    from pymilvus import DataType, Function, FunctionType
    from pymilvus.exceptions import MilvusException

    if client.has_collection(name):
        _prepare(client, name)
        return False
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("tenant_id", DataType.VARCHAR, max_length=128, is_partition_key=True)
    for field, length in (("subject_id", 128), ("kind", 16), ("doc_id", 128), ("heading", 2_048), ("content_hash", 64)):
        schema.add_field(field, DataType.VARCHAR, max_length=length)
    for field in ("doc_version", "chunk_no", "char_start", "char_end", "created", "expires_at"):
        schema.add_field(field, DataType.INT64)
    schema.add_field("text", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
    schema.add_field("terms", DataType.VARCHAR, max_length=MAX_TEXT_BYTES, enable_analyzer=True)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dimension)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(Function(name="bm25", function_type=FunctionType.BM25, input_field_names=["terms"], output_field_names=["sparse"]))
    try:
        client.create_collection(name, schema=schema, consistency_level=consistency)
    except MilvusException:
        if not client.has_collection(name):  # else another replica was faster
            raise
    _prepare(client, name)
    return True


def _prepare(client: Any, name: str) -> None:
    """Makes the indexes that are not there, as whoever made the collection may have died before them, and loads it."""
    from pymilvus.exceptions import MilvusException

    for field, kind, metric, params in INDEXES:
        if client.list_indexes(name, field):
            continue
        wanted = client.prepare_index_params()
        wanted.add_index(field, index_type=kind, metric_type=metric, params=dict(params))
        try:
            client.create_index(name, wanted)
        except MilvusException:
            if not client.list_indexes(name, field):  # else another replica was faster
                raise
    client.load_collection(name)


def _fields(row: Row) -> dict[str, Any]:
    return {
        "pk": row.pk,
        "tenant_id": stored_id(row.tenant),
        "subject_id": stored_id(row.subject) if row.subject else "",
        "kind": row.kind,
        "doc_id": row.document_id,
        "doc_version": row.document_version,
        "chunk_no": row.chunk_no,
        "char_start": row.char_start,
        "char_end": row.char_end,
        "heading": row.heading,
        "content_hash": row.content_hash,
        "created": int(time.time() * 1000),
        "expires_at": row.expires_ms,
        "text": row.text,
        "terms": row.terms,
        "dense": list(row.dense),
    }


def _hit(raw: Any, among: Among) -> Hit:
    entity = raw["entity"]
    # The filter has said so already; a row of somebody else must not pass even if the store fails to apply it.
    if entity["tenant_id"] != stored_id(among.tenant) or (not among.documents and entity["subject_id"] != stored_id(among.subject)):
        log.error("foreign_row", pk=raw["pk"])
        raise Internal("a search answered a row of another tenant or user", reason="FOREIGN_ROW")
    return Hit(
        pk=raw["pk"],
        similarity=float(raw["distance"]),
        text=entity["text"],
        document_id=entity["doc_id"],
        document_version=int(entity["doc_version"]),
        char_start=int(entity["char_start"]),
        char_end=int(entity["char_end"]),
        heading=entity["heading"],
        content_hash=entity["content_hash"],
    )
