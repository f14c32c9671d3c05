"""Bodies and parameters of the routes that control runs and judge them."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import Field, model_validator

from services.gateway.refusals import InvalidBody
from services.gateway.surfaces.native.models import INT32_MAX, INT64_MAX, Body, Id, Labels, Name

MOST_STEERING_CHARS = 64 * 1024
MOST_PLAN_STEPS = 50
MOST_PLAN_TITLE_CHARS = 500
MOST_FEEDBACK_CHARS = 8 * 1024
MOST_CORRECTED_CHARS = 32 * 1024
DAY_MS = 86_400_000

# Models choose the ids of their calls, so little can be asked of them.
CallIdPath = Annotated[str, Path(min_length=1, max_length=256, description="As `tool_call_started` names it.")]


class RunStop(Body):
    """Nothing is to be said about a stop."""


class RunSteer(Body):
    """A message for a run at work."""

    text: Annotated[str, Field(min_length=1, max_length=MOST_STEERING_CHARS, description="What the user says, at most 64 KiB.")]


class PlanStep(Body):
    """One step of a plan."""

    title: Annotated[str, Field(min_length=1, max_length=MOST_PLAN_TITLE_CHARS)]
    status: Literal["pending", "in_progress", "done", "skipped"]


class PlanUpdate(Body):
    """A plan in place of the run's."""

    version: Annotated[int, Field(ge=1, le=INT64_MAX, description="Of the plan that you saw, from `plan_updated`.")]
    steps: Annotated[list[PlanStep], Field(min_length=1, max_length=MOST_PLAN_STEPS, description="The whole plan.")]


class ToolCallCancel(Body):
    """How a run goes on without a tool call."""

    continuation: Annotated[
        Literal["skip", "fail", "retry", "substitute"],
        Field(
            description="`skip`: the model is told; `fail`: the run fails; `retry`: made again where that is safe; `substitute`: `result`."
        ),
    ]
    result: Annotated[Any, Field(description="With `substitute`: what the model is given, at most 64 KiB of JSON.")] = None

    @model_validator(mode="after")
    def _result_with_substitute(self) -> "ToolCallCancel":
        if ("result" in self.model_fields_set) != (self.continuation == "substitute"):
            raise InvalidBody.field("result", "goes with `substitute`, and only with it")
        return self


class RunFilter(Body):
    """Which runs: those that fit all that is given."""

    thread_id: Id | None = None
    agent: Name | None = None
    statuses: Annotated[list[Literal["queued", "running", "waiting"]], Field(max_length=3, description="Empty: all three.")] = Field(
        default_factory=list
    )
    metadata: Labels = Field(default_factory=dict)
    schedule_id: Id | None = None

    @model_validator(mode="after")
    def _names_something(self) -> "RunFilter":
        if not any((self.thread_id, self.agent, self.statuses, self.metadata, self.schedule_id)):
            raise ValueError("must name a thread, an agent, a status, a schedule or a label")
        return self


class RunsCancel(Body):
    """Which runs are to end, and why."""

    filter: RunFilter
    reason: Annotated[str, Field(max_length=200)] = ""
    limit: Annotated[int, Field(ge=1, le=INT32_MAX, description="Runs to look at now. Absent: as many as five seconds allow.")] | None = (
        None
    )


class FeedbackCreate(Body):
    """What a user thinks of a run, or did with its answer. At least one of rating, thumbs, text, corrected_answer and signal is given."""

    run_id: Id
    rating: Annotated[int, Field(ge=1, le=5, description="5 is best.")] | None = None
    thumbs: Literal["up", "down"] | None = None
    text: Annotated[str, Field(max_length=MOST_FEEDBACK_CHARS)] = ""
    corrected_answer: Annotated[str, Field(max_length=MOST_CORRECTED_CHARS, description="What the answer should have been.")] = ""
    signal: Literal["regenerate", "edit", "copy", "abandon", "correction", "dwell", "scroll"] | None = None
    dwell_ms: Annotated[int, Field(ge=1, le=DAY_MS, description="With the signal `dwell`.")] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackCreate":
        if not any((self.rating, self.thumbs, self.text, self.corrected_answer, self.signal)):
            raise InvalidBody.field("rating", "give at least one of rating, thumbs, text, corrected_answer and signal")
        if self.dwell_ms is not None and self.signal != "dwell":
            raise InvalidBody.field("dwell_ms", "goes with the signal `dwell` alone")
        return self
