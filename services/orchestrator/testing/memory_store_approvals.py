"""Interrupts in memory: the same answers as adapters/store_approvals.py and lua/approval.lua."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from services.orchestrator.adapters.store_base import NOTED_MS
from services.orchestrator.approvals.records import COMMAND, Interrupt, Listed, Settled, Standing
from services.orchestrator.records import Draft, Fenced, Posted, RunRef, Written
from services.orchestrator.testing.memory_store_base import MemoryBase


class MemoryApprovals(MemoryBase):
    """InterruptStore in memory; part of MemoryStore."""

    async def raise_interrupts(
        self, ref: RunRef, epoch: int, trace_id: str, interrupts: Sequence[Interrupt]
    ) -> tuple[list[Interrupt], Written]:
        """As InterruptStore.raise_interrupts."""
        steps = await self._steps(ref)
        run = steps.fence(epoch)
        if run.status != "running":
            raise Fenced(f"FENCED the run is {run.status}")
        fresh = [interrupt for interrupt in interrupts if interrupt.interrupt_id not in run.interrupts]
        for interrupt in fresh:
            run.interrupts[interrupt.interrupt_id] = Interrupt.decode(interrupt.encode())
        drafts = [Draft("interrupt_raised", interrupt.raised_event()) for interrupt in fresh]
        first, last = steps.append(run.attempt, trace_id, drafts)[:2] if drafts else (0, 0)
        return [run.interrupts[i.interrupt_id] for i in interrupts], Written(first, last, self.state.clock.now_ms, "")

    async def settle_interrupt(
        self, ref: RunRef, before: Interrupt, after: Interrupt, trace_id: str, *, by_time: bool = False
    ) -> Settled:  # fmt: skip
        """As InterruptStore.settle_interrupt."""
        await self.note(ref, NOTED_MS / 1000, sooner=True)
        steps = await self._steps(ref)
        run = steps.found
        present = run.interrupts.get(before.interrupt_id) if run is not None else None
        if run is None or present is None:
            return Settled("none")
        if present.raw != before.raw:
            return Settled("changed", run.status)
        if run.ended:
            return Settled("ended", run.status)
        if run.cancel:
            return Settled("cancelled", run.status)
        late = self.state.clock.now_ms >= before.expires_ms
        if by_time and not late:
            return Settled("young", run.status)
        if late and not by_time:
            return Settled("expired", run.status)
        status = run.status
        if after.open:
            first, last, _ = steps.append(run.attempt, trace_id, [Draft("interrupt_updated", after.decided_event())])
            told = Posted("posted", 0, status, Written(first, last, self.state.clock.now_ms, ""))
        else:
            told = steps.post(COMMAND, after.command(), "", trace_id, [Draft("interrupt_resolved", after.decided_event())])
            if told.verdict != "posted":
                return Settled(told.verdict, status)
        run.interrupts[before.interrupt_id] = replace(after, raw=after.encode())
        return Settled("done", status, told)

    async def keep_interrupt(self, ref: RunRef, interrupt_id: str) -> None:
        """As InterruptStore.keep_interrupt; nothing is lost here."""

    async def interrupt(self, ref: RunRef, interrupt_id: str) -> Interrupt | None:
        """As InterruptStore.interrupt."""
        run = (await self._steps(ref)).found
        return run.interrupts.get(interrupt_id) if run is not None else None

    async def interrupts(self, ref: RunRef) -> list[Interrupt]:
        """As InterruptStore.interrupts."""
        run = (await self._steps(ref)).found
        found = run.interrupts.values() if run is not None else ()
        return sorted(found, key=lambda interrupt: (interrupt.created_ms, interrupt.interrupt_id))

    async def interrupts_at(self, tenant: str, entries: Sequence[Listed]) -> list[Interrupt | None]:
        """As InterruptStore.interrupts_at."""
        return [await self.interrupt(entry.run(tenant), entry.interrupt_id) for entry in entries]

    async def standing(self, refs: Sequence[RunRef]) -> list[Standing]:
        """As InterruptStore.standing."""
        found = [(await self._steps(ref)).found for ref in refs]
        return [Standing(run.status, bool(run.cancel)) if run is not None else Standing() for run in found]

    async def enlist(self, ref: RunRef, interrupt_ids: Sequence[str]) -> None:
        """As InterruptStore.enlist."""
        await asyncio.sleep(0)
        lists = self.state.tenant(ref.tenant).lists
        for kind in ("approvals", "approvals:open"):
            members = lists.setdefault((kind, ""), {})
            for interrupt_id in interrupt_ids:
                members.setdefault(f"{ref.thread_id} {interrupt_id}", max(members.values(), default=0) + 1)

    async def delist(self, tenant: str, entries: Sequence[Listed], *, gone: bool) -> None:
        """As InterruptStore.delist."""
        await asyncio.sleep(0)
        for kind in ("approvals:open", *(["approvals"] if gone else [])):
            members = self.state.tenant(tenant).lists.setdefault((kind, ""), {})
            for entry in entries:
                members.pop(f"{entry.thread_id} {entry.interrupt_id}", None)

    async def listed(self, tenant: str, *, open_only: bool, before: int, size: int) -> list[Listed]:
        """As InterruptStore.listed."""
        await asyncio.sleep(0)
        members = self.state.tenant(tenant).lists.get(("approvals:open" if open_only else "approvals", ""), {})
        found = sorted(((position, member) for member, position in members.items() if not before or position < before), reverse=True)
        return [Listed(thread, name, position) for position, member in found[:size] for thread, _, name in [member.partition(" ")]]

    async def whereabouts(self, tenant: str, run_id: str) -> RunRef | None:
        """As InterruptStore.whereabouts."""
        await asyncio.sleep(0)
        known = self.state.tenant(tenant).lookup(run_id, self.state.clock.now_ms)
        return RunRef(tenant, known.thread_id, run_id) if known is not None and known.thread_id else None
