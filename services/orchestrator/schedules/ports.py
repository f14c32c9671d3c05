"""The ports of schedules: their store, and what makes and cancels runs."""

from typing import Protocol

from services.common.identity import Principal
from services.orchestrator.accepting import RunRequest
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.schedules.records import Definition, Due, Outcome, ScheduleRecord, ScheduleRef


class ScheduleStore(Protocol):
    """Raises Overloaded (STORE_UNAVAILABLE) while the store is away."""

    async def now_ms(self) -> int:
        """The store's clock, Unix ms."""
        ...

    async def add(self, ref: ScheduleRef, user: str, definition: Definition, next_ms: int, most: int) -> str:
        """Keeps a new schedule durably and has it looked at. Answers new, existing (nothing changes) or full (the user has `most`)."""
        ...

    async def get(self, ref: ScheduleRef) -> ScheduleRecord | None:
        """One schedule."""
        ...

    async def of_user(self, tenant: str, user: str, before: int, size: int) -> list[tuple[ScheduleRecord | None, int]]:
        """(schedule, position) of a user's list, newest first, below position `before` (0: from the newest)."""
        ...

    async def change(self, record: ScheduleRecord, definition: Definition, state: str, next_ms: int) -> bool:
        """Changes a schedule durably on behalf of a caller, unless it is not at the version of `record` any more."""
        ...

    async def remove(self, record: ScheduleRecord) -> None:
        """Removes a schedule with its log."""
        ...

    async def ticks(self, ref: ScheduleRef, before: int, size: int) -> list[tuple[Outcome, int]]:
        """(outcome, number) of the log of ticks, newest first, below number `before` (0: from the newest)."""
        ...

    async def due(self, most: int, again_in_s: float) -> list[Due]:
        """Schedules that are to be looked at now; they are due again in `again_in_s`."""
        ...

    async def leave(self, due: Due, wait_s: float | None) -> None:
        """Has a schedule looked at in `wait_s` (None: never again), unless somebody has asked for another date since it was taken."""
        ...

    async def begin(self, record: ScheduleRecord) -> bool:
        """Decides durably that the next tick of `record` makes a run; False where the schedule is not as in `record` any more."""
        ...

    async def hold(self, record: ScheduleRecord) -> bool:
        """The next tick of `record` waits for an earlier run, however long: it is not missed. False as for `begin`."""
        ...

    async def passed(self, record: ScheduleRecord, outcome: Outcome, next_ms: int) -> bool:
        """The next tick of `record` makes no run. False as for `begin`, also where its run is being made."""
        ...

    async def fired(self, record: ScheduleRecord, outcome: Outcome, run: RunRef | None, next_ms: int) -> bool:
        """Ends what `begin` began, once. `next_ms` holds unless a caller has changed the schedule meanwhile."""
        ...


class Runs(Protocol):
    """As Accepting."""

    async def create_run(self, principal: Principal, request: RunRequest) -> tuple[RunRecord, bool]:
        """As Accepting.create_run."""
        ...

    async def cancel_run(self, principal: Principal, run_id: str, reason: str) -> RunRecord | None:
        """As Accepting.cancel_run."""
        ...


class RunRecords(Protocol):
    """As RunStore."""

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        ...
