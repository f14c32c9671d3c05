"""The port to the state store: threads, runs, their log, the queue, the outbox."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from services.orchestrator.control_store import ControlStore
from services.orchestrator.records import (
    UNSCHEDULED,
    Accepted,
    Claim,
    Draft,
    Event,
    Heard,
    Inspected,
    Park,
    Place,
    Reservation,
    RunRecord,
    RunRef,
    RunSpec,
    Schedule,
    Terminal,
    ThreadRecord,
    Written,
)


class RunStore(ControlStore, Protocol):
    """Raises Overloaded (STORE_UNAVAILABLE) while the store is away, and Fenced to a former owner of a run."""

    async def load(self) -> None:
        """Loads the Lua functions, so that the first run does not pay for it."""
        ...

    async def ping(self) -> bool:
        """Readiness check."""
        ...

    # Told of runs that got a slot when another run gave one up. What nobody hears of is found by the sweeper.
    on_admitted: Callable[[Sequence[RunRef]], None]

    async def reserve(
        self,
        ref: RunRef,
        user: str,
        slots: int,
        key: str,
        print_: str,
        *,
        queued: int = 0,
        delayed: int = 0,
        schedule: Schedule = UNSCHEDULED,
        of_run: bool = False,
    ) -> Reservation:
        """Takes the tenant's slot for a run. `key` is the client's idempotency key ('' : none), `slots` the limit (0: none).

        Where no slot is free the run is held in the tenant's queue, unless `queued` runs are there already; a run whose schedule
        begins later is held until then, unless `delayed` runs are. What a run at work needs (`of_run`) is had where memory is full."""
        ...

    async def accept(
        self,
        ref: RunRef,
        user: str,
        spec: RunSpec,
        track: str,
        reservation: Reservation,
        trace_id: str,
        events: tuple,
        own_for_s: float = 0.0,
        on_busy: str = "",
    ) -> Accepted:
        """Writes the run durably. `events` are the data of run_queued and of a run_cancelled. With `own_for_s` this process owns it
        in the same step, for that long, unless it must wait for its turn in the thread. A held one stands in no line until `enter`.

        `on_busy` says what the same step does where the thread has runs that have not ended: with reject and steer the run is not
        written, with interrupt and rollback the others are asked to end."""
        ...

    async def save_definition(self, digest: str, definition: bytes) -> None:
        """Keeps an agent's definition, so that a pinned run outlives a change of the configuration."""
        ...

    async def definition(self, digest: str) -> bytes | None:
        """A kept definition."""
        ...

    async def claim(self, ref: RunRef, lease_s: float, crash_budget: int, *, suspect: bool = True) -> Claim:
        """Tries to own a run. Its new epoch is in the record.

        A run that has lost `crash_budget` owners since its last checkpoint ends failed (the verdict). One that was cancelled goes to as
        many further ones, who only end it, and then ends cancelled (the same verdict). One that the next loss ends is a suspect: without
        `suspect` it is left as it is."""
        ...

    async def write(
        self,
        ref: RunRef,
        epoch: int,
        number: int,
        trace_id: str,
        events: Sequence[Draft],
        *,
        mode: str = "e",
        state: bytes = b"",
        messages: Sequence[bytes] = (),
        terminal: Terminal | None = None,
        park: Park | None = None,
    ) -> Written:
        """One write of a run's owner; `mode` as in lua/run.lua. The same `number` again is the same write.

        A run that was to park and has a command that it has not absorbed is queued instead, and named as the next of its thread."""
        ...

    async def beat(self, ref: RunRef, epoch: int, lease_s: float) -> Heard:
        """Extends the lease; answers what was asked of the run. Raises Fenced."""
        ...

    async def wake(self, ref: RunRef, track: str, since_ms: float, look_in_s: float = 1.0, *, schedule: Schedule = UNSCHEDULED) -> None:
        """Offers a run to claimers of `track`. Tenants share them by weight; within one the highest priority goes first, then the
        lowest `since_ms`. A run that is offered already stays where it is."""
        ...

    async def next_waiting(self, track: str) -> RunRef | None:
        """The run whose turn it is among those that are offered; None where there is none."""
        ...

    async def next_ready(self, track: str, wait_s: float) -> RunRef | None:
        """For who has just heard of nobody from `next_waiting`: the first run that is offered within `wait_s`."""
        ...

    async def stop_waiting(self) -> None:
        """Has this process's `next_ready` answer None now, or the next time where none is waiting."""
        ...

    async def depth(self, track: str) -> int:
        """Runs that wait for a claimer of `track`."""
        ...

    async def admit(self, ref: RunRef, schedule: Schedule, parked_in: int = 0) -> bool:
        """A held run whose time has come gets a slot, or a place in its tenant's queue; answers whether it has a slot. `parked_in` is the
        epoch in which one that goes on after a rest was parked, read in the same step as that it is held."""
        ...

    async def enter(self, ref: RunRef) -> str:
        """Ends the hold of a run that has a slot: it takes its place in the thread. Answers none, ended, waiting, free or running."""
        ...

    async def schedule(self, ref: RunRef) -> tuple[str, int, Schedule]:
        """(track, since ms, schedule) of a run, for whoever wakes it; `since` as of RunRecord."""
        ...

    async def place(self, record: RunRecord, tenant: str) -> Place:
        """Where a run that is not yet worked on waits."""
        ...

    async def joining(self, ref: RunRef) -> int:
        """The position of a run that joins the line of its thread now, among the waiting runs of the thread; 0 where nobody is in it."""
        ...

    async def note(self, ref: RunRef, look_in_s: float, *, sooner: bool = False) -> None:
        """Has the sweeper look at a run again in `look_in_s`. `sooner`: never later than it is noted for already, and
        nobody who notes it otherwise puts it off before somebody has looked."""
        ...

    async def due(self, most: int, again_in_s: float) -> list[RunRef]:
        """Runs that somebody should look at now; they are due again in `again_in_s`."""
        ...

    async def ahead(self, most: int, within_s: float, share: float = 0.0) -> list[RunRef]:
        """Runs that somebody should look at within that time and not yet: mostly those that were looked at so long ago. Changes nothing.
        Of more than `most` it begins behind so large a share of them (0 to below 1), and comes round to the first."""
        ...

    async def release_slot(self, ref: RunRef, parked_in: int = 0) -> None:
        """Gives back the tenant's slot of a run that has ended or, where it was not given since, was parked in its epoch `parked_in`."""
        ...

    async def settle(self, ref: RunRef) -> None:
        """Nothing is left to do for a run: its slot is free and the sweeper forgets it, in this order."""
        ...

    async def forget(self, ref: RunRef) -> bool:
        """Gives up a reservation that never became a run, once it is old enough."""
        ...

    async def inspect(self, ref: RunRef) -> Inspected:
        """How a run stands, for the sweeper."""
        ...

    async def outbox_leave(self, ref: RunRef, entry: bytes) -> bool:
        """Leaves an entry for a run that was ended without its owner, once; True where it is still to be delivered. A run that is rolled
        back leaves none."""
        ...

    async def outbox_claim(self, ref: RunRef, lease_s: float) -> tuple[bytes, int] | None:
        """The outbox entry of an ended run and how often it was tried, this time included; None when there is nothing to do."""
        ...

    async def outbox_done(self, ref: RunRef, delivered: bool) -> None:
        """Ends a try to deliver."""
        ...

    async def outbox_waiting(self, ref: RunRef) -> list[str]:
        """Runs of the thread whose outbox is not delivered."""
        ...

    async def outbox_attempts(self, ref: RunRef) -> int:
        """How often the delivery of a run's outbox was tried."""
        ...

    async def open_thread(self, tenant: str, user: str, thread_id: str, metadata: Mapping[str, str]) -> ThreadRecord | None:
        """Makes a thread or answers the one that is there; None where it is another user's."""
        ...

    async def thread(self, tenant: str, user: str, thread_id: str) -> ThreadRecord | None:
        """A thread of this user."""
        ...

    async def locate(self, tenant: str, user: str, run_id: str) -> RunRef | None:
        """Where a run of this user is."""
        ...

    async def run(self, ref: RunRef) -> RunRecord | None:
        """A run record."""
        ...

    async def runs(self, refs: Sequence[RunRef]) -> list[RunRecord]:
        """The records of those that are there."""
        ...

    async def threads(self, tenant: str, user: str, thread_ids: Sequence[str]) -> list[ThreadRecord]:
        """The records of those that are there and this user's."""
        ...

    async def list_members(self, kind: str, tenant: str, user: str, before: int, size: int, thread_id: str = "") -> list[tuple[str, int]]:
        """(member, position) of a list, newest first, below position `before` (0: from the newest).

        Kinds: `threads` of the user, `runs` of the user (member "<thread>/<run>"), `thread` (runs of `thread_id`)."""
        ...

    async def request_cancel(self, tenant: str, user: str, run_id: str) -> str | None:
        """Records the wish for a run's end. Answers its thread, '' where a tombstone was left, None where it is another user's."""
        ...

    async def cancel(self, ref: RunRef, trace_id: str, data: bytes, reason: str) -> tuple[str, Written]:
        """Records the cancel on the run and tells its owner; a run that nobody had yet ends here. Answers its status or `none`."""
        ...

    async def read(self, ref: RunRef, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """(last seq of the thread, first and terminal seq of the run, events after `after_seq`); no further back than the run's
        first event when `from_run`."""
        ...

    async def whole(self, ref: RunRef, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Checkpointed messages of a run, as of its claim, with the large results that were put aside.

        Raises Overloaded (RESULTS_UNAVAILABLE), Internal (RESULT_DAMAGED)."""
        ...

    async def last_seqs(self, refs: Sequence[RunRef]) -> list[int]:
        """Number of the last event of each thread."""
        ...
