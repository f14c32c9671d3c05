"""What the store in memory holds, sorted as Valkey's hash tags sort it: by tenant, by thread, and by track of the queue."""

from dataclasses import dataclass, field, fields

import orjson

from services.orchestrator.approvals.records import Interrupt
from services.orchestrator.records import ENDED, Command, Event, RunRecord, RunRef, RunSpec, ThreadRecord, Written
from services.orchestrator.testing.memory_store_queue import FairQueue, StoredTenant


class Clock:
    """The store's clock. It stands still until a test steps it."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.now_ms = now_ms

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass."""
        self.now_ms += round(seconds * 1000)


@dataclass(slots=True)
class StoredRun:
    """A run's hash. `number` and `reply` are of its owner's last write, `prov_from` is 0 where nothing is provisional."""

    spec: bytes
    track: str
    append_only: bool
    status: str
    epoch: int
    attempt: int
    owner: str
    lease_until: int
    created_ms: int
    queued_ms: int
    started_ms: int
    first_seq: int
    cancel: bool
    schedule: str = ""
    held: str = ""
    schema_version: int = 1
    crashes: int = 0
    losses: int = 0
    lost_ms: int = 0
    active_from: int = 0
    terminal_seq: int = 0
    ended_ms: int = 0
    number: int = 0
    reply: Written | None = None
    prov_from: int = 0
    result: bytes = b""
    state: bytes = b""
    cancel_reason: str = ""
    outbox_until: int = 0
    outbox_attempts: int = 0
    left: bool = False
    messages: list[bytes] = field(default_factory=list)
    parked_until: int = 0
    rested: int = 0
    commands: list[Command] = field(default_factory=list)
    posted: dict[str, int] = field(default_factory=dict)
    steers: list[int] = field(default_factory=list)
    stopping: bool = False
    cut: str = ""
    interrupts: dict[str, Interrupt] = field(default_factory=dict)
    carry: bytes = b"{}"

    @property
    def inbox(self) -> int:
        """Commands that came so far."""
        return len(self.commands)

    @property
    def ended(self) -> bool:
        """Whether it has its terminal event."""
        return self.status in ENDED

    def record(self, run_id: str) -> RunRecord:
        """As readers get it."""
        same = {f.name: getattr(self, f.name) for f in fields(RunRecord) if hasattr(self, f.name)}
        return RunRecord(**{
            **same, "run_id": run_id, "spec": RunSpec.from_dict(orjson.loads(self.spec)), "cancel_requested": self.cancel,
            "result": orjson.loads(self.result or b"{}"), "state": orjson.loads(self.state or b"{}"), "provisional_from": self.prov_from,
            "carry": orjson.loads(self.carry),
        })  # fmt: skip


@dataclass(slots=True)
class StoredThread:
    """All under one thread's hash tag. `user` is None until somebody makes the thread; `tombstones` hold when they are forgotten;
    `oldest_seq` is the first number that readers still get."""

    user: str | None = None
    created_ms: int = 0
    metadata: bytes = b"{}"
    log: list[Event] = field(default_factory=list)
    runs: dict[str, StoredRun] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    outbox: dict[str, bytes] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    # What the last run left that asked its client, from which number on, whether it is open, and the run that answers it.
    carry: bytes = b""
    carry_seq: int = 0
    carry_open: bool = False
    answered_by: str = ""
    oldest_seq: int = 1

    def record(self, thread_id: str, user: str) -> ThreadRecord | None:
        """As readers get it; None where it is not this user's."""
        if self.user is None or self.user != user:
            return None
        return ThreadRecord(thread_id, self.created_ms, len(self.log), orjson.loads(self.metadata), oldest_seq=self.oldest_seq)


@dataclass(slots=True)
class MemoryState:
    """One store; processes that share it are MemoryStores over the same state."""

    clock: Clock = field(default_factory=Clock)
    tenants: dict[str, StoredTenant] = field(default_factory=dict)
    threads: dict[tuple[str, str], StoredThread] = field(default_factory=dict)
    definitions: dict[str, bytes] = field(default_factory=dict)
    live: dict[str, float] = field(default_factory=dict)
    tracks: dict[str, FairQueue] = field(default_factory=dict)

    def tenant(self, name: str) -> StoredTenant:
        """A tenant's part, made when it is asked for first."""
        return self.tenants.setdefault(name, StoredTenant())

    def thread(self, ref: RunRef) -> StoredThread:
        """A thread's part, made when it is asked for first."""
        return self.threads.setdefault(ref[:2], StoredThread())

    def track(self, name: str) -> FairQueue:
        """The queue of a track, made when it is asked for first."""
        return self.tracks.setdefault(name, FairQueue())
