"""What the parts of the store in memory have in common: the state that processes share, and steps on a thread of it."""

import asyncio
from collections.abc import Callable, Sequence

from services.orchestrator.records import RunRef
from services.orchestrator.testing.memory_store_runs import ThreadSteps
from services.orchestrator.testing.memory_store_state import MemoryState


class MemoryBase:
    """One process's way to the store `state`."""

    def __init__(self, state: MemoryState, instance: str, steps: type[ThreadSteps] = ThreadSteps) -> None:
        """`instance` names this process; `steps` other than the right ones are for tests that must see a violation."""
        self.state, self._instance, self._of_thread = state, instance, steps
        self._leaving = False
        self.on_admitted: Callable[[Sequence[RunRef]], None] = lambda admitted: None

    async def _steps(self, ref: RunRef) -> ThreadSteps:
        await asyncio.sleep(0)
        return self._of_thread(self.state.clock, self.state.thread(ref), ref)

    async def note(self, ref: RunRef, look_in_s: float, *, sooner: bool = False) -> None:
        """As RunStore.note."""
        await asyncio.sleep(0)
        at = self.state.clock.now_ms + int(look_in_s * 1000)
        self.state.live[ref.encode()] = min(at, self.state.live.get(ref.encode(), at)) if sooner else at
