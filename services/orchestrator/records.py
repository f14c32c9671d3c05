"""What the orchestrator keeps: references, specifications, run records and events, free of any store or transport."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Bumped when what a run record or an event holds changes its meaning; this version reads it and the one before.
SCHEMA_VERSION = 4
# Of what is written: the second version is that of runs that have been parked, the third of those with results that were put aside, the
# fourth of those whose input, or whose answer, is more than text.
CLIENT_SCHEMA = 4
EVENT_SCHEMA = 1
ENDED = frozenset({"succeeded", "failed", "cancelled"})
TERMINAL_EVENTS = frozenset({"run_finished", "run_failed", "run_cancelled"})
_TEXT = ("role", "text")
# An event of the thread and of none of its runs: the log has skipped ahead, and what was shown from its `from_seq` on is void.
LOG_GAP = "log_gap"


class Fenced(Exception):
    """The run has another owner by now; whoever gets this must stop its work and write nothing more."""


def encode_ref(tenant: str, *names: str) -> str:
    """What is a tenant's, as it stands in queues and among what is due; tenants may hold any character, the names no slash."""
    return "/".join((quote(tenant, safe=""), *names))


def decode_ref(text: str, names: int) -> tuple[str, ...]:
    """The inverse of `encode_ref`: the tenant and so many names. Raises ValueError."""
    tenant, *found = text.split("/")
    if len(found) != names:
        raise ValueError(f"a tenant and {names} names are meant")
    return unquote(tenant), *found


class RunRef(NamedTuple):
    """Where a run is."""

    tenant: str
    thread_id: str
    run_id: str

    def encode(self) -> str:
        """As encode_ref."""
        return encode_ref(*self)

    @classmethod
    def decode(cls, text: str) -> "RunRef":
        """The inverse of `encode`. Raises ValueError."""
        return cls(*decode_ref(text, 2))


@dataclass(slots=True)
class Event:
    """One event of a thread's log. `data` is a JSON object."""

    seq: int
    at_ms: int
    thread_id: str
    run_id: str
    attempt: int
    type: str
    data: bytes
    provisional: bool
    trace_id: str
    schema_version: int = EVENT_SCHEMA


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run; 0 stands for none. `deadline_s` is active time, `max_total_tokens` input and output of all model calls."""

    deadline_s: float = 0.0
    max_steps: int = 0
    max_tool_calls: int = 0
    max_cost_microusd: int = 0
    max_total_tokens: int = 0


class Schedule(NamedTuple):
    """When a run is worked on: its priority (-10 to 10, higher goes first within its tenant), its tenant's weight among tenants, the
    time (ms) before which it does not start (0: now), the limit of its tenant's runs at work that it waits for (0: none)."""

    priority: int = 0
    weight: int = 1
    start_ms: int = 0
    slots: int = 0

    def encode(self) -> str:
        """As it stands in the run's record; empty where it is as every run was before there were schedules."""
        return "" if self == Schedule() else " ".join(map(str, self))

    @classmethod
    def decode(cls, text: str) -> "Schedule":
        """The inverse of `encode`; what a later version adds is ignored."""
        return cls(*map(int, text.split()[: len(cls._fields)]))


UNSCHEDULED = Schedule()


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that is fixed when a run is accepted."""

    thread_id: str
    agent: str
    agent_version: str
    agent_digest: str
    # As of turn/said.py.
    input: Sequence[Mapping[str, Any]]
    limits: Limits
    principal: Mapping[str, Any]
    request_id: str = ""
    canary: bool = False
    trace: Mapping[str, str] = field(default_factory=dict)
    append_only: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    on_disconnect: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    schedule: Schedule = UNSCHEDULED
    reset_memory: bool = False
    # Goes on with the run that its thread was forked in: its input is said already.
    continues: bool = False
    # Of a run that another run asked for: `ref` of that one, the `depth` from 1, and the `experiment` and `arm` of that one, if any.
    child_of: Mapping[str, Any] = field(default_factory=dict)
    # The experiment that it is part of, and as which arm; both empty: none.
    experiment: str = ""
    arm: str = ""
    # Tools that its client calls: name, description and parameters (JSON Schema as text), and strict where that is so.
    client_tools: Sequence[Mapping[str, Any]] = ()
    # OpenAI's, as JSON.
    tool_choice: str = ""
    response_format: str = ""
    # Where its input answers calls of the client's tools: from which event of its thread on these wait; else 0.
    answers: int = 0

    @property
    def schema(self) -> int:
        """The schema that its owners have to know: who does not would ask its model for less than was asked of it."""
        more = self.client_tools or self.tool_choice or self.response_format or self.answers
        return CLIENT_SCHEMA if more or any(len(message) > len(_TEXT) for message in self.input) else 1

    def works(self) -> dict[str, str]:
        """Who works on it, JSON-ready: what its answer, and what users think of it, is to be put down to."""
        found = {"agent": self.agent, "agent_version": self.agent_version}
        return {**found, "experiment": self.experiment, "arm": self.arm} if self.experiment else found

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        found = {name: getattr(self, name) for name in self.__slots__ if name not in ("limits", "schedule")}
        if not self.reset_memory:
            del found["reset_memory"]
        if not self.continues:
            del found["continues"]
        if not self.child_of:
            del found["child_of"]
        if not self.experiment:
            del found["experiment"], found["arm"]
        for name in ("client_tools", "tool_choice", "response_format", "answers"):
            if not found[name]:
                del found[name]
        if self.schedule != UNSCHEDULED:
            found["schedule"] = self.schedule.encode()
        found["limits"] = [self.limits.deadline_s, self.limits.max_steps, self.limits.max_tool_calls, self.limits.max_cost_microusd]
        # In a place of its own: a replica of the version before takes the rest as all there is.
        if self.limits.max_total_tokens:
            found["max_total_tokens"] = self.limits.max_total_tokens
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunSpec":
        """The inverse of `as_dict`; unknown keys are ignored, so that N reads what N+1 wrote."""
        known = {name: data[name] for name in cls.__slots__ if name in data and name not in ("limits", "schedule")}
        known["schedule"] = Schedule.decode(data.get("schedule", ""))
        return cls(**known, limits=replace(Limits(*data["limits"]), max_total_tokens=data.get("max_total_tokens", 0)))


@dataclass(slots=True)
class RunRecord:
    """A run as it is stored. `result` and `state` are JSON objects, empty before the end and before the first checkpoint."""

    run_id: str
    spec: RunSpec
    status: str
    epoch: int
    attempt: int
    cancel_requested: bool
    created_ms: int
    started_ms: int
    ended_ms: int
    first_seq: int
    terminal_seq: int
    track: str
    result: Mapping[str, Any]
    state: Mapping[str, Any]
    provisional_from: int
    # Commands that others have sent to it.
    inbox: int = 0
    # What of a run that was cut off by a fork or a rollback comes before its input, and the event that took it out of the conversation.
    carry: Mapping[str, Any] = field(default_factory=dict)
    rolled_back: int = 0
    # Owners that were lost since its last checkpoint, and in all.
    crashes: int = 0
    losses: int = 0
    # Time that lost owners worked after their last checkpoints, as far as their heartbeats tell.
    lost_ms: int = 0

    @property
    def since_ms(self) -> int:
        """Its age in the queue; a run that was at work before goes first."""
        return 0 if self.attempt else self.created_ms

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class ThreadRecord:
    """A thread as it is stored. `oldest_seq` is the first number that is kept."""

    thread_id: str
    created_ms: int
    last_seq: int
    metadata: Mapping[str, str]
    parent: str = ""
    forked_at: int = 0
    expires_ms: int = 0
    oldest_seq: int = 1


class Reservation(NamedTuple):
    """What came of reserving: new, existing, mismatch, taken, quota (slots), full (queue), delayed (too many) or erasing (the user is);
    ids; the time (ms) until which the run may be written. `held` means that it waits for a slot, at `place`, or for its time (place 0);
    `pace_ms` is the time from one place to the next, 0 where it is not known."""

    verdict: str
    run_id: str
    thread_id: str
    cancelled: bool
    not_after_ms: int
    held: bool = False
    place: int = 0
    pace_ms: int = 0


class Place(NamedTuple):
    """Where a run waits: the runs of its tenant that go before it, and itself (0: it waits for no slot and no worker); the expected
    wait in ms (0: not known)."""

    position: int = 0
    wait_ms: int = 0


class Draft(NamedTuple):
    """An event that is not written yet."""

    type: str
    data: bytes
    provisional: bool = False


class Command(NamedTuple):
    """What somebody asked of a run at work, as it stands in its inbox; numbers begin at 1."""

    number: int
    kind: str
    at_ms: int
    data: Mapping[str, Any]


class Heard(NamedTuple):
    """What a heartbeat brings: whether a cancel was asked for, and how many commands the inbox holds."""

    cancel: bool
    commands: int


class Inspected(NamedTuple):
    """How a run stands, all of one moment: none, ended, outbox, held, parked, owned, waiting (its turn in the thread) or free; ms left of
    its lease, of a parked one until its time (-1: it has none); ms for which it could have been taken; the head of its thread."""

    state: str
    left_ms: int
    track: str
    alone_ms: int
    schema: int
    created_ms: int
    head: str
    epoch: int


class Park(NamedTuple):
    """How a run is parked: until when at most (ms; 0: until a command comes), and the last command that its state has absorbed."""

    until_ms: int
    absorbed: int


@dataclass(frozen=True, slots=True)
class Terminal:
    """How a run ends. `result` is stored with the run; `event` and `data` are its last event; `outbox` leaves afterwards."""

    status: str
    result: bytes
    event: str
    data: bytes
    outbox: bytes = b""
    # What it leaves to the next run of its thread, as of turn/carried.py.
    carry: bytes = b""


@dataclass(frozen=True, slots=True)
class Written:
    """What the store answered to an append: numbers of the first and last event, its clock, the thread's next run; and whether the end
    of the run was asked for by then, which may have changed where the same write is sent again."""

    first_seq: int
    last_seq: int
    at_ms: int
    next_run: str
    cancel: bool = field(default=False, compare=False)


class Posted(NamedTuple):
    """What came of a command: none (no such run), ended, full (too many), again (it was there already) or posted; its number; the
    run's status after it; the events that went with it. `woken`: it was parked, and somebody has to resume it."""

    verdict: str
    number: int
    status: str
    written: Written
    woken: bool = False


class Cut(NamedTuple):
    """A run that was cut off for another one of its thread: its status since, and the number of its last event where it has ended."""

    run_id: str
    status: str
    last_seq: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of writing a run: new, existing, late (its reservation is too old), foreign (another user's thread), busy (the run
    `at_work` has not ended, and this one was to be accepted only then), unasked (the calls that it answers do not wait) or answered
    (another run that has not ended answers them). `cut` are the runs that were cut off for it."""

    verdict: str
    record: RunRecord | None = None
    written: Written | None = None
    undelivered: Sequence[str] = ()
    at_work: str = ""
    cut: Sequence[Cut] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of trying to own a run; `messages` are those checkpointed, `undelivered` the runs whose outbox waits."""

    verdict: str
    record: RunRecord | None = None
    messages: Sequence[bytes] = ()
    undelivered: Sequence[str] = ()
    written: Written | None = None
