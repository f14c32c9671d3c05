"""What interrupts need from outside: their store, and what a turn asks of whoever keeps them."""

from collections.abc import Sequence
from typing import Protocol

from services.common.approval import Approval
from services.orchestrator.approvals.records import Interrupt, Listed, Settled, Standing
from services.orchestrator.records import Command, RunRef, Written


class InterruptStore(Protocol):
    """Interrupts of a run share its hash tag. Raises as RunStore."""

    async def raise_interrupts(
        self, ref: RunRef, epoch: int, trace_id: str, interrupts: Sequence[Interrupt]
    ) -> tuple[list[Interrupt], Written]:
        """Writes those that are not there yet with their events, in one step; answers all of them as they stand. Raises Fenced to a
        former owner."""
        ...

    async def settle_interrupt(
        self, ref: RunRef, before: Interrupt, after: Interrupt, trace_id: str, *, by_time: bool = False
    ) -> Settled:  # fmt: skip
        """Replaces `before` by `after` with the event of it and, where it is answered, the command to the run, in one step: only while
        it is as it was read, its time has not passed (with `by_time`: has passed) and nobody ended the run."""
        ...

    async def keep_interrupt(self, ref: RunRef, interrupt_id: str) -> None:
        """Returns when the interrupt as it stands is as durable as whoever wrote it was to make it. It may be read before that."""
        ...

    async def interrupt(self, ref: RunRef, interrupt_id: str) -> Interrupt | None:
        """One interrupt."""
        ...

    async def interrupts(self, ref: RunRef) -> list[Interrupt]:
        """Those of a run, oldest first."""
        ...

    async def interrupts_at(self, tenant: str, entries: Sequence[Listed]) -> list[Interrupt | None]:
        """What each entry of a list leads to, in round trips whose number does not grow with theirs."""
        ...

    async def standing(self, refs: Sequence[RunRef]) -> list[Standing]:
        """How far each of these runs is, in one round trip."""
        ...

    async def enlist(self, ref: RunRef, interrupt_ids: Sequence[str]) -> None:
        """Puts interrupts on the tenant's lists; again changes nothing."""
        ...

    async def delist(self, tenant: str, entries: Sequence[Listed], *, gone: bool) -> None:
        """Takes entries off the list of the open ones; with `gone`, off the list of all as well."""
        ...

    async def listed(self, tenant: str, *, open_only: bool, before: int, size: int) -> list[Listed]:
        """Entries below position `before` (0: from the newest), newest first."""
        ...

    async def whereabouts(self, tenant: str, run_id: str) -> RunRef | None:
        """Where a run of the tenant is, whosever it is."""
        ...


class Interrupts(Protocol):
    """For a turn."""

    async def raised(self, ref: RunRef, epoch: int, trace_id: str, interrupts: Sequence[Interrupt]) -> list[Interrupt]:
        """Makes interrupts known, durably; answers them as they stand, which may be as a former owner made them. Raises Fenced,
        Overloaded."""
        ...

    async def expire(self, ref: RunRef, interrupt_ids: Sequence[str], after: int) -> list[Command]:
        """Ends those whose time has passed; answers the run's commands behind number `after`. Raises Overloaded."""
        ...

    async def withdraw(self, ref: RunRef, interrupt_id: str, user: str) -> bool:
        """Takes a question back that `user` wants nobody to answer: it is answered as rejected. False where it is not open any more, or
        the run is to end. Raises Overloaded."""
        ...

    def sign(self, approval: Approval) -> str:
        """An approval as the tool executor takes it."""
        ...

    def demanded(self, tier: str, tool: str, cost_microusd: int, *, repeatable: bool) -> str:
        """Why the tier asks for an approval of a call of `tool` in a run that has cost so much; '' where it does not."""
        ...
