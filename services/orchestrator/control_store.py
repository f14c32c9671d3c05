"""The part of the state store's port that lets others ask something of a run at work."""

from collections.abc import Sequence
from typing import Protocol

from services.orchestrator.records import Command, Draft, Posted, RunRef


class ControlStore(Protocol):
    """Raises as RunStore."""

    async def post(self, ref: RunRef, kind: str, data: bytes, *, key: str = "", trace_id: str = "", events: Sequence[Draft] = ()) -> Posted:
        """Puts a command into the run's inbox and `events` into the log, in one step; a second one of the same `key` changes nothing.

        A run that is parked is queued by it; somebody has to resume it then."""
        ...

    async def commands(self, ref: RunRef, after: int) -> list[Command]:
        """Commands behind number `after`, in their order."""
        ...

    async def unpark(self, ref: RunRef) -> bool:
        """Queues a parked run whose time has passed; answers whether that was so."""
        ...
