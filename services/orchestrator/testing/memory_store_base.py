"""What the parts of the store in memory have in common: the state that processes share, and steps on a thread of it."""

import asyncio
import math
from collections.abc import Callable, Sequence

from services.orchestrator.adapters.result_blobs import Item, LargeResults
from services.orchestrator.records import Draft, Event, RunRef
from services.orchestrator.results import parted
from services.orchestrator.testing.memory_store_runs import ThreadSteps
from services.orchestrator.testing.memory_store_state import MemoryState

# Marks a date that somebody asked for, as in lua/work.lua.
ASKED = 0.5


class MemoryBase:
    """One process's way to the store `state`."""

    def __init__(self, state: MemoryState, instance: str, steps: type[ThreadSteps] = ThreadSteps) -> None:
        """`instance` names this process; `steps` other than the right ones are for tests that must see a violation."""
        self.state, self._instance, self._of_thread = state, instance, steps
        self._leaving = False
        self.results: LargeResults | None = None
        self.on_admitted: Callable[[Sequence[RunRef]], None] = lambda admitted: None

    async def _steps(self, ref: RunRef) -> ThreadSteps:
        await asyncio.sleep(0)
        return self._of_thread(self.state.clock, self.state.thread(ref), ref)

    async def note(self, ref: RunRef, look_in_s: float, *, sooner: bool = False) -> None:
        """As RunStore.note."""
        await asyncio.sleep(0)
        at: float = self.state.clock.now_ms + int(look_in_s * 1000)
        known = self.state.live.get(ref.encode(), at)
        if sooner or known % 1 == ASKED:
            at = min(at, math.ceil(known)) - ASKED
        self.state.live[ref.encode()] = at

    async def outbox_leave(self, ref: RunRef, entry: bytes) -> bool:
        """As RunStore.outbox_leave."""
        return (await self._steps(ref)).outbox_leave(entry)

    async def outbox_waiting(self, ref: RunRef) -> list[str]:
        """As RunStore.outbox_waiting."""
        return list(self.state.thread(ref).outbox)

    async def whole(self, ref: RunRef, messages: Sequence[bytes]) -> Sequence[bytes]:
        """As RunStore.whole."""
        return await self.results.messages(ref, messages) if self.results is not None else messages

    async def _parted(
        self, ref: RunRef, events: Sequence[Draft], messages: Sequence[bytes]
    ) -> tuple[Sequence[Draft], Sequence[bytes], int]:
        """As Store._parted."""
        if self.results is None:
            return events, messages, 0
        items = [Item(ref, event.type, event.data) for event in events]
        large = self.results.to_put(items)
        datas = [await self.results.put(item) if item in large else item.data for item in items]
        messages, schema = parted(messages, events, datas, self.results.is_large)
        return [event._replace(data=data) for event, data in zip(events, datas, strict=True)], messages, schema

    async def _whole(self, ref: RunRef, events: list[Event]) -> list[Event]:
        if self.results is not None:
            await self.results.bring_back(ref, events, last_try=True)
        return events
