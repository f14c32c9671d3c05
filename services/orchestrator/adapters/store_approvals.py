"""Interrupts in Valkey: a hash beside each run, and two lists of each tenant that lead to them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import COMMAND as ORDER
from services.orchestrator.adapters.sealing import EVENT
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_control import posted
from services.orchestrator.adapters.store_keys import (
    INBOX_CHANNEL,
    approvals_keys,
    channel_of,
    inbox_key,
    interrupts_key,
    lookup_key,
    tenant_prefix,
    thread_keys,
)
from services.orchestrator.approvals.records import COMMAND, Interrupt, Listed, Settled, Standing
from services.orchestrator.records import RunRef, Written

# Of a tenant; the oldest leave the list of all, and are still found by their run.
MOST_LISTED = 10_000
INTERRUPT = "interrupt"


class ApprovalsStore(StoreBase):
    """InterruptStore on Valkey."""

    async def raise_interrupts(
        self, ref: RunRef, epoch: int, trace_id: str, interrupts: Sequence[Interrupt]
    ) -> tuple[list[Interrupt], Written]:
        """As InterruptStore.raise_interrupts."""
        args: list[Any] = [ref.run_id, epoch, trace_id, channel_of(ref), self._instance]
        for interrupt in interrupts:
            items = [(INTERRUPT, interrupt.encode()), (EVENT, interrupt.raised_event())]
            args += (interrupt.interrupt_id, *await self.sealing.seal(ref, items))
        first, last, now, records = await self._durable("interrupts_raise_v1", _keys(ref), args)
        return await self._interrupts(ref, records), Written(int(first), int(last), int(now), "")

    async def settle_interrupt(
        self, ref: RunRef, before: Interrupt, after: Interrupt, trace_id: str, *, by_time: bool = False
    ) -> Settled:  # fmt: skip
        """As InterruptStore.settle_interrupt."""
        told = ("interrupt_updated", after.decided_event(), "", b"")
        if not after.open:
            told = ("interrupt_resolved", after.decided_event(), COMMAND, after.command())
        kind, data, order, command = told
        record, data, command = await self.sealing.seal(ref, [(INTERRUPT, after.encode()), (EVENT, data), (ORDER, command)])
        args = [
            ref.run_id, before.interrupt_id, before.raw, record, before.expires_ms, "1" if by_time else "0", kind, data, order, command,
            trace_id, channel_of(ref), self._instance, INBOX_CHANNEL, ref.encode(),
        ]  # fmt: skip
        verdict, status, answer = await self._noted(ref, self._durable("interrupt_settle_v1", _keys(ref), args))
        return Settled(text(verdict), text(status), posted(answer) if answer else None)

    async def keep_interrupt(self, ref: RunRef, interrupt_id: str) -> None:
        """As InterruptStore.keep_interrupt."""
        await self._durable("interrupt_keep_v1", [interrupts_key(ref)], [interrupt_id])

    async def interrupt(self, ref: RunRef, interrupt_id: str) -> Interrupt | None:
        """As InterruptStore.interrupt."""
        raw = await self._ask(self._client.hget(interrupts_key(ref), interrupt_id))
        return await self._interrupt(ref.tenant, raw)

    async def interrupts(self, ref: RunRef) -> list[Interrupt]:
        """As InterruptStore.interrupts."""
        found = await self._interrupts(ref, await self._ask(self._client.hvals(interrupts_key(ref))))
        return sorted(found, key=lambda interrupt: (interrupt.created_ms, interrupt.interrupt_id))

    async def interrupts_at(self, tenant: str, entries: Sequence[Listed]) -> list[Interrupt | None]:
        """As InterruptStore.interrupts_at."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for entry in entries:
                pipeline.hget(interrupts_key(entry.run(tenant)), entry.interrupt_id)
            stored = await self._ask(pipeline.execute())
        # Together, as each of them may be of another user, whose key goes with the others' as one pipeline.
        return list(await asyncio.gather(*(self._interrupt(tenant, raw) for raw in stored)))

    async def standing(self, refs: Sequence[RunRef]) -> list[Standing]:
        """As InterruptStore.standing."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for ref in refs:
                pipeline.hmget(thread_keys(ref)[2], ["status", "cancel"])
            found = await self._ask(pipeline.execute())
        return [Standing(text(status or b""), cancel == b"1") for status, cancel in found]

    async def _interrupts(self, ref: RunRef, stored: Sequence[bytes]) -> list[Interrupt]:
        return [found for raw in stored if (found := await self._interrupt(ref.tenant, raw)) is not None]

    async def _interrupt(self, tenant: str, raw: bytes | None) -> Interrupt | None:
        """A record as it was; who compares it with what is there compares it as it is stored."""
        opened = await self.sealing.open(tenant, INTERRUPT, raw) if raw else None
        return None if opened is None else replace(Interrupt.decode(opened), raw=raw)

    async def enlist(self, ref: RunRef, interrupt_ids: Sequence[str]) -> None:
        """As InterruptStore.enlist."""
        every, unanswered, counter = _lists(ref.tenant)
        members = [f"{ref.thread_id} {interrupt_id}" for interrupt_id in interrupt_ids]
        await self._ask(self._library.batched("approvals_enlist_v1", [every, unanswered, counter], [MOST_LISTED, *members]))

    async def delist(self, tenant: str, entries: Sequence[Listed], *, gone: bool) -> None:
        """As InterruptStore.delist."""
        every, unanswered, _ = _lists(tenant)
        members = [f"{entry.thread_id} {entry.interrupt_id}" for entry in entries]
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.zrem(unanswered, *members)
            if gone:
                pipeline.zrem(every, *members)
            await self._ask(pipeline.execute())

    async def listed(self, tenant: str, *, open_only: bool, before: int, size: int) -> list[Listed]:
        """As InterruptStore.listed."""
        every, unanswered, _ = _lists(tenant)
        top = f"({before}" if before else "+inf"
        key = unanswered if open_only else every
        found = await self._ask(self._client.zrevrangebyscore(key, top, "-inf", start=0, num=size, withscores=True))
        return [Listed(*text(member).split(" ", 1), int(score)) for member, score in found]

    async def whereabouts(self, tenant: str, run_id: str) -> RunRef | None:
        """As InterruptStore.whereabouts."""
        thread_id = await self._ask(self._client.hget(lookup_key(tenant, run_id), "thread"))
        return RunRef(tenant, text(thread_id), run_id) if thread_id else None


def _keys(ref: RunRef) -> list[str]:
    return [*thread_keys(ref), inbox_key(ref), interrupts_key(ref)]


def _lists(tenant: str) -> tuple[str, str, str]:
    return *approvals_keys(tenant), f"{tenant_prefix(tenant)}:approvals:n"
