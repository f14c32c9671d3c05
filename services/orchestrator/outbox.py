"""What leaves a run after its end: the finished turn and explicit memories, to the memory service, and webhooks.

The entry is written in the same step as the run's end, so that it is neither lost nor made twice; it is sent until it
arrives, by whichever process holds its lease, under keys that make a second arrival harmless.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.metrics import get_meter

from services.common.errors import BulkheadError, Overloaded
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.common.rpc.wire import extract_trace
from services.orchestrator.ports import Memory
from services.orchestrator.records import RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.turn.finish import IMPORTANCE
from services.orchestrator.turn.forgetting import key_of
from services.orchestrator.webhooks.announcing import Announcing

LEASE_S = 30.0
CALL_S = 25.0
WAIT_FIRST_S = 0.5
WAIT_MOST_S = 60.0
# How long a turn waits until the turn before it is stored.
BEHIND_WAIT_S = 2.0
POLL_S = 0.05
log = structlog.get_logger("bulkhead.outbox")
_tracer = trace.get_tracer("bulkhead.orchestrator")
_sent = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_outbox_deliveries_total", description="Tries to deliver an outbox entry, by outcome."
)


class Outbox:
    """Sends outbox entries."""

    def __init__(
        self,
        store: RunStore,
        memory: Memory,
        minter: Minter,
        announcing: Announcing,
        audit: Callable[[RunRef], Awaitable[None]] | None = None,
    ) -> None:
        """`audit` appends the audit record of an ended run; None where none are kept."""
        self._store, self._memory, self._minter, self._announcing, self._audit = store, memory, minter, announcing, audit

    # Told of each end before anything else; set once there is who wakes a run that waits for it.
    on_end: Callable[[RunRef], Awaitable[None]] | None = None

    async def deliver(self, ref: RunRef) -> bool:
        """Tries once; True when nothing is left to send. On failure the sweeper comes back to it. Raises Overloaded without a store."""
        # A memory service that is away is no reason for others not to hear of the run's end.
        await self.tell(ref)
        claimed = await self._store.outbox_claim(ref, LEASE_S)
        if claimed is None:
            return False
        raw, attempts = claimed
        entry = orjson.loads(raw)
        try:
            await self._send(ref, entry)
        except BulkheadError as error:
            if error.retryable or error.counts_against_slo:
                wait_s = min(WAIT_FIRST_S * 2 ** min(attempts, 10), WAIT_MOST_S) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                log.warning("outbox_postponed", run_id=ref.run_id, reason=error.reason, attempts=attempts)
                _sent.add(1, {"outcome": "postponed"})
                await self._store.outbox_done(ref, False)
                await self._store.note(ref, wait_s)
                return False
            # Refused for good: sending it again can only be refused again.
            log.error("outbox_refused", run_id=ref.run_id, reason=error.reason, message=error.message)
            _sent.add(1, {"outcome": "refused"})
        else:
            _sent.add(1, {"outcome": "delivered"})
        await self._store.outbox_done(ref, True)
        # Announced above: once is enough.
        await self._store.settle(ref)
        return True

    async def tell(self, ref: RunRef) -> None:
        """Tells all but memory of a run's end, unless that was done; nothing where it has not ended. Raises Overloaded."""
        if self.on_end is not None:
            await self.on_end(ref)
        if self._audit is not None:
            await self._audit(ref)
        await self._announcing.announce(ref)

    async def settle(self, ref: RunRef) -> None:
        """The end of all work for a run that has ended. Raises Overloaded; the sweeper comes back to it."""
        if self._audit is not None or not self._announcing.certainly_silent(ref.tenant):
            # Its slot is free now and not when others have heard of its end, which may take as long as what they hear by is away.
            await asyncio.gather(self._store.release_slot(ref), self.tell(ref))
        elif self.on_end is not None:
            await self.on_end(ref)
        await self._store.settle(ref)

    async def _send(self, ref: RunRef, entry: Mapping[str, Any]) -> None:
        principal = Principal.from_dict(entry["principal"])
        token = self._minter.mint(principal, run_id=ref.run_id)
        context = call_context.CallContext(entry["request_id"], entry["canary"], principal=principal, token=token)
        parent = extract_trace(entry["trace"])
        attributes = {"bulkhead.run_id": ref.run_id, "bulkhead.thread_id": ref.thread_id, "bulkhead.tenant": ref.tenant}
        with (
            call_context.bind(context.with_timeout(CALL_S)),
            _tracer.start_as_current_span("outbox", context=parent, attributes=attributes),
        ):
            if before_ms := entry.get("forget_before_ms", 0):
                await self._memory.reset_session(ref.thread_id, before_ms, key_of(ref.run_id, before_ms))
            if not entry.get("kept", True):
                return
            turn = {
                "run_id": ref.run_id, "user_text": entry["user_text"], "assistant_text": entry["assistant_text"],
                "tool_calls": entry["tool_calls"], "ended_ms": entry["ended_ms"],
            }  # fmt: skip
            await self._memory.append_turn(ref.thread_id, turn, f"{ref.run_id}/turn")
            if entry["remember"]:
                await self._memory.add_memory(ref.thread_id, entry["remember"], IMPORTANCE, f"{ref.run_id}/remember")

    async def caught_up(self, ref: RunRef) -> bool:
        """Waits until the earlier turns of the thread are delivered; False when that takes too long or has failed before."""
        try:
            async with asyncio.timeout(BEHIND_WAIT_S):
                while True:
                    waiting = await self._store.outbox_waiting(ref)
                    if not waiting:
                        return True
                    for run_id in waiting:
                        if await self._store.outbox_attempts(ref._replace(run_id=run_id)) > 1:
                            return False
                    await asyncio.sleep(POLL_S)
        except (TimeoutError, Overloaded):
            return False
