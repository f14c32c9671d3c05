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
_WITHDRAWN = "The call was cancelled."


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
            await self._settle(ref, interrupt, late, by_time=True)
        return await self.control.commands(ref, after)

    async def withdraw(self, ref: RunRef, interrupt_id: str, user: str) -> bool:
        """As ports.Interrupts.withdraw."""
        interrupt = await self.store.interrupt(ref, interrupt_id)
        if interrupt is None or not interrupt.open:
            return False
        back = interrupt.answered("rejected", Decision("reject", user, int(time.time() * 1000), interrupt.digest, _WITHDRAWN))
        return await self._settle(ref, interrupt, back, by_time=False)

    async def _settle(self, ref: RunRef, before: Interrupt, after: Interrupt, *, by_time: bool) -> bool:
        settled = await self.store.settle_interrupt(ref, before, after, "", by_time=by_time)
        if settled.posted is None:
            return False
        answered.add(1, {"outcome": after.outcome})
        self.hub.noticed(ref, settled.posted.written.last_seq)
        await self.store.delist(ref.tenant, [Listed(ref.thread_id, before.interrupt_id, 0)], gone=False)
        return True

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
