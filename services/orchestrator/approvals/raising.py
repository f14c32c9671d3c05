"""What a turn asks of interrupts: to make them known, to end those whose time has passed, to sign what was approved."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry.metrics import get_meter

from services.common.approval import Approval
from services.common.identity import Minter
from services.common.limits import TierPolicy
from services.orchestrator.approvals.ports import InterruptStore
from services.orchestrator.approvals.records import Decision, Interrupt, Listed
from services.orchestrator.control_store import ControlStore
from services.orchestrator.hub import Hub
from services.orchestrator.records import Command, RunRef

_meter = get_meter("bulkhead.orchestrator")
_raised = _meter.create_counter("bulkhead_interrupts_raised_total", description="Questions to people, by kind.")
answered = _meter.create_counter("bulkhead_interrupts_answered_total", description="Questions to people that were answered, by outcome.")
MICRO_PER_USD = 1_000_000


@dataclass
class Raising:
    """Interrupts on the orchestrator's own store. `tier` answers the limits of a tier as they are now."""

    store: InterruptStore
    control: ControlStore
    hub: Hub
    minter: Minter
    tier: Callable[[str], TierPolicy]

    async def raised(self, ref: RunRef, epoch: int, trace_id: str, interrupts: Sequence[Interrupt]) -> list[Interrupt]:
        """As ports.Interrupts.raised. They are listed first: one that is open is never missing there."""
        await self.store.enlist(ref, [interrupt.interrupt_id for interrupt in interrupts])
        found, written = await self.store.raise_interrupts(ref, epoch, trace_id, interrupts)
        if written.first_seq:
            self.hub.noticed(ref, written.last_seq)
            for interrupt in interrupts:
                _raised.add(1, {"kind": interrupt.kind})
        return found

    async def expire(self, ref: RunRef, interrupt_ids: Sequence[str], after: int) -> list[Command]:
        """As ports.Interrupts.expire."""
        for interrupt_id in interrupt_ids:
            interrupt = await self.store.interrupt(ref, interrupt_id)
            if interrupt is None or not interrupt.open:
                continue
            late = interrupt.answered("expired", Decision("expire", "", int(time.time() * 1000), interrupt.digest))
            settled = await self.store.settle_interrupt(ref, interrupt, late, "", by_time=True)
            if settled.posted is not None:
                answered.add(1, {"outcome": "expired"})
                self.hub.noticed(ref, settled.posted.written.last_seq)
                await self.store.delist(ref.tenant, [Listed(ref.thread_id, interrupt_id, 0)], gone=False)
        return await self.control.commands(ref, after)

    def sign(self, approval: Approval) -> str:
        """As ports.Interrupts.sign."""
        return approval.sign(self.minter)

    def demanded(self, tier: str, tool: str, cost_microusd: int, *, repeatable: bool) -> str:
        """As ports.Interrupts.demanded. What changes nothing needs no approval for its cost."""
        policy = self.tier(tier)
        if tool in policy.approve_tools:
            return "by_tier"
        above = policy.approve_above_usd
        return "by_cost" if above is not None and not repeatable and cost_microusd >= above * MICRO_PER_USD else ""
