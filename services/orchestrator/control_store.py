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

    async def posted(self, ref: RunRef, key: str) -> int:
        """Number of the command that was posted with `key`, 0 where none was."""
        ...

    async def made_with(self, tenant: str, user: str, key: str) -> bool:
        """Whether the user's idempotency key names a run."""
        ...

    async def at_work(self, ref: RunRef, user: str) -> str:
        """The run that stands first in the line of the user's thread, '' where none does."""
        ...

    async def cut_by(self, ref: RunRef) -> str:
        """The policy (interrupt, rollback) of the run that this one was cut off for, '' where it was not."""
        ...

    async def unpark(self, ref: RunRef) -> bool:
        """Queues a parked run whose time has passed; answers whether that was so."""
        ...
