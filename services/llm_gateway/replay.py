"""Idempotency-Key: the same key with the same request gives the first answer again, and is charged once.

Kept for 24 hours in the state store, by tenant and operation, with a fingerprint of the request; an answer to a run for as long
as its next owner may ask again (ADR 0030). A stream is replayed as the same chunks, a whole answer as the same bytes, each in the
other form where that is asked for.

Another request under the key is IdempotencyMismatch. While the first is at work, a second call joins it in the same process,
and waits for it in another; Conflict (IDEMPOTENCY_IN_FLIGHT, with retry_after_s) only when that takes too long. A call that
failed frees its key, so does a process that died, when its lease has run out. The work of a call with a key goes on to its
end when the caller hangs up: that caller is expected to come back for the answer. Without the store such a call is refused
(Overloaded), as it could be charged twice, but for one whose answer waits in this process until the store takes it.

An answer that is too large to be kept, or that this version cannot read, answers Gone (ANSWER_NOT_KEPT), never a second charge.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

import structlog

from services.common.errors import BulkheadError, Conflict, Gone, IdempotencyMismatch, Overloaded
from services.common.idempotency import KEPT, Claim, fingerprint
from services.common.rpc import context as call_context
from services.common.tasks import end
from services.llm_gateway.answer_forms import answer_of, chunks_in, events_of, finished_of
from services.llm_gateway.cache_telemetry import answered, counted
from services.llm_gateway.caching import owner_of
from services.llm_gateway.caching_records import (
    Record,
    decode,
    for_free,
    record_of_answer,
    record_of_events,
    record_of_ranking,
    record_of_vectors,
)
from services.llm_gateway.canonical_key import canonical
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.late import Late, Waiting
from services.llm_gateway.registry import Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Finished, ModelCalls, Notice, Outcome, Ranked, RerankCall
from services.llm_gateway.results import StreamEvent as Event
from services.llm_gateway.shared_work import Ended, SharedAnswer, SharedStream
from services.llm_gateway.single_flight import deadline_of, may_go_on, time_left, timeout_of

log = structlog.get_logger("bulkhead.llm")
LEASE_S = 30.0
WAIT_S = 30.0
MAX_BYTES = 4 * 1024 * 1024
# So many times that may a stream send and still be kept, put together.
_FOLDED = 4
_FIRST_POLL_S = 0.05
_LAST_POLL_S = 1.0
# Stands for an answer that was given and is too large to be kept.
_NOT_KEPT = b"not-kept"
Result = TypeVar("Result", Completed, Embedded, Ranked)
Call = TypeVar("Call", ChatCall, EmbedCall, RerankCall)
Flight = TypeVar("Flight", SharedAnswer, SharedStream)
# By tenant, operation and key, each with the fingerprint of its request.
_Flights = dict[tuple[str, str, str], tuple[str, Flight]]


class Claims(Protocol):
    """`services.common.idempotency.IdempotencyStore`."""

    async def begin(self, tenant: str, method: str, key: str, print_: str, *, lease_s: float, of_run: bool) -> Claim:
        """Claims a key."""
        ...

    async def renew(self, claim: Claim, *, lease_s: float) -> bool:
        """Holds it longer."""
        ...

    async def finish(self, claim: Claim, answer: bytes, *, owner: str, kept: timedelta) -> bool:
        """Stores the answer."""
        ...

    async def abandon(self, claim: Claim) -> None:
        """Gives the key back."""
        ...

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes an owner's answers."""
        ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Under what a call is kept."""

    tenant: str
    operation: str
    key: str
    print: str
    owner: str
    own_deadline: float | None
    of_run: bool

    @property
    def name(self) -> tuple[str, str, str]:
        return self.tenant, self.operation, self.key


class Replay:
    """A layer around other model calls. `wait_s` bounds the wait for another process that works on the same key; `run_kept_s` is how
    long an answer to a run is kept."""

    def __init__(
        self, inner: ModelCalls, claims: Claims, *, lease_s: float = LEASE_S, wait_s: float = WAIT_S, max_bytes: int = MAX_BYTES,
        run_kept_s: float = KEPT.total_seconds(),
    ) -> None:  # fmt: skip
        self._inner = inner
        self._claims = claims
        self._lease_s = lease_s
        self._wait_s = wait_s
        self._max_bytes = max_bytes
        self._run_kept = timedelta(seconds=run_kept_s)
        self._answers: _Flights[SharedAnswer[Any]] = {}
        self._streams: _Flights[SharedStream] = {}
        self._working: set[asyncio.Task[Any]] = set()
        self._late = Late(self._working)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Lets work that goes on without its caller come to its end; what is left then is cancelled, and its key freed."""
        if self._working:
            await asyncio.wait(self._working, timeout=grace_s)
        await end(self._working)

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        return self._inner.registry

    async def complete(self, call: ChatCall) -> Completed:
        """As the inner one."""
        place = _place("chat", call)
        if place is None:
            return await self._inner.complete(call)
        return await self._joined(place, call, partial(self._once, place, call, self._inner.complete, self._completed, _kept_answer))

    def stream(self, call: ChatCall) -> AsyncGenerator[Event, None]:
        """As the inner one."""
        place = _place("chat", call)
        return self._inner.stream(call) if place is None else self._stream(place, call)

    async def embed(self, call: EmbedCall) -> Embedded:
        """As the inner one."""
        place = _place("embed", call)
        if place is None:
            return await self._inner.embed(call)
        return await self._joined(place, call, partial(self._once, place, call, self._inner.embed, self._embedded, _kept_vectors))

    async def rerank(self, call: RerankCall) -> Ranked:
        """As the inner one."""
        place = _place("rerank", call)
        if place is None:
            return await self._inner.rerank(call)
        return await self._joined(place, call, partial(self._once, place, call, self._inner.rerank, self._ranked, _kept_ranking))

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes the answers that a user's calls left for replay. Raises Overloaded when the store is away."""
        return await self._claims.erase(tenant, owner_of(user))

    async def _joined(self, place: _Place, call: Call, once: Callable[[], Awaitable[tuple[Result, bool]]]) -> Result:
        own, began = place.own_deadline, time.perf_counter()
        while True:
            flight, joins = _flight(
                self._answers, place, lambda ended: SharedAnswer(once(), deadline=own, detached=call.terms.lingers, ended=ended)
            )
            try:
                result, first = await flight.result(timeout_of(flight.deadline, own) if joins else None)
            except BulkheadError as error:
                if joins and may_go_on(error, own):
                    continue
                raise
            if first and not joins:
                return result
            return replace(result, outcome=_replayed(place, call, result.outcome, began))

    async def _once(
        self,
        place: _Place,
        call: Call,
        work: Callable[[Call], Awaitable[Result]],
        replayed: Callable[[Record], Result],
        kept: Callable[[Result, str], Record],
    ) -> tuple[Result, bool]:
        """The result, and whether it was made here."""
        claim, record = await self._claim(place)
        if record is not None:
            return replayed(record), False
        async with self._held(claim):
            result = await work(call)
            await self._finish(claim, kept(result, place.owner).encode(), place)
            return result, True

    async def _stream(self, place: _Place, call: ChatCall) -> AsyncGenerator[Event, None]:
        own, began = place.own_deadline, time.perf_counter()
        while True:
            flight, joins = _flight(
                self._streams,
                place,
                lambda ended: SharedStream(self._stream_once(place, call), deadline=own, detached=call.terms.lingers, ended=ended),
            )
            reader = flight.join()
            timeout_s = time_left(own) if joins and timeout_of(flight.deadline, own) is not None else None
            delivered = False
            try:
                while (event := await flight.next(reader, timeout_s)) is not None:
                    delivered = delivered or isinstance(event, list)
                    if isinstance(event, Finished) and (joins or event.outcome.cached == "replayed"):
                        event = replace(event, outcome=_replayed(place, call, event.outcome, began))
                    yield event
                return
            except BulkheadError as error:
                if not joins or delivered or not may_go_on(error, own):
                    raise
            finally:
                await flight.leave(reader)

    async def _stream_once(self, place: _Place, call: ChatCall) -> AsyncGenerator[Event, None]:
        claim, record = await self._claim(place)
        if record is not None:
            chunks, outcome = record.chunks(), self._outcome(record)
            if call.opened is not None:
                call.opened(outcome)
            yield chunks
            yield finished_of(chunks, outcome)
            return
        # Bytes, and not what was read from them: an answer may be long.
        sent = bytearray()
        async with self._held(claim), aclosing(self._inner.stream(call)) as events:
            async for event in events:
                if isinstance(event, list):
                    if len(sent) <= _FOLDED * self._max_bytes:
                        sent += events_of(event)
                elif not isinstance(event, Notice):
                    # Before the caller hears of the end: an answer that was given whole can be given again.
                    await self._finish(claim, await self._kept_stream(bytes(sent), event, place.owner), place)
                yield event

    async def _kept_stream(self, sent: bytes, finished: Finished, owner: str) -> bytes:
        now = time.time()
        if len(sent) <= self._max_bytes:
            return record_of_events(sent, finished.outcome, owner, now, now).encode()
        # Put together, a stream takes a fraction of its events. That takes a while, so not on the loop.
        answer = None if len(sent) > _FOLDED * self._max_bytes else await asyncio.to_thread(lambda: answer_of(chunks_in(sent)))
        return _NOT_KEPT if answer is None else record_of_answer(answer, finished.outcome, owner, now, now).encode()

    async def _claim(self, place: _Place) -> tuple[Claim, Record | None]:
        until = time.monotonic() + self._wait_s
        if place.own_deadline is not None:
            until = min(until, place.own_deadline)
        pause_s, call = _FIRST_POLL_S, f"llm.{place.operation}"
        while True:
            if (waiting := self._late.found(place.name, place.print)) is not None:
                claim = Claim("", "", waiting)
                break
            try:
                claim = await self._claims.begin(place.tenant, call, place.key, place.print, lease_s=self._lease_s, when_full=place.of_run)
                break
            except Conflict:
                if time.monotonic() + pause_s >= until:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_POLL_S)
        if claim.answer is None:
            return claim, None
        record = decode(claim.answer)
        if record is None:
            raise Gone("the first answer was too large to be kept", reason="ANSWER_NOT_KEPT")
        return claim, record

    def _held(self, claim: Claim) -> "_Held":
        return _Held(self._claims, claim, self._lease_s, self._working)

    async def _finish(self, claim: Claim, record: bytes, place: _Place) -> None:
        record = record if len(record) <= self._max_bytes else _NOT_KEPT
        kept_for = self._run_kept if place.of_run else KEPT
        store = partial(self._claims.finish, claim, record, owner=place.owner, kept=kept_for)

        def told(kept: bool) -> None:
            counted("replay", "stored" if kept else "error")
            if not kept:
                log.warning("replay_not_kept", operation=place.operation)

        try:
            told(await store())
        except Overloaded:
            # The answer exists and is paid; it is not withheld until it can be given twice.
            self._late.put(place.name, Waiting(place.print, record, store, told))

    def _outcome(self, record: Record) -> Outcome:
        outcome = record.outcome(self.registry, "replayed")
        if outcome is None:
            raise Gone("the model of the first answer is no longer configured", reason="ANSWER_NOT_KEPT")
        return outcome

    def _completed(self, record: Record) -> Completed:
        answer = record.answer()
        if answer is None:
            raise Gone("the first answer was a stream that cannot be put together", reason="ANSWER_NOT_KEPT")
        return Completed(answer, self._outcome(record))

    def _embedded(self, record: Record) -> Embedded:
        return Embedded(record.vectors(), self._outcome(record))

    def _ranked(self, record: Record) -> Ranked:
        return Ranked(record.ranking(), self._outcome(record))


class _Held:
    """Holds a claim while the work of the block lasts; frees the key when it fails."""

    def __init__(self, claims: Claims, claim: Claim, lease_s: float, working: set[asyncio.Task[Any]]) -> None:
        """`working` has the tasks at work."""
        self._claims, self._claim, self._lease_s, self._working = claims, claim, lease_s, working
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        self._worker = worker
        self._working.add(worker)
        # Most work is done before it needs a task that renews.
        self._timer = asyncio.get_running_loop().call_later(self._lease_s / 3, self._begin)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is not None:
                with suppress(Overloaded):
                    await self._claims.abandon(self._claim)
        finally:
            self._timer.cancel()
            if self._renewing is not None:
                self._renewing.cancel()
            self._working.discard(self._worker)

    def _begin(self) -> None:
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while True:
            with suppress(Overloaded):
                if not await self._claims.renew(self._claim, lease_s=self._lease_s):
                    return
            await asyncio.sleep(self._lease_s / 3)


def _place(operation: str, call: ChatCall | EmbedCall | RerankCall) -> _Place | None:
    key = call.terms.idempotency_key
    context = call_context.current() if key else None
    if context is None or context.principal is None:
        return None
    principal = context.principal
    print_ = fingerprint(call.model, canonical(call.body, notes=True))
    return _Place(principal.tenant, operation, key, print_, owner_of(principal.user), deadline_of(context), bool(principal.run_id))


def _flight(flights: _Flights[Flight], place: _Place, begin: Callable[[Ended], Flight]) -> tuple[Flight, bool]:
    """The work on a key, and whether it was under way. Raises IdempotencyMismatch where that is work on another request."""
    print_, flight = flights.get(place.name, ("", None))
    if flight is not None:
        if print_ != place.print:
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        return flight, True

    def ended(flight: Any) -> None:
        if flights.get(place.name, ("", None))[1] is flight:
            del flights[place.name]

    flight = begin(ended)
    flights[place.name] = (place.print, flight)
    return flight, False


def _replayed(place: _Place, call: ChatCall | EmbedCall | RerankCall, outcome: Outcome, began: float) -> Outcome:
    found = for_free(outcome, "replayed")
    counted("replay", "hit")
    answered(place.operation, call.model, found, time.perf_counter() - began)
    return found


def _kept_answer(result: Completed, owner: str) -> Record:
    return record_of_answer(result.answer, result.outcome, owner, time.time(), time.time())


def _kept_vectors(result: Embedded, owner: str) -> Record:
    return record_of_vectors(result.vectors, result.outcome, owner, time.time(), time.time())


def _kept_ranking(result: Ranked, owner: str) -> Record:
    return record_of_ranking(result.ranking, result.outcome, owner, time.time(), time.time())
