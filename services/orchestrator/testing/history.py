"""What is known of a thread afterwards, from outside: its log, its records, what clients were told, what tools did."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

LOG_GAP = "log_gap"
TERMINAL = {"run_finished": pb.RUN_STATUS_SUCCEEDED, "run_failed": pb.RUN_STATUS_FAILED, "run_cancelled": pb.RUN_STATUS_CANCELLED}


class Violation(NamedTuple):
    """One broken promise."""

    invariant: str
    run_id: str
    what: str


class Effect(NamedTuple):
    """One side effect, counted outside. `nonce` names what the model asked for, `key` the call that brought it about."""

    run_id: str
    tool: str
    nonce: str
    key: str
    at_ms: int
    repeatable: bool


class Decided(NamedTuple):
    """What a client decided of a question, and was answered. `key` stands as the reason of the decision too, so that the log tells which
    one holds; `nonce` is that of the arguments that it approves; `refused` is why it was not taken ('': it was)."""

    approval_id: str
    key: str
    verb: str
    nonce: str = ""
    refused: str = ""


@dataclass(slots=True)
class Seen:
    """What one client was shown of a run, over all its reconnects; of the thread, where `run_id` is ''. `ended`: the stream ended by
    itself, or was left with nothing more to come; `ended_ms`: when it ended by itself (0: not known); `gap_to`: the oldest number that a
    resume_gap told of (0: none)."""

    run_id: str
    events: list[pb.Event] = field(default_factory=list)
    after_seq: int = 0
    types: frozenset[str] = frozenset()
    ended: bool = False
    ended_ms: int = 0
    gap_to: int = 0


@dataclass
class History:
    """All that is known of one thread. `accepted`: run ids that were acknowledged to a client; `cancels`: when a cancel of a run
    was acknowledged (ms); `oldest_seq`: where the log begins that retention has left.

    Of people: `decisions`; `guarded`, run and tool of calls that need an approval; `steers`, texts by run and the number that was
    acknowledged, and `stops`, such numbers of wishes to stop generating; `said`, texts that were sent once, as input or to steer.
    `refused`: ids of runs that a client was told are not made. `children`: records of runs that runs of the thread have made.
    `ending`: runs whose end anybody may have asked for; None: not known. `none_given_up`: no owner was lost by anything but the faults of
    others, so that no run may end for that.
    """

    thread_id: str
    log: Sequence[pb.Event]
    runs: Mapping[str, pb.Run]
    accepted: frozenset[str] = frozenset()
    cancels: Mapping[str, int] = field(default_factory=dict)
    effects: Sequence[Effect] = ()
    seen: Sequence[Seen] = ()
    oldest_seq: int = 1
    decisions: Sequence[Decided] = ()
    guarded: Set[tuple[str, str]] = frozenset()
    steers: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    stops: Mapping[str, Set[int]] = field(default_factory=dict)
    said: Set[str] = frozenset()
    refused: Set[str] = frozenset()
    children: Mapping[str, pb.Run] = field(default_factory=dict)
    ending: Set[str] | None = None
    none_given_up: bool = False

    @cached_property
    def by_run(self) -> Mapping[str, list[pb.Event]]:
        """The log of each run."""
        found: dict[str, list[pb.Event]] = defaultdict(list)
        for event in self.log:
            found[event.run_id].append(event)
        return found

    @cached_property
    def gaps(self) -> Sequence[tuple[int, int]]:
        """Numbers that a promotion of the store made void: each from the first up to the log_gap that says so."""
        return [(orjson.loads(event.data_json)["from_seq"], event.seq) for event in self.log if event.type == LOG_GAP]

    def void(self, seq: int) -> bool:
        """Whether the log says of this number that what was shown under it does not hold."""
        return any(first <= seq < gap for first, gap in self.gaps)

    def ended(self, run_id: str) -> bool:
        """Whether a run's record says that it has ended."""
        run = self.runs.get(run_id)
        return run is not None and run.status in TERMINAL.values()

    def succeeded(self, run_id: str) -> bool:
        """Whether a run's record says that it has ended with an answer."""
        run = self.runs.get(run_id)
        return run is not None and run.status == pb.RUN_STATUS_SUCCEEDED

    def shown_to(self, run_id: str) -> Sequence[pb.Event]:
        """What a watcher of the run is shown; of the thread, where it is ''."""
        if not run_id:
            return self.log
        own = self.by_run.get(run_id, [])
        first, last = (own[0].seq, own[-1].seq if own[-1].type in TERMINAL else self.log[-1].seq) if own else (0, 0)
        return [event for event in self.log if event.run_id == run_id or (event.type == LOG_GAP and first < event.seq <= last)]

    def told(self, *types: str) -> Sequence[tuple[pb.Event, Any]]:
        """All events of these types, with their data. What others than a run's owner tell of it is never taken back."""
        return [(event, orjson.loads(event.data_json)) for event in self.log if event.type in types]

    @cached_property
    def standing(self) -> Mapping[str, list[tuple[pb.Event, Any]]]:
        """The events of each run that no attempt_superseded took back, with their data."""
        found = {}
        for run_id, events in self.by_run.items():
            kept: list[tuple[pb.Event, Any]] = []
            for event in events:
                data = orjson.loads(event.data_json)
                if event.type == "attempt_superseded":
                    kept = [entry for entry in kept if entry[0].seq < data["from_seq"]]
                kept.append((event, data))
            found[run_id] = kept
        return found
