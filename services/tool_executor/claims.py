"""Claims on idempotency keys: who may run a call, who waits for it, and what becomes of it when its owner dies.

A tool that may be repeated is claimed on a short lease that its owner keeps renewing, so that another process can take
a dead owner's call over soon. A tool that must not be repeated is claimed until its deadline; after that its outcome
is unknown, for good, unless its owner turns up with the result after all.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from services.common.errors import DeadlineExceeded, IdempotencyMismatch, Overloaded
from services.tool_executor.failures import ToolFailure
from services.tool_executor.outcomes import CallResult, Failure, Outcome
from services.tool_executor.ports import CallLedger, Entry, Record, Verdict

LEASE_S = 5.0
RENEW_EVERY_S = 1.5
# How long an outcome that could not be stored is tried again, and how often.
STORE_FOR_S = 10.0
STORE_EVERY_S = 0.25
JOIN_POLL_S = (0.01, 0.25)
# How often a call at work looks whether its end was asked for at another process, and how long whoever asks waits for it.
LOOK_EVERY_S = 0.3
STOP_WITHIN_S = 2.5
log = structlog.get_logger("bulkhead.tools")


class Claims:
    """Takes, keeps and ends claims in a ledger."""

    def __init__(self, ledger: CallLedger) -> None:
        self._ledger = ledger
        self._background: set[asyncio.Task] = set()
        self._stops: dict[tuple[str, str], Callable[[], None]] = {}

    async def acquire(self, entry: Entry, deadline: float) -> Record:
        """A record with the verdict CLAIMED, DONE or UNKNOWN; waits while somebody else is at the call.

        `deadline` is in seconds of the running loop's clock. Raises IdempotencyMismatch, DeadlineExceeded, Overloaded.
        """
        loop = asyncio.get_running_loop()
        wait_s, longest_s = JOIN_POLL_S
        while True:
            try:
                record = await self._ledger.begin(entry)
            except (asyncio.CancelledError, Overloaded):
                # The claim may have been made although we did not hear of it; nothing was run under it.
                self.in_background(self._release(entry))
                raise
            if record.verdict is Verdict.MISMATCH:
                raise IdempotencyMismatch("the idempotency key was used before for another tool call")
            if record.verdict is not Verdict.RUNNING:
                return record
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise DeadlineExceeded("the same call is still at work", reason="TOOL_CALL_RUNNING")
            await asyncio.sleep(min(wait_s, left_s, record.left_s + 0.001))
            wait_s = min(wait_s * 1.5, longest_s)

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes the calls of a user."""
        return await self._ledger.erase(tenant, user)

    async def read(self, tenant: str, key: str) -> Record | None:
        """What is known of a call."""
        return await self._ledger.read(tenant, key)

    async def stop(self, tenant: str, key: str, *, for_good: bool) -> Record | None:
        """Ends a call, at whichever process it is at work, and waits a little for its end; the verdict is RUNNING where that was too
        short. `for_good`: the key runs nothing from now on, also where it was never seen; else None stands for such a key."""
        loop = asyncio.get_running_loop()
        end = loop.time() + STOP_WITHIN_S
        wait_s, longest_s = JOIN_POLL_S
        while True:
            record = await self._ledger.stop(tenant, key, cancelled("").meta(), for_good=for_good)
            if record is None or record.verdict is not Verdict.RUNNING or loop.time() >= end:
                return record
            if (stop := self._stops.get((tenant, key))) is not None:
                stop()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 1.5, longest_s)

    @contextmanager
    def kept(self, entry: Entry | None, stop: Callable[[], None]) -> Iterator[None]:
        """While the block runs: renews the lease of a repeatable call, and calls `stop` where somebody asks for the call's end."""
        if entry is None:
            yield
            return
        loop = asyncio.get_running_loop()
        renewed = loop.time()

        def look() -> None:
            nonlocal timer, renewed
            self.in_background(self._look(entry, stop))
            if entry.repeatable and loop.time() - renewed >= RENEW_EVERY_S:
                renewed = loop.time()
                self.in_background(self._renew(entry))
            timer = loop.call_later(LOOK_EVERY_S, look)

        timer = loop.call_later(LOOK_EVERY_S, look)
        self._stops[entry.tenant, entry.key] = stop
        try:
            yield
        finally:
            timer.cancel()
            # A key that was free again may be at work a second time already.
            if self._stops.get((entry.tenant, entry.key)) is stop:
                del self._stops[entry.tenant, entry.key]

    async def finish(self, entry: Entry, result: CallResult, *, free: bool = False) -> None:
        """Stores the result. Without a store the caller still gets its answer, and storing goes on for a while."""
        try:
            await self._store(entry, result, free)
        except Overloaded:
            log.warning("tool_outcome_not_stored_yet", tool=entry.tool, call=entry.key)
            self.in_background(self._store_later(entry, result, free))

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beyond the call that asked for it; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self, timeout_s: float = 3.0) -> None:
        """Gives what is still to be stored `timeout_s` seconds."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=timeout_s)
            if late:
                log.error("tool_outcomes_lost", count=len(late))

    async def _store(self, entry: Entry, result: CallResult, free: bool) -> None:
        kept = await self._ledger.finish(entry, result.meta(), result.output, free=free)
        if not kept and not free:
            log.warning("tool_claim_lost", tool=entry.tool, call=entry.key)

    async def _store_later(self, entry: Entry, result: CallResult, free: bool) -> None:
        end = asyncio.get_running_loop().time() + STORE_FOR_S
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(STORE_EVERY_S)
            try:
                return await self._store(entry, result, free)
            except Overloaded:
                continue
        log.error("tool_outcome_not_stored", tool=entry.tool, call=entry.key, outcome=result.outcome)

    async def _release(self, entry: Entry) -> None:
        await self.finish(entry, cancelled(entry.version), free=True)

    async def _look(self, entry: Entry, stop: Callable[[], None]) -> None:
        try:
            if await self._ledger.stopping(entry):
                stop()
        except Overloaded:
            log.debug("tool_stop_not_looked_for", tool=entry.tool, call=entry.key)

    async def _renew(self, entry: Entry) -> None:
        try:
            await self._ledger.renew(entry)
        except Overloaded:
            log.warning("tool_lease_not_renewed", tool=entry.tool, call=entry.key)


def cancelled(version: str) -> CallResult:
    """The result of a call that ended before the tool could do anything."""
    failure = ToolFailure("transport.cancelled", "The call was cancelled before the tool had begun.")
    return CallResult(Outcome.FAILED, error=Failure.of(failure), version=version)
