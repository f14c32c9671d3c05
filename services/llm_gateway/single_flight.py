"""Single-flight: identical calls in flight share one upstream call, whole answers and streams.

Which calls share: those that a cache may answer (`CacheTerms.read`) and whose answers are interchangeable. That is so for
embeddings, rankings and calls that are deterministic by their own word (`temperature` 0, or a `seed`); for all others only
where caches are switched on or the call itself asks for one (max-age, ttl, semantic). Two callers
who sample at temperature 1 without a cache want two answers, and get them. Calls that the provider is to `store` never share.

Who pays: the call that began the work, even when it has left since. The others are told cost 0 and `cached` = "shared".
Whose time: the work has the deadline of the call that began it. A call joins only work that has at least half of its own
time left, and goes on alone when that work runs out of time, or its payer out of money, before the first token. Errors
reach everybody and are not kept. A stream and a whole answer do not share with each other.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from services.common.errors import BudgetExceeded, BulkheadError, Cancelled, DeadlineExceeded, InvalidInput, PermissionDenied, QuotaExceeded
from services.common.rpc import context as call_context
from services.common.rpc.context import CallContext
from services.llm_gateway.cache_telemetry import answered, counted
from services.llm_gateway.caching_records import for_free
from services.llm_gateway.caching_rules import CachePolicy
from services.llm_gateway.canonical_key import canonical, request_key
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.registry import Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Finished, ModelCalls, Ranked, RerankCall, StreamEvent
from services.llm_gateway.shared_work import SharedAnswer, SharedStream

# Work that has less than this share of a caller's time left is not joined.
JOIN_SHARE = 0.5
# Errors of the caller who pays; a follower has money, limits and time of its own.
_PAYERS_OWN = (BudgetExceeded, QuotaExceeded, PermissionDenied, DeadlineExceeded, Cancelled)
Result = TypeVar("Result", Completed, Embedded, Ranked)
Call = TypeVar("Call", ChatCall, EmbedCall, RerankCall)
# Raises PermissionDenied when the current principal may not use this model; for answers that no purse was asked for.
Admit = Callable[[str], Awaitable[None]]


class SingleFlight:
    """A layer around other model calls."""

    def __init__(self, inner: ModelCalls, policy: Callable[[], CachePolicy] = CachePolicy, *, admit: Admit | None = None) -> None:
        """`policy` is that of the caches, as it is now; `admit` is asked for each call that joins another's work."""
        self._inner = inner
        self._policy = policy
        self._admit = admit
        self._answers: dict[str, SharedAnswer[Any]] = {}
        self._streams: dict[str, SharedStream] = {}

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        return self._inner.registry

    @property
    def in_flight(self) -> int:
        """Pieces of work that may be joined."""
        return len(self._answers) + len(self._streams)

    async def complete(self, call: ChatCall) -> Completed:
        """As the inner one."""
        if not self._may_share(call):
            return await self._inner.complete(call)
        return await self._shared("chat", call, self._inner.complete)

    def stream(self, call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
        """As the inner one."""
        return self._shared_stream(call) if self._may_share(call) else self._inner.stream(call)

    async def embed(self, call: EmbedCall) -> Embedded:
        """As the inner one."""
        return await self._shared("embed", call, self._inner.embed) if call.terms.cache.read else await self._inner.embed(call)

    async def rerank(self, call: RerankCall) -> Ranked:
        """As the inner one."""
        return await self._shared("rerank", call, self._inner.rerank) if call.terms.cache.read else await self._inner.rerank(call)

    def _may_share(self, call: ChatCall) -> bool:
        body, cache = call.body, call.terms.cache
        if not cache.read or body.get("store"):
            return False
        if body.get("temperature") == 0 or body.get("seed") is not None:
            return True
        return self._policy().serves("chat", cache)

    def _key(self, operation: str, call: ChatCall | EmbedCall | RerankCall, context: CallContext | None) -> str | None:
        if context is None or context.principal is None or not call.model:
            return None
        terms, form = call.terms, ""
        if operation == "stream":
            options = call.body.get("stream_options")
            form = "usage" if isinstance(options, dict) and options.get("include_usage") else "plain"
        # Urgent calls do not wait behind batch lines, and nobody's answer is charged at another price.
        user = context.principal.user if self._policy().per_user else ""
        scope = (form, "low" if terms.low_priority else "", "batch" if terms.discounted else "", user)
        return request_key(context.principal.tenant, operation, self.registry, call.model, canonical(call.body), *scope)

    async def _shared(self, operation: str, call: Call, work: Callable[[Call], Awaitable[Result]]) -> Result:
        context = call_context.current()
        key = self._key(operation, call, context)
        if key is None:
            return await work(call)
        own, began = deadline_of(context), time.perf_counter()
        while True:
            flight = self._answers.get(key)
            if flight is None or not _joinable(flight.deadline, own):
                flight = SharedAnswer(work(call), deadline=own, ended=_forget(self._answers, key))
                self._answers[key] = flight
                return await flight.result()
            if self._admit is not None:
                await self._admit(call.model)
                if self._answers.get(key) is not flight:
                    continue
            counted("flight", "hit")
            try:
                result = await flight.result(timeout_of(flight.deadline, own))
            except BulkheadError as error:
                if may_go_on(error, own):
                    continue
                raise
            outcome = for_free(result.outcome, "shared")
            answered(operation, call.model, outcome, time.perf_counter() - began)
            return replace(result, outcome=outcome)

    async def _shared_stream(self, call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
        context = call_context.current()
        key = self._key("stream", call, context)
        if key is None:
            async with aclosing(self._inner.stream(call)) as events:
                async for event in events:
                    yield event
            return
        own, began = deadline_of(context), time.perf_counter()
        while True:
            flight = self._streams.get(key)
            follows = flight is not None and _joinable(flight.deadline, own)
            if flight is None or not follows:
                flight = SharedStream(self._inner.stream(call), deadline=own, ended=_forget(self._streams, key))
                self._streams[key] = flight
            elif self._admit is not None:
                await self._admit(call.model)
                if self._streams.get(key) is not flight:
                    continue
            reader = flight.join()
            timeout_s = time_left(own) if follows and timeout_of(flight.deadline, own) is not None else None
            delivered = False
            try:
                if follows:
                    counted("flight", "hit")
                while (event := await flight.next(reader, timeout_s)) is not None:
                    delivered = delivered or isinstance(event, list)
                    if follows and isinstance(event, Finished):
                        outcome = for_free(event.outcome, "shared")
                        answered("chat", call.model, outcome, time.perf_counter() - began)
                        event = replace(event, outcome=outcome)
                    yield event
                return
            except BulkheadError as error:
                if not follows or delivered or not may_go_on(error, own):
                    raise
            finally:
                await flight.leave(reader)


def _forget(flights: dict[str, Any], key: str) -> Callable[[Any], None]:
    def ended(flight: Any) -> None:
        # Another one may have taken the place of work that had too little time left to be joined.
        if flights.get(key) is flight:
            del flights[key]

    return ended


def deadline_of(context: CallContext | None) -> float | None:
    """The caller's own deadline, on `time.monotonic()`."""
    return None if context is None else context.deadline


def _joinable(deadline: float | None, own: float | None) -> bool:
    if deadline is None or own is None:
        # Without a deadline both are bounded by the same setting, which is longer than any deadline.
        return deadline is None
    now = time.monotonic()
    return deadline - now >= (own - now) * JOIN_SHARE


def timeout_of(deadline: float | None, own: float | None) -> float | None:
    """Seconds that a follower waits by itself; None where the work ends in time by its own deadline."""
    if own is None or (deadline is not None and deadline <= own):
        return None
    return max(own - time.monotonic(), 0.0)


def time_left(own: float | None) -> Callable[[], float]:
    """Seconds until a caller's own deadline, asked again at each wait."""

    def left() -> float:
        return 0.0 if own is None else max(own - time.monotonic(), 0.0)

    return left


def may_go_on(error: BulkheadError, own: float | None) -> bool:
    """Whether a follower may try alone after this error of the work that it had joined."""
    if own is not None and own <= time.monotonic():
        return False
    return isinstance(error, _PAYERS_OWN) or (isinstance(error, InvalidInput) and error.reason == "MAX_COST_EXCEEDED")
