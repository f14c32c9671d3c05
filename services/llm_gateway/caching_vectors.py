"""Embeddings, kept text by text: a text costs once, whatever list it comes in.

Only the texts that are not known are computed and charged; the usage that the caller is told is that of the computed ones.
Vectors of two models are never put into one answer: where a fallback computed the rest, everything is computed again.
"""

import time
from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from services.common.errors import BulkheadError
from services.llm_gateway.cache_telemetry import answered, counted
from services.llm_gateway.caching_levels import Levels
from services.llm_gateway.caching_records import Record, record_of_vectors
from services.llm_gateway.caching_rules import CachePolicy, acceptable, stale_helps, stale_notice
from services.llm_gateway.canonical_key import canonical, request_key
from services.llm_gateway.ports import Vectors
from services.llm_gateway.results import EmbedCall, Embedded, ModelCalls
from services.llm_gateway.single_flight import Admit

# How vectors are written, not what they are.
_FORM = ("input", "encoding_format")


class CachedVectors:
    """Embeds through the levels of the cache."""

    def __init__(self, inner: ModelCalls, levels: Levels) -> None:
        self._inner = inner
        self._levels = levels

    async def embed(
        self, call: EmbedCall, tenant: str, owner: str, scope: tuple[str, ...], policy: CachePolicy, admit: Admit | None
    ) -> Embedded:
        """As the inner one."""
        began, cache = time.perf_counter(), call.terms.cache
        inputs = _inputs(call.body)
        content, registry = canonical(call.body, without=_FORM), self._inner.registry
        keys = [request_key(tenant, "embed", registry, call.model, content, _text(item), *scope) for item in inputs]
        known: list[Record | None] = await self._levels.get(tenant, keys) if cache.read else [None] * len(keys)
        now = self._levels.clock()
        fresh = [record if record is not None and acceptable(record, cache, now) else None for record in known]
        missing = [place for place, record in enumerate(fresh) if record is None]
        counted("exact", "hit", len(keys) - len(missing))
        counted("exact", "miss", len(missing))
        if len(missing) < len(keys) and admit is not None:
            await admit(call.model)
        if not missing and (found := self._from(call, fresh, "exact", began)) is not None:
            return found
        if len(missing) < len(keys) and missing:
            asked = replace(call, body={**call.body, "input": [inputs[place] for place in missing]})
        else:
            asked, missing = call, list(range(len(keys)))
        try:
            embedded = await self._inner.embed(asked)
        except BulkheadError as error:
            kept = [r if r is not None and r.fresh_until + policy.stale_s > now else None for r in known]
            found = self._from(call, kept, "stale", began) if all(kept) and stale_helps(error, cache) else None
            if found is None:
                raise
            return replace(found, notices=[stale_notice(min(filter(None, kept), key=lambda record: record.at), now)])
        if len(embedded.vectors.vectors) != len(missing):
            return embedded
        if asked is not call and not _comparable(embedded, fresh):
            return await self._inner.embed(call)
        if cache.write and not embedded.outcome.fallbacks and not embedded.outcome.cached:
            ttl_s = policy.ttl_s if cache.ttl_s is None else cache.ttl_s
            self._keep(tenant, owner, [keys[place] for place in missing], embedded, ttl_s, policy)
        return embedded if asked is call else _merged(embedded, fresh, missing)

    def _from(self, call: EmbedCall, records: list[Record | None], cached: str, began: float) -> Embedded | None:
        found = [record for record in records if record is not None]
        outcome = found[0].outcome(self._inner.registry, cached) if found else None
        if outcome is None:
            return None
        vectors = [record.vectors().vectors[0] for record in found]
        answered("embed", call.model, outcome, time.perf_counter() - began)
        return Embedded(Vectors(vectors, 0, found[0].provider_model), outcome)

    def _keep(self, tenant: str, owner: str, keys: list[str], embedded: Embedded, ttl_s: float, policy: CachePolicy) -> None:
        if ttl_s <= 0:
            return
        now, vectors = self._levels.clock(), embedded.vectors
        entries = [
            (key, record_of_vectors(Vectors([vector], None, vectors.model), embedded.outcome, owner, now, now + ttl_s))
            for key, vector in zip(keys, vectors.vectors, strict=True)
        ]
        self._levels.put(tenant, entries, ttl_s + policy.stale_s)
        counted("exact", "stored", len(entries))


def _inputs(body: Mapping[str, Any]) -> list[Any]:
    """What is embedded, one by one: texts, or lists of tokens."""
    given = body["input"]
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    return list(given)


def _text(item: Any) -> str:
    return item if isinstance(item, str) else "\0" + orjson.dumps(item).decode()


def _comparable(embedded: Embedded, known: list[Record | None]) -> bool:
    sizes = {len(vector) for vector in embedded.vectors.vectors} | {record.sizes[0] for record in known if record is not None}
    models = {record.provider_model for record in known if record is not None}
    return len(sizes) == 1 and not embedded.outcome.fallbacks and models == {embedded.outcome.provider_model}


def _merged(embedded: Embedded, known: list[Record | None], missing: list[int]) -> Embedded:
    vectors: list[array] = [array("f") if record is None else record.vectors().vectors[0] for record in known]
    for place, vector in zip(missing, embedded.vectors.vectors, strict=True):
        vectors[place] = vector
    return replace(embedded, vectors=replace(embedded.vectors, vectors=vectors, raw=None))
