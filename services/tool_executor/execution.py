"""The order of operations of one call, on one page.

resolve → scopes → rate limit → idempotency → validate → coerce, validate again → approval → breaker → execute with a deadline,
repeat where that is harmless → output schema and size → store → one log line. Source: design page "tools".
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog
from opentelemetry import trace

from services.common.errors import BulkheadError, DeadlineExceeded, InvalidInput
from services.common.idempotency import fingerprint
from services.common.identity import Principal
from services.common.telemetry import Counter, Histogram
from services.tool_executor.approvals import CODES, Approvals
from services.tool_executor.arguments import canonical, output, parsed, valid
from services.tool_executor.attempts import Attempt, Ended, Slots, Stopped, TimedOut, wait_before_retry
from services.tool_executor.auditing import ToolAudit
from services.tool_executor.breaker import ToolBreaker
from services.tool_executor.claims import LEASE_S, Claims
from services.tool_executor.failures import ToolFailure
from services.tool_executor.outcomes import CallResult, Event, Failure, Outcome, Warned
from services.tool_executor.ports import Entry, RateLimit, Record, Verdict
from services.tool_executor.registry import EXECUTE_SCOPE, Registry
from services.tool_executor.standing_in import Kept, by_tool, helps
from services.tool_executor.tools import Tool, ToolCall

MAX_ID = 255
# Kept back from the caller's deadline, so that the outcome is stored and heard of in time.
MARGIN_S = 0.03
# Beyond the deadline of a call that must not be repeated: it may still be storing its outcome.
LEASE_MARGIN_S = 5.0
log = structlog.get_logger("bulkhead.tools")
_tracer = trace.get_tracer("bulkhead.tools")
_SCOPE = "bulkhead.tools"
_calls = Counter(_SCOPE, "bulkhead_tool_calls_total", ("tool", "outcome"), description="Tool calls by tool and outcome.")
_durations = Histogram(_SCOPE, "bulkhead_tool_call_duration_seconds", ("tool",), description="Time from a tool call to its outcome.")
_retries = Counter(_SCOPE, "bulkhead_tool_retries_total", ("tool",), description="Repeated attempts of tools.")


@dataclass(frozen=True, slots=True)
class Request:
    """A call as it was asked for."""

    name: str
    arguments_json: bytes
    version: str = ""
    key: str = ""
    run_id: str = ""
    thread_id: str = ""
    approval: str = ""


@dataclass(slots=True)
class _Work:
    """A call between its claim and its end."""

    tool: Tool
    request: Request
    entry: Entry | None
    call: ToolCall
    span: trace.Span
    queue: asyncio.Queue
    started: float
    attempts: int = 0
    attempt: Attempt | None = None
    replayed: bool = False
    free: bool = False
    stopped: bool = False
    result: CallResult | None = None

    def stop(self) -> None:
        """Somebody asked for the end of the call, while its caller waits on."""
        if not self.stopped:
            self.stopped = True
            self.queue.put_nowait(Stopped())


class Executor:
    """Executes calls. `registry` answers the registry that holds at this moment."""

    def __init__(
        self, registry: Callable[[], Registry], claims: Claims, rate: RateLimit, breaker: ToolBreaker, approvals: Approvals, kept: Kept
    ) -> None:
        self._registry = registry
        self._claims = claims
        self._rate = rate
        self._breaker = breaker
        self._approvals = approvals
        self._kept = kept
        self._slots = Slots()

    audit: ToolAudit | None = None  # set where records are kept

    async def execute(self, request: Request, principal: Principal, remaining_s: float) -> AsyncIterator[Event | CallResult]:
        """Events, and the result as the last one.

        Raises NotFound, PermissionDenied, QuotaExceeded, InvalidInput, IdempotencyMismatch, DeadlineExceeded, and Overloaded while
        the store is away. Closing the iterator, or cancelling the task that reads it, cancels the tool.
        """
        started = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + remaining_s - MARGIN_S
        tool = self._registry().resolve(request.name, request.version)
        try:
            principal.require(EXECUTE_SCOPE, *tool.scopes)
            _check_ids(request, tool)
            await self._rate.take(principal)
            arguments = parsed(request.arguments_json)
            entry, record = await self._claimed(request, tool, principal, arguments, deadline)
        except BulkheadError:
            _calls.add(1, tool.name, "refused")
            raise
        except ToolFailure as failure:
            # Not even JSON: there is nothing to remember it by, and nothing ran.
            yield self._told(_Work(tool, request, None, ToolCall(principal, _nobody), trace.INVALID_SPAN, _NO_QUEUE, started), failure)
            return
        queue: asyncio.Queue = asyncio.Queue()
        call = ToolCall(
            principal, queue.put_nowait, key=request.key, run_id=request.run_id, thread_id=request.thread_id, options=tool.options
        )
        work = _Work(tool, request, entry, call, self._span(request, tool), queue, started)
        try:
            if record is not None:
                work.replayed = True
                yield self._told(work, stored(record))
                return
            with self._claims.kept(entry, work.stop):
                async for event in self._worked(work, arguments, deadline):
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self._cancel(work)
            raise
        finally:
            work.span.end()

    def checked(self, name: str, version: str, arguments_json: bytes, principal: Principal) -> tuple[Tool, bytes, list[str]]:
        """The tool, the arguments that it would be given as canonical JSON, and what was coerced.

        Raises NotFound, PermissionDenied, and ToolFailure where the arguments do not fit.
        """
        tool = self._registry().resolve(name, version)
        principal.require(EXECUTE_SCOPE, *tool.scopes)
        arguments, changed = valid(tool, parsed(arguments_json))
        return tool, canonical(arguments), changed

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes what is known of a user's calls; answers how many there were. Raises Overloaded without a store."""
        return await self._claims.erase(tenant, user) + await self._kept.erase(tenant, user)

    async def known(self, tenant: str, key: str) -> tuple[Record, CallResult] | None:
        """What is known of a call by its key, None when the key was never seen. Raises Overloaded without a store."""
        record = await self._claims.read(tenant, key)
        return None if record is None else (record, stored(record))

    async def stop(self, tenant: str, key: str, *, for_good: bool) -> CallResult | None:
        """Ends a call and answers what became of it: DONE where it was too late, FAILED (transport.cancelled) where it has certainly done
        nothing or may be repeated, UNKNOWN, or RUNNING where it has not ended yet. `for_good` and None as Claims.stop. Raises Overloaded.
        """
        record = await self._claims.stop(tenant, key, for_good=for_good)
        return None if record is None else stored(record)

    async def _claimed(
        self, request: Request, tool: Tool, principal: Principal, arguments: Any, deadline: float
    ) -> tuple[Entry | None, Record | None]:
        """The claim, or the record of a call that has ended already. Without a key there is nothing to claim."""
        time_left_s = deadline - asyncio.get_running_loop().time()
        if time_left_s <= 0:
            raise DeadlineExceeded("no time is left for this call")
        if not request.key:
            return None, None
        entry = Entry(
            tenant=principal.tenant, user=principal.user, of_run=bool(principal.run_id), key=request.key,
            fingerprint=fingerprint(tool.name, canonical(arguments)), tool=tool.name, version=tool.version,
            pinned=bool(request.version), repeatable=tool.repeatable, token=secrets.token_hex(8),
            lease_s=LEASE_S if tool.repeatable else min(tool.limits.timeout_s, time_left_s) + LEASE_MARGIN_S,
            again=self._approvals.again(tool, request.approval, principal.tenant, request.run_id, request.key),
        )  # fmt: skip
        record = await self._claims.acquire(entry, deadline)
        return entry, None if record.verdict is Verdict.CLAIMED else record

    async def _worked(self, work: _Work, arguments: Any, deadline: float) -> AsyncIterator[Event | CallResult]:
        """Validates, runs, checks what came back, stores, tells."""
        tool, tenant = work.tool, work.call.principal.tenant
        result: CallResult | ToolFailure
        try:
            arguments, changed = valid(tool, arguments)
            self._approvals.check(tool, work.request.approval, tenant, work.request.run_id, work.request.key, arguments)
            if changed:
                yield Warned("arguments_coerced", "Some arguments were converted to the type that the tool declares.", {"paths": changed})
            while True:
                try:
                    if work.stopped:
                        raise ToolFailure("transport.cancelled", "The call was cancelled.", certain=work.attempt is None)
                    cut_short = deadline - asyncio.get_running_loop().time() < tool.limits.timeout_s
                    async with self._breaker.attempt(tool, tenant, cut_short=cut_short):
                        async for event in self._attempted(work, arguments, deadline, tool):
                            yield event
                        assert work.attempt is not None
                        result = CallResult(Outcome.DONE, output=output(tool, work.attempt.value()))
                    break
                except ToolFailure as failure:
                    wait_s = wait_before_retry(tool, failure, work.attempts, deadline)
                    if wait_s is None or work.stopped or self._breaker.is_open(tool, tenant):
                        raise
                    _retries.add(1, tool.name)
                    yield Warned("tool_retried", f"The tool {tool.name} is tried again.", {"code": failure.code, "attempt": work.attempts})
                    await asyncio.sleep(wait_s)
        except ToolFailure as failure:
            result = failure
            # Nothing has happened and the tool may be free soon: the same key may be used again.
            harmless = tool.repeatable or failure.certain or not work.call.effect_possible
            work.free = failure.code in ("limit.concurrency", "limit.breaker_open") or failure.code in CODES
            work.free = work.free or (failure.code == "transport.cancelled" and harmless)
        if isinstance(result, CallResult) and self._kept.keeps(tool, work.call, result.output):
            self._claims.in_background(self._kept.keep(tool, work.call, arguments, result.output))
        elif isinstance(result, ToolFailure) and not work.stopped and helps(tool, result, work.call):
            async for event in self._instead(work, arguments, deadline, result):
                if isinstance(event, CallResult):
                    # The tool itself has done nothing under this key.
                    result, work.free = event, True
                else:
                    yield event
        work.result = self._told(work, result)
        await self._finish(work)
        yield work.result

    async def _instead(self, work: _Work, arguments: Any, deadline: float, failure: ToolFailure) -> AsyncIterator[Event | CallResult]:
        """What stands in for a tool that failed, with its warning and its result as the last one; nothing where nothing does."""
        tool, call, other = work.tool, work.call, self._registry().stand_in(work.tool, work.call.principal)
        if other is not None:
            work.call = call.of(other)
            try:
                async with self._breaker.attempt(other, call.principal.tenant, cut_short=False):
                    async for event in self._attempted(work, valid(other, arguments)[0], deadline, other):
                        yield event
                    assert work.attempt is not None
                    result = CallResult(Outcome.DONE, output=output(other, work.attempt.value()))
                yield by_tool(tool, other, failure)
                yield result
                return
            except ToolFailure as second:
                log.info("tool_fallback_failed", tool=tool.name, fallback=other.name, code=second.code)
                work.call = call
        if not work.stopped and (found := await self._kept.instead(tool, call, arguments, failure)) is not None:
            for event in found:
                yield event

    async def _attempted(self, work: _Work, arguments: Any, deadline: float, tool: Tool) -> AsyncIterator[Event]:
        timeout_s = min(tool.limits.timeout_s, deadline - asyncio.get_running_loop().time())
        if timeout_s <= 0:
            raise ToolFailure("transport.timeout", "No time was left to run the tool.", certain=True)
        work.attempt = Attempt(tool, work.call, arguments, work.queue, timeout_s, self._slots, work.span)
        work.attempts += 1
        while True:
            item = await work.queue.get()
            if isinstance(item, Ended):
                return
            if isinstance(item, (TimedOut, Stopped)):
                work.attempt.stopped = isinstance(item, Stopped)
                if await work.attempt.settle():
                    # Its end stands in the queue as well, and must not be taken for that of the next attempt.
                    while not isinstance(item, Ended):
                        item = await work.queue.get()
                return
            yield item

    async def _finish(self, work: _Work) -> None:
        """Stores the result: before the caller hears of it where the tool must not run twice, beside that where it may."""
        if work.entry is None:
            return
        assert work.result is not None
        storing = self._claims.finish(work.entry, work.result, free=work.free)
        if work.tool.repeatable:
            # At worst the process dies first, and the same key runs the tool again. It saves the caller a disk write.
            self._claims.in_background(storing)
        else:
            await storing
        work.entry = None

    def _cancel(self, work: _Work) -> None:
        """The caller is gone: stop the tool now, and find out and store in the background what became of it."""
        if work.attempt is not None:
            work.attempt.cancel()
        if not work.replayed and (work.result is None or work.entry is not None):
            self._claims.in_background(self._cancelled(work))

    async def _cancelled(self, work: _Work) -> None:
        if work.result is None:
            outcome: CallResult | ToolFailure
            ended = work.attempt is None or await work.attempt.settle()
            try:
                if work.attempt is None or not ended:
                    raise ToolFailure("transport.cancelled", "The call was cancelled.", certain=work.attempt is None)
                outcome = CallResult(Outcome.DONE, output=output(work.tool, work.attempt.value()))
            except ToolFailure as failure:
                cancelled = failure.code in ("transport.cancelled", "transport.timeout")
                outcome = ToolFailure("transport.cancelled", "The call was cancelled.", certain=failure.certain) if cancelled else failure
                work.free = cancelled and (work.tool.repeatable or failure.certain or not work.call.effect_possible)
            work.result = self._told(work, outcome)
        await self._finish(work)

    def _told(self, work: _Work, result: CallResult | ToolFailure) -> CallResult:
        """The result with all that is known of the call; written to span, log and metrics."""
        tool, request = work.tool, work.request
        if isinstance(result, ToolFailure):
            result = _failed(tool, work.call, result)
        duration_s = time.perf_counter() - work.started
        if not work.replayed:
            result = replace(
                result, version=tool.version, attempts=work.attempts, duration_s=duration_s, citations=tuple(work.call.citations)
            )
            if self.audit is not None:
                self._claims.in_background(self.audit.append(work.call.principal, request, tool.name, result))
        code = result.error.code if result.error else ""
        _calls.add(1, tool.name, "replayed" if work.replayed else str(result.outcome))
        _durations.record(duration_s, tool.name)
        if work.span.is_recording():
            work.span.set_attribute("bulkhead.tool.outcome", str(result.outcome))
            work.span.set_attribute("bulkhead.tool.attempts", result.attempts)
            work.span.set_attribute("bulkhead.tool.replayed", work.replayed)
            if code:
                work.span.set_attribute("error.type", code)
        log.info(
            "tool_call",
            tool=tool.name,
            tool_version=result.version,
            outcome=str(result.outcome),
            code=code,
            duration_ms=round(duration_s * 1000, 3),
            attempts=result.attempts,
            replayed=work.replayed,
            call=request.key,
            run=request.run_id,
            thread=request.thread_id,
        )
        return result

    def _span(self, request: Request, tool: Tool) -> trace.Span:
        span = _tracer.start_span(f"execute_tool {tool.name}")
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.operation.name": "execute_tool",
                    "gen_ai.tool.name": tool.name,
                    "gen_ai.tool.call.id": request.key,
                    "bulkhead.tool.version": tool.version,
                    "bulkhead.run_id": request.run_id,
                    "bulkhead.thread_id": request.thread_id,
                }
            )
        return span


_NO_QUEUE: Any = None


def _nobody(_: Event) -> None:
    """Hears events that nobody waits for."""


def stored(record: Record) -> CallResult:
    """The result that a record stands for."""
    if record.verdict is Verdict.DONE:
        return CallResult.from_meta(record.meta, record.output)
    if record.verdict is Verdict.RUNNING:
        return CallResult(Outcome.RUNNING, version=record.version)
    failure = ToolFailure(
        "transport.lost",
        f"It is not known whether the tool {record.tool} did its work: the process that ran it was lost. Check before you repeat it.",
    )
    return CallResult(Outcome.UNKNOWN, error=Failure.of(failure), version=record.version, replayed=True)


def _check_ids(request: Request, tool: Tool) -> None:
    for name, value in (("idempotency_key", request.key), ("run_id", request.run_id), ("thread_id", request.thread_id)):
        if len(value.encode()) > MAX_ID:
            raise InvalidInput.field(name, f"is longer than {MAX_ID} bytes")
    if not request.key and not tool.repeatable:
        raise InvalidInput.field("idempotency_key", f"is needed: the tool {tool.name} must not be run twice")


def _failed(tool: Tool, call: ToolCall, failure: ToolFailure) -> CallResult:
    """FAILED where it is certain or harmless that nothing was done, else UNKNOWN."""
    error = Failure.of(failure)
    if tool.repeatable or failure.certain or not call.effect_possible:
        return CallResult(Outcome.FAILED, error=error)
    message = f"{failure.agent_message} It is not known whether it took effect: check before you repeat it."
    return CallResult(Outcome.UNKNOWN, error=replace(error, agent_message=message, retryable=False))
