"""A workflow: steps, each of one kind, and where each leads. See docs/workflows.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

from services.orchestrator.workflows.expressions import Condition, Template, as_templates, as_written

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
Tool = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}(@[A-Za-z0-9.+_-]{1,32})?$")]
ErrorCode = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}(\.\*)?$")]
# Longer than any business process should hang on one run.
MOST_WAIT_S = 90 * 86_400
Seconds = Annotated[float, Field(gt=0, le=MOST_WAIT_S)]
# Any JSON, of which each text is a template.
Filled = Annotated[Any, AfterValidator(as_templates), PlainSerializer(as_written)]
MOST_STEPS = 100
# As which an approval step is asked, decided and told; no tool of an agent with a workflow can be called so.
REQUEST_APPROVAL = "request_approval"
MOST_BRANCHES = 16
# What it is no use to call again soon is not among them: wrong input, refused permission, a decision against it.
PASSING = (
    "transport.*", "upstream.server", "upstream.rate_limited", "limit.rate", "limit.concurrency", "limit.breaker_open", "tool_unavailable",
    "refused.unreachable", "timeout",
)  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Retry(_Strict):
    """How often a step is tried in all, and how long after a failure: `backoff_s`, doubled each time up to `most_s`.

    `codes` names errors, `prefix.*` all that begin so; absent, all that pass by themselves.
    """

    attempts: Annotated[int, Field(ge=2, le=20)]
    backoff_s: Annotated[float, Field(gt=0, le=86_400)] = 1.0
    most_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    codes: Sequence[ErrorCode] = ()

    def after(self, attempt: int) -> float:
        """Seconds to wait after so many attempts."""
        return min(self.backoff_s * 2 ** (attempt - 1), self.most_s)


class _Step(_Strict):
    """What every kind has. `next` absent: the step after it; the last of a branch ends the branch."""

    name: Name
    title: Annotated[str, Field(max_length=200)] = ""
    next: Name | None = None
    max_visits: Annotated[int, Field(ge=1, le=10_000)] | None = None
    on_error: Name | None = None


class _Working(_Step):
    retry: Retry | None = None
    timeout_s: Seconds | None = None


class ModelStep(_Working):
    """Asks the model `prompt`; its tools are called until it answers, in `max_steps` model calls at most.

    `answer` is the JSON Schema of an answer that is JSON; one that does not fit may be corrected once.
    """

    kind: Literal["model"]
    prompt: Template
    model: str = ""
    tools: Sequence[Tool] = ()
    max_steps: Annotated[int, Field(ge=1, le=100)] = 8
    answer: Mapping[str, Any] | None = None


class ToolStep(_Working):
    """Calls one tool."""

    kind: Literal["tool"]
    tool: Tool
    arguments: Annotated[Mapping[str, Any], AfterValidator(as_templates), PlainSerializer(as_written)] = {}


class Case(_Strict):
    """One way out of a choice."""

    when: Condition
    next: Name


class ChoiceStep(_Step):
    """Leads to the first case that holds, else to `next`."""

    kind: Literal["choice"]
    cases: Annotated[Sequence[Case], Field(min_length=1, max_length=50)]


class WaitStep(_Step):
    """Waits `seconds`, or `until` a time: RFC 3339, or milliseconds since 1970. A worker is not held meanwhile."""

    kind: Literal["wait"]
    seconds: Seconds | None = None
    until: Template | None = None


class ApprovalStep(_Step):
    """Asks a person `question` and waits for the answer."""

    kind: Literal["approval"]
    question: Template


class ParallelStep(_Step):
    """Branches side by side; it is over when all are. One that fails ends all."""

    kind: Literal["parallel"]
    branches: Annotated[Mapping[Name, Annotated[Sequence["Step"], Field(min_length=1)]], Field(min_length=2, max_length=MOST_BRANCHES)]


class Failure(_Strict):
    """How a run ends that does not succeed."""

    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
    message: Template


class EndStep(_Strict):
    """The end of the run: its answer, or a failure."""

    kind: Literal["end"]
    name: Name
    title: Annotated[str, Field(max_length=200)] = ""
    output: Filled = None
    fail: Failure | None = None


Step = Annotated[ModelStep | ToolStep | ChoiceStep | WaitStep | ApprovalStep | ParallelStep | EndStep, Field(discriminator="kind")]
ParallelStep.model_rebuild()


class Workflow(_Strict):
    """Steps in their order; the first is where it starts."""

    steps: Annotated[Sequence[Step], Field(min_length=1)]

    def every(self) -> "Iterator[Placed]":
        """All steps, those of branches after the one that they belong to."""
        yield from _placed(self.steps, None, "steps")

    @cached_property
    def by_name(self) -> "Mapping[str, Placed]":
        """Each step where it stands."""
        return {placed.step.name: placed for placed in self.every()}


@dataclass(frozen=True, slots=True)
class Placed:
    """A step where it stands: `where` in the file, `scope` the names of its list in order, `branch` of which branch that list is,
    as step and name of the branch; None for the workflow's own."""

    step: ModelStep | ToolStep | ChoiceStep | WaitStep | ApprovalStep | ParallelStep | EndStep
    where: str
    branch: tuple[str, str] | None
    scope: tuple[str, ...]

    @property
    def following(self) -> str:
        """Where it leads when all is well; empty where its list is at its end."""
        explicit = None if isinstance(self.step, EndStep) else self.step.next
        if explicit is not None:
            return explicit
        index = self.scope.index(self.step.name)
        return self.scope[index + 1] if index + 1 < len(self.scope) else ""


def _placed(steps: Sequence[Any], branch: tuple[str, str] | None, where: str) -> Iterator[Placed]:
    scope = tuple(step.name for step in steps)
    for index, step in enumerate(steps):
        yield Placed(step, f"{where}.{index}", branch, scope)
        if isinstance(step, ParallelStep):
            for name, inner in step.branches.items():
                yield from _placed(inner, (step.name, name), f"{where}.{index}.branches.{name}")
