"""What forking, rolling back and deleting threads needs from the state store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from services.orchestrator.records import Event, RunRecord, RunRef


class Begun(NamedTuple):
    """What came of asking for a change: `verdict` as in lua/threads.lua, the change under way, and a number where it was made before."""

    verdict: str
    job: bytes = b""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A thread as whoever changes it sees it. `doing` is '', gone, building or busy; `job` the change under way as JSON, None where
    there is none. `carry` is what of a run that was cut off belongs to the conversation, from the event `carry_seq` on: that of the
    newest fork or rollback, 0 where it is not known. `carry_open`: no run has answered since. `oldest_seq` is the first number of
    its log that is kept."""

    owner: str
    doing: str
    job: bytes | None
    last_seq: int
    ttl_ms: int
    expires_ms: int
    carry: Mapping[str, Any]
    carry_seq: int
    carry_open: bool
    oldest_seq: int


class Sessions(Protocol):
    """The memory service's part."""

    async def replace_session(self, session_id: str, turns: Sequence[Mapping[str, Any]], forgotten: Sequence[str], as_of: int) -> None:
        """Makes `turns`, as of append_turn, all that a session holds, and keeps the turns of runs away; nothing where that was done as of
        the number `as_of` (0: none) or a higher one. Raises BulkheadError."""
        ...

    async def delete_session(self, session_id: str, key: str) -> None:
        """Deletes a session; what arrives late stays away. Raises BulkheadError."""
        ...


class ThreadStore(Protocol):
    """Raises Overloaded (STORE_UNAVAILABLE) while the store is away. Of a `RunRef` only tenant and thread count where no run is named."""

    async def note(self, ref: RunRef, look_in_s: float, *, once: bool = False) -> int:
        """Has the thread looked at in `look_in_s`, or sooner where it is noted for that already (`once`: as it is noted); answers the
        store's time (ms) until which a change may begin."""
        ...

    async def due(self, most: int, again_in_s: float) -> list[RunRef]:
        """Threads that somebody should look at now; they are due again in `again_in_s`."""
        ...

    async def look_again(self, ref: RunRef, look_in_s: float | None) -> None:
        """Has a thread looked at in `look_in_s` (None: never)."""
        ...

    async def state(self, ref: RunRef) -> ThreadState | None:
        """A thread, whatever is under way with it."""
        ...

    async def bases(self, ref: RunRef) -> Mapping[int, Mapping[str, Any]]:
        """What forks began with, this thread and those that it was forked of, by the number of the last event that each took over."""
        ...

    async def begin(
        self, ref: RunRef, user: str, doing: str, job: bytes, not_after_ms: int, key: str = "", *, expired: bool = False
    ) -> Begun:
        """Begins a change, in one durable step. `user` '' stands for whoever the thread belongs to; `expired`: only where its time to
        live has ended. `key` is that of a rollback."""
        ...

    async def build(self, ref: RunRef, user: str, metadata: Mapping[str, str], job: bytes, print_: str, not_after_ms: int) -> Begun:
        """Begins a thread that nobody sees yet. `print_` is the digest of the request."""
        ...

    async def copy(self, ref: RunRef, user: str, after_seq: int, events: Sequence[Event]) -> int:
        """Adds events behind `after_seq`; answers the number that the log ends with, -1 where nobody builds the thread any more."""
        ...

    async def copy_runs(self, parent: RunRef, ref: RunRef, user: str, records: Sequence[RunRecord]) -> None:
        """Adds records of runs that ended in `parent`."""
        ...

    async def built(
        self, ref: RunRef, user: str, data: bytes, carry: bytes, bases: bytes, parent: str, at_seq: int, ttl_ms: int, last_run: str,
        trace_id: str,
    ) -> int:  # fmt: skip
        """Shows the thread; answers its last number, 0 where nobody builds it any more. `last_run` is the newest that was copied."""
        ...

    async def rolled(
        self, ref: RunRef, user: str, job: bytes, data: bytes, carry: bytes, run_ids: Sequence[str], key: str, trace_id: str
    ) -> tuple[str, int]:
        """Ends a rollback: (done, lost or busy; number of the event)."""
        ...

    async def run_ids(self, ref: RunRef) -> list[str]:
        """All runs of the thread, oldest first."""
        ...

    async def line(self, ref: RunRef) -> list[str]:
        """The runs of the thread that take turns and have not ended, the one at work first."""
        ...

    async def unsettled(self, ref: RunRef, run_ids: Sequence[str]) -> list[str]:
        """Those of the runs that have not ended, or of whose end not everybody was told."""
        ...

    async def delist(self, ref: RunRef, user: str, run_ids: Sequence[str]) -> None:
        """Takes runs out of what leads to them, and off what looks at them."""
        ...

    async def delist_thread(self, ref: RunRef, user: str) -> None:
        """Takes the thread out of its user's list."""
        ...

    async def purge_runs(self, ref: RunRef, run_ids: Sequence[str]) -> None:
        """Deletes runs of a thread that is deleted."""
        ...

    async def purge(self, ref: RunRef, user: str) -> int:
        """Deletes the rest of it, but for a tombstone; answers the number that its watchers are told."""
        ...

    async def ended(self, ref: RunRef) -> None:
        """Has whoever moves logs look at a run of the thread."""
        ...

    async def live(self, ref: RunRef, ttl_ms: int, active_ms: int) -> float:
        """Gives a thread a time to live since it was active; answers how many seconds of it are left, -1 where it has none."""
        ...
