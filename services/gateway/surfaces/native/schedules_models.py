"""Bodies and answers of /v1/schedules."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from services.gateway.surfaces.native.models import INT64_MAX, Body, Id, Input, Labels, Moment, Name
from services.gateway.surfaces.native.outputs import Out

MOST_JITTER_MS = 3_600_000
MOST_INTERVAL_MS = 10 * 365 * 86_400_000


ThreadPolicyName = Literal["new", "one"]
OverlapName = Literal["skip", "queue", "cancel"]
CatchUpName = Literal["none", "last"]


class ScheduleTiming(Body):
    """When a schedule fires: by `cron`, or every `interval_ms`."""

    cron: Annotated[str, Field(min_length=1, max_length=256, description="Five fields with names, or @hourly and the like.")] | None = None
    interval_ms: Annotated[int, Field(ge=1, le=MOST_INTERVAL_MS, description="Counted from start_at. At least a minute.")] | None = None
    time_zone: Annotated[str, Field(max_length=64, description="IANA name, for cron.")] = "UTC"
    start_at: Moment | None = Field(None, description="No tick before it; RFC 3339.")
    end_at: Moment | None = Field(None, description="No tick after it; RFC 3339.")
    jitter_ms: Annotated[int, Field(ge=0, le=MOST_JITTER_MS, description="A run starts up to this much after its tick.")] = 0

    @model_validator(mode="after")
    def _one_recurrence(self) -> "ScheduleTiming":
        if (self.cron is None) == (self.interval_ms is None):
            raise ValueError("needs either cron or interval_ms")
        return self


class ScheduleCreate(Body):
    """A new schedule."""

    timing: ScheduleTiming
    input: Input
    name: Annotated[str, Field(max_length=256)] = ""
    agent: Name | None = Field(None, description="Absent: the first agent of the configuration. Each run has its newest version.")
    thread_policy: ThreadPolicyName = Field("new", description="A new thread for each run, or one for all.")
    thread_id: Id | None = Field(None, description="The one thread of thread_policy `one`. Absent: made by the service.")
    overlap_policy: OverlapName = Field("skip", description="What a tick does while the run of an earlier one is at work.")
    catch_up_policy: CatchUpName = Field("none", description="What becomes of ticks that nobody was there for.")
    metadata: Labels = Field(default_factory=dict, description="Labels of each run, at most 14.")


class ScheduleChange(Body):
    """What is to change. What is absent stays; `timing`, `input` and `metadata` are replaced as a whole."""

    timing: ScheduleTiming | None = None
    input: Input | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    agent: Name | None = None
    thread_policy: ThreadPolicyName | None = Field(None, description="Together with thread_id, which is made by the service when absent.")
    thread_id: Id | None = None
    overlap_policy: OverlapName | None = None
    catch_up_policy: CatchUpName | None = None
    metadata: Labels | None = None
    expected_version: Annotated[int, Field(ge=1, le=INT64_MAX, description="Refused with 409 where the schedule has another.")] | None = (
        None
    )

    @model_validator(mode="after")
    def _something(self) -> "ScheduleChange":
        if not self.model_dump(exclude={"expected_version"}, exclude_none=True):
            raise ValueError("must change something")
        return self


class TimingOut(Out):
    """When a schedule fires."""

    cron: str | None
    interval_ms: int | None
    time_zone: str
    start_at: str | None
    end_at: str | None
    jitter_ms: int


class InputMessageOut(Out):
    """One message of the input."""

    role: str
    content: str


class TickOut(Out):
    """A tick and what came of it. One that was missed stands for all up to the next entry."""

    tick_at: str | None
    result: Literal["fired", "skipped", "missed", "refused"]
    run_id: str | None
    thread_id: str | None
    reason: str | None
    decided_at: str | None


class ScheduleOut(Out):
    """A schedule."""

    schedule_id: str
    name: str
    timing: TimingOut
    agent: str
    input: list[InputMessageOut]
    thread_policy: ThreadPolicyName
    thread_id: str | None
    overlap_policy: OverlapName
    catch_up_policy: CatchUpName
    metadata: dict[str, str]
    state: Literal["active", "paused", "ended"]
    next_tick_at: str | None
    created_at: str | None
    updated_at: str | None
    version: int
    last_tick: TickOut | None


class SchedulePage(Out):
    """Schedules, newest first."""

    data: list[ScheduleOut]
    next_after: str | None


class TickPage(Out):
    """Ticks, newest first; the last 500 are kept."""

    data: list[TickOut]
    next_after: str | None
