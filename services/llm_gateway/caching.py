"""The caching layer: exact answers, answers of similar questions, and old answers when every provider fails.

Kept per tenant (and per user where the policy says so) under `canonical_key.request_key`: a whole answer serves a stream and
the other way round. A cached answer costs nothing: `outcome.usage` is zero and `cached` says exact, semantic or stale. The
body is the provider's own, its usage object included, so that a caller sees what the answer would have cost.

    x-bulkhead-cache-control: no-cache     is not answered from a cache, but kept
                              no-store     is not kept
                              max-age=60   is answered by what is at most that old, never by a stale answer
                              ttl=60       is kept so long
                              stale-if-error=60  is answered by what is at most that old where every provider fails, and kept for that

Embeddings are kept text by text (see `caching_vectors`), rankings whole.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from services.common.errors import BulkheadError
from services.common.rpc import context as call_context
from services.llm_gateway.answer_forms import finished_of
from services.llm_gateway.cache_telemetry import answered, counted
from services.llm_gateway.caching_levels import MAX_RECORD_BYTES, Levels
from services.llm_gateway.caching_records import Record, record_of_answer, record_of_ranking, record_of_stream
from services.llm_gateway.caching_rules import (
    CachePolicy,
    acceptable,
    keepable_answer,
    keepable_stream,
    stale_helps,
    stale_notice,
    stale_until,
)
from services.llm_gateway.caching_vectors import CachedVectors
from services.llm_gateway.canonical_key import canonical, digest_of, request_key
from services.llm_gateway.chat import ChatCall, Chunk
from services.llm_gateway.registry import Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Finished, ModelCalls, Notice, Outcome, Ranked, RerankCall
from services.llm_gateway.results import StreamEvent as Event
from services.llm_gateway.semantic import Question, SemanticCache
from services.llm_gateway.single_flight import Admit
from services.llm_gateway.terms import CacheTerms


def owner_of(user: str) -> str:
    """The digest that stands for a user in what is kept."""
    return digest_of("user", user)[:24]


@dataclass(slots=True)
class _Look:
    """One call's way through the caches."""

    operation: str
    tenant: str
    key: str
    owner: str
    scope: tuple[str, ...]
    cache: CacheTerms
    policy: CachePolicy
    began: float
    expired: Record | None = None
    question: Question | None = None


class Caches:
    """A layer around other model calls. `policy` answers the policy as it is now; `admit` is asked before each cached answer."""

    def __init__(
        self,
        inner: ModelCalls,
        levels: Levels,
        policy: Callable[[], CachePolicy],
        *,
        semantic: SemanticCache | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._inner = inner
        self._levels = levels
        self._policy = policy
        self._semantic = semantic
        self._admit = admit
        self._vectors = CachedVectors(inner, levels)

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        return self._inner.registry

    async def complete(self, call: ChatCall) -> Completed:
        """As the inner one."""
        look = self._look("chat", call)
        if look is None:
            return await self._inner.complete(call)
        found = await self._find(look, call)
        if found is not None and (completed := await self._completed(look, call, *found)) is not None:
            return completed
        try:
            completed = await self._inner.complete(call)
        except BulkheadError as error:
            stale = await self._stale(look, error)
            if stale is None or (completed := await self._completed(look, call, stale, "stale")) is None:
                raise
            return replace(completed, notices=[stale_notice(stale, self._levels.clock())])
        answer, outcome = completed.answer, completed.outcome
        if look.cache.write and keepable_answer(call.body, answer.data, outcome):
            self._keep(look, call, lambda now, until: record_of_answer(answer, outcome, look.owner, now, until), outcome)
        return completed

    def stream(self, call: ChatCall) -> AsyncGenerator[Event, None]:
        """As the inner one."""
        look = self._look("chat", call)
        return self._inner.stream(call) if look is None else self._stream(look, call)

    async def embed(self, call: EmbedCall) -> Embedded:
        """As the inner one."""
        look = self._look("embed", call)
        if look is None:
            return await self._inner.embed(call)
        return await self._vectors.embed(call, look.tenant, look.owner, look.scope, look.policy, self._admit)

    async def rerank(self, call: RerankCall) -> Ranked:
        """As the inner one."""
        look = self._look("rerank", call)
        if look is None:
            return await self._inner.rerank(call)
        found = await self._find(look, call)
        if found is not None and (outcome := await self._outcome(look, call, *found)) is not None:
            return Ranked(found[0].ranking(), outcome)
        try:
            ranked = await self._inner.rerank(call)
        except BulkheadError as error:
            stale = await self._stale(look, error)
            if stale is None or (outcome := await self._outcome(look, call, stale, "stale")) is None:
                raise
            return Ranked(stale.ranking(), outcome, [stale_notice(stale, self._levels.clock())])
        if look.cache.write and not ranked.outcome.fallbacks and not ranked.outcome.cached:
            made, outcome = ranked.ranking, ranked.outcome
            self._keep(look, call, lambda now, until: record_of_ranking(made, outcome, look.owner, now, until), outcome)
        return ranked

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes what the calls of a user have left; answers how many answers. Raises Overloaded when a store is away."""
        owner = owner_of(user)
        count = await self._levels.erase(tenant, owner)
        if self._semantic is not None:
            await self._semantic.erase(tenant, owner)
        return count

    def _look(self, operation: str, call: ChatCall | EmbedCall | RerankCall) -> _Look | None:
        policy, cache = self._policy(), call.terms.cache
        # Of embeddings no old ones are kept for a failure that nobody else would use.
        concerned = policy.serves if operation == "embed" else policy.concerns
        if not concerned(operation, cache) or call.body.get("store"):
            return None
        if not call.model and operation != "embed":
            return None  # which model that is, and who may use it, is only known further in
        context = call_context.current()
        if context is None or context.principal is None:
            return None
        principal = context.principal
        owner = owner_of(principal.user)
        scope = (owner,) if policy.per_user else ()
        key = ""
        if operation != "embed":
            key = request_key(principal.tenant, operation, self.registry, call.model, canonical(call.body), *scope)
        return _Look(operation, principal.tenant, key, owner, scope, cache, policy, time.perf_counter())

    async def _find(self, look: _Look, call: ChatCall | RerankCall) -> tuple[Record, str] | None:
        if not look.cache.read or not look.policy.serves(look.operation, look.cache):
            return None
        (record,) = await self._levels.get(look.tenant, [look.key])
        if record is not None and acceptable(record, look.cache, self._levels.clock()):
            return record, "exact"
        look.expired = record
        counted("exact", "miss")
        if look.cache.semantic and self._semantic is not None and isinstance(call, ChatCall):
            look.question = self._semantic.question(call, look.tenant, look.scope)
            if look.question is not None and (key := await self._semantic.find(look.question, call)) is not None:
                (record,) = await self._levels.get(look.tenant, [key])
                if record is not None and acceptable(record, look.cache, self._levels.clock()):
                    return record, "semantic"
        return None

    async def _stale(self, look: _Look, error: BulkheadError) -> Record | None:
        if not stale_helps(error, look.cache):
            return None
        record = look.expired
        if record is None and look.cache.stale_if_error_s is not None:
            # Nobody has looked: while providers answer, the call has no use for what is kept.
            (record,) = await self._levels.get(look.tenant, [look.key])
        return record if record is not None and stale_until(record, look.policy, look.cache) > self._levels.clock() else None

    async def _outcome(self, look: _Look, call: ChatCall | RerankCall, record: Record, cached: str) -> Outcome | None:
        """How a cached answer came about; None when it can no longer be given. Raises PermissionDenied."""
        outcome = record.outcome(self.registry, cached)
        if outcome is None:
            return None
        if self._admit is not None:
            await self._admit(call.model)
        counted(cached, "hit")
        answered(look.operation, call.model, outcome, time.perf_counter() - look.began)
        return outcome

    async def _completed(self, look: _Look, call: ChatCall, record: Record, cached: str) -> Completed | None:
        answer = record.answer()
        outcome = await self._outcome(look, call, record, cached) if answer is not None else None
        return None if answer is None or outcome is None else Completed(answer, outcome)

    def _keep(self, look: _Look, call: ChatCall | RerankCall, record: Callable[[float, float], Record], outcome: Outcome) -> None:
        now = self._levels.clock()
        ttl_s = look.policy.ttl_s if look.cache.ttl_s is None else look.cache.ttl_s
        if not look.policy.serves(look.operation, look.cache):
            ttl_s = 0.0
        keep_s = max(ttl_s + look.policy.stale_s if ttl_s > 0 else 0.0, look.cache.stale_if_error_s or 0.0)
        if keep_s <= 0:
            return
        made = record(now, now + ttl_s)
        self._levels.put(look.tenant, [(look.key, made)], keep_s)
        counted("exact", "stored")
        if look.cache.semantic and self._semantic is not None and isinstance(call, ChatCall):
            question = look.question or self._semantic.question(call, look.tenant, look.scope)
            if question is not None and outcome.finish_reason == "stop":
                self._semantic.remember(question, call, look.key, look.owner, made, ttl_s)

    async def _stream(self, look: _Look, call: ChatCall) -> AsyncGenerator[Event, None]:
        found = await self._find(look, call)
        if found is not None and (outcome := await self._outcome(look, call, *found)) is not None:
            if call.opened is not None:
                call.opened(outcome)
            for event in _replayed(found[0], outcome):
                yield event
            return
        chunks: list[Chunk] | None = []
        notices: list[Notice] = []
        size, began = 0, False
        try:
            async with aclosing(self._inner.stream(call)) as events:
                async for event in events:
                    if isinstance(event, list):
                        began = True
                        size += sum(len(chunk.raw) for chunk in event)
                        if size > MAX_RECORD_BYTES:
                            # Too large to be kept: not held in memory meanwhile either.
                            chunks = None
                        if chunks is not None:
                            chunks += event
                    elif isinstance(event, Notice):
                        notices.append(event)
                    elif chunks and look.cache.write and keepable_stream(call.body, chunks, notices, event.outcome):
                        self._keep_stream(look, call, chunks, event.outcome)
                    yield event
        except BulkheadError as error:
            stale = None if began else await self._stale(look, error)
            outcome = None if stale is None else await self._outcome(look, call, stale, "stale")
            if stale is None or outcome is None:
                raise
            yield stale_notice(stale, self._levels.clock())
            if call.opened is not None:
                call.opened(outcome)
            for event in _replayed(stale, outcome):
                yield event

    def _keep_stream(self, look: _Look, call: ChatCall, chunks: list[Chunk], outcome: Outcome) -> None:
        self._keep(look, call, lambda now, until: record_of_stream(chunks, outcome, look.owner, now, until), outcome)


def _replayed(record: Record, outcome: Outcome) -> list[list[Chunk] | Finished]:
    chunks = record.chunks()
    return [chunks, finished_of(chunks, outcome)]
