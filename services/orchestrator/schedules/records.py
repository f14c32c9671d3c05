"""What schedules keep, free of any store or transport."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import orjson

from services.orchestrator.records import RunRef, decode_ref, encode_ref
from services.orchestrator.schedules.cron import HORIZON, Cron

SCHEDULE_SCHEMA = 1
# Labels that every run of a schedule carries: its id, and the time (RFC 3339) that it was due by the plan.
LABEL, LABEL_FOR = "schedule_id", "scheduled_for"
# The track of a schedule that says nothing of it: one of the version before, which did not ask how it was made.
STABLE = "stable"
OVERLAP = ("skip", "queue", "cancel")
CATCH_UP = ("none", "last")
# Zones read from the system, so unknown names cost no more than this many.
_ZONES = 256


class ScheduleRef(NamedTuple):
    """Where a schedule is."""

    tenant: str
    schedule_id: str

    def encode(self) -> str:
        """As encode_ref."""
        return encode_ref(*self)

    @classmethod
    def decode(cls, text: str) -> "ScheduleRef":
        """The inverse of `encode`. Raises ValueError."""
        return cls(*decode_ref(text, 1))


class Due(NamedTuple):
    """A schedule that somebody should look at, and the date at which it is due again: nobody else's is the same."""

    ref: ScheduleRef
    at_ms: int


@lru_cache(maxsize=_ZONES)
def zone_of(name: str) -> tzinfo:
    """A time zone of the IANA database. Raises ValueError."""
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError("is not a time zone of the IANA database") from error


@dataclass(frozen=True, slots=True)
class Timing:
    """When a schedule fires: by `cron` in the zone `zone`, or every `every_ms` counted from `anchor_ms`; between `start_ms` and `end_ms`
    (0: open, both included). A run starts up to `jitter_ms` after its tick."""

    cron: str = ""
    zone: str = ""
    every_ms: int = 0
    anchor_ms: int = 0
    start_ms: int = 0
    end_ms: int = 0
    jitter_ms: int = 0

    def after(self, at_ms: int) -> int:
        """The first tick after `at_ms` (Unix ms); 0 where there is none. Raises ValueError for a zone or expression that is none."""
        at_ms = max(at_ms, self.start_ms - 1)
        if self.every_ms:
            found_ms = self.anchor_ms + max(0, (at_ms - self.anchor_ms) // self.every_ms + 1) * self.every_ms
        else:
            found = Cron.parse(self.cron).after(_EPOCH + timedelta(milliseconds=at_ms), zone_of(self.zone))
            found_ms = (found - _EPOCH) // timedelta(milliseconds=1) if found else 0
        return 0 if self.end_ms and found_ms > self.end_ms else found_ms

    def last_until(self, from_ms: int, until_ms: int) -> int:
        """The last tick from `from_ms`, which is one, until `until_ms`."""
        if self.every_ms:
            last_ms = from_ms + (until_ms - from_ms) // self.every_ms * self.every_ms
            return last_ms if not self.end_ms else min(last_ms, from_ms + (self.end_ms - from_ms) // self.every_ms * self.every_ms)
        back_ms = 2 * 60_000
        until_ms = min(until_ms, self.end_ms or until_ms)
        # From the end, in spans that grow until one has a tick: a long outage of a tick a minute costs no more than a short one.
        while until_ms - back_ms > from_ms:
            if 0 < self.after(until_ms - back_ms) <= until_ms:
                from_ms = self.after(until_ms - back_ms)
                break
            back_ms *= 4
        while 0 < (following := self.after(from_ms)) <= until_ms:
            from_ms = following
        return from_ms


_EPOCH = datetime.fromtimestamp(0, UTC)
LONGEST_INTERVAL_MS = HORIZON // timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Definition:
    """What a schedule does. `thread_id` is the one thread of its runs; empty: a new one each time. `principal` is whom runs are for, and
    `canary` and `track` are how that caller's request came: with x-canary, and where that led to. Who fires a tick has no say in them."""

    timing: Timing
    agent: str
    input: Sequence[Mapping[str, str]]
    principal: Mapping[str, Any]
    thread_id: str = ""
    overlap: str = "skip"
    catch_up: str = "none"
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    canary: bool = False
    track: str = STABLE

    def encode(self) -> bytes:
        """JSON."""
        timing = self.timing
        return orjson.dumps(
            {
                "schema_version": SCHEDULE_SCHEMA, "agent": self.agent, "input": list(self.input), "principal": dict(self.principal),
                "thread_id": self.thread_id, "overlap": self.overlap, "catch_up": self.catch_up, "metadata": dict(self.metadata),
                "name": self.name, "canary": self.canary, "track": self.track,
                "timing": {name: getattr(timing, name) for name in Timing.__slots__},
            }
        )  # fmt: skip

    @classmethod
    def decode(cls, raw: bytes) -> "Definition":
        """The inverse of `encode`; unknown fields are ignored, so that N reads what N+1 wrote."""
        data = orjson.loads(raw)
        timing = Timing(**{name: value for name, value in data["timing"].items() if name in Timing.__slots__})
        known = {name: value for name, value in data.items() if name in cls.__slots__ and name != "timing"}
        return cls(timing=timing, **known)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a tick: `result` is fired, skipped (an earlier run was at work), missed (nobody was there) or refused (`reason`)."""

    tick_ms: int
    result: str
    run_id: str = ""
    thread_id: str = ""
    reason: str = ""
    at_ms: int = 0

    def encode(self) -> bytes:
        """JSON."""
        return orjson.dumps([self.tick_ms, self.result, self.run_id, self.thread_id, self.reason, self.at_ms])

    @classmethod
    def decode(cls, raw: bytes) -> "Outcome":
        """The inverse of `encode`."""
        return cls(*orjson.loads(raw)[:6])


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule as it is stored. `state`: active, paused, or ended (no tick is left); `next_ms` is its next tick by the plan (0: none).
    `firing_ms` is a tick whose run is being made since `firing_since_ms`, by `firing` as it was then; `waiting_ms` one that waits for an
    earlier run. `last_run` is the run of the last tick that made one."""

    ref: ScheduleRef
    user: str
    definition: Definition
    version: int
    state: str
    next_ms: int
    created_ms: int
    updated_ms: int
    firing_ms: int = 0
    firing: Definition | None = None
    firing_since_ms: int = 0
    waiting_ms: int = 0
    last: Outcome | None = None
    last_run: RunRef | None = None

    def due_ms(self) -> int:
        """When its next run starts; 0 for never."""
        return due_of(self.ref, self.definition.timing, self.next_ms) if self.state == "active" and self.next_ms else 0


def tick_name(ref: ScheduleRef, tick_ms: int) -> str:
    """A digest that stands for one tick of one schedule, the same for whoever makes it."""
    return hashlib.sha256(f"{ref.tenant}\n{ref.schedule_id}\n{tick_ms}".encode()).hexdigest()[:32]


def run_of(ref: ScheduleRef, definition: Definition, tick_ms: int) -> RunRef:
    """The run of a tick."""
    name = tick_name(ref, tick_ms)
    return RunRef(ref.tenant, definition.thread_id or f"th_{name}", f"run_{name}")


def due_of(ref: ScheduleRef, timing: Timing, tick_ms: int) -> int:
    """When the run of a tick starts: the tick and its share of the jitter, which is the same for whoever asks."""
    return tick_ms + (int(tick_name(ref, tick_ms)[:12], 16) % timing.jitter_ms if timing.jitter_ms else 0)


def at(ms: int) -> str:
    """A time (Unix ms) as RFC 3339 in UTC."""
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="seconds").replace("+00:00", "Z")
