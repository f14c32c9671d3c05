"""What is wrong with a workflow beyond the shape of its steps: all of it at once, each with its path in the file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.orchestrator.graphs import find_cycles, reachable
from services.orchestrator.workflows.definition import (
    MOST_STEPS,
    ApprovalStep,
    ChoiceStep,
    EndStep,
    ModelStep,
    Placed,
    ToolStep,
    WaitStep,
    Workflow,
)
from services.orchestrator.workflows.expressions import Path, named, templates
from services.orchestrator.workflows.schema import schema_problems

ROOTS: Mapping[str, Sequence[str]] = {"input": ("text", "data", "metadata"), "run": ("id", "thread_id"), "steps": ()}
OF_A_STEP = ("output", "error", "visits")
# Ends the list that it stands in. No step can be called so.
_OUT = ""
UNKNOWN_OUTCOME = "tool_outcome_unknown"


def workflow_problems(workflow: Workflow, tools: Sequence[str]) -> list[str]:
    """`tools` are those of the agent, by name or name@version."""
    every = list(workflow.every())
    names = [placed.step.name for placed in every]
    found = [f"steps: {len(every)} are more than {MOST_STEPS}"] if len(every) > MOST_STEPS else []
    for placed in every:
        step, where = placed.step, placed.where
        if names.index(step.name) != every.index(placed):
            found.append(f"{where}.name: {step.name!r} stands twice")
        found += _step_problems(placed, names, {tool.partition("@")[0]: tool for tool in tools})
    lists: dict[tuple[str, str] | None, list[Placed]] = {}
    for placed in every:
        lists.setdefault(placed.branch, []).append(placed)
    for placed_steps in lists.values():
        found += _flow_problems(placed_steps, names)
    return found


def _step_problems(placed: Placed, names: Sequence[str], tools: Mapping[str, str]) -> Iterator[str]:
    step, where = placed.step, placed.where
    if isinstance(step, EndStep):
        if placed.branch is not None:
            yield f"{where}: a branch cannot end the run; its last step ends it"
        if (step.output is None) == (step.fail is None):
            yield f"{where}: must have one of output and fail"
    elif isinstance(step, WaitStep) and (step.seconds is None) == (step.until is None):
        yield f"{where}: must have one of seconds and until"
    wanted = [step.tool] if isinstance(step, ToolStep) else step.tools if isinstance(step, ModelStep) else ()
    for tool in wanted:
        name, _, version = tool.partition("@")
        if name not in tools or (version and tools[name] != tool):
            yield f"{where}.{'tool' if isinstance(step, ToolStep) else 'tools'}: {tool!r} is none of the agent's tools"
    if isinstance(step, ModelStep) and step.answer is not None:
        yield from (f"{where}.answer{problem.removeprefix('schema')}" for problem in schema_problems(step.answer))
    if isinstance(step, ModelStep | ToolStep) and step.retry is not None and UNKNOWN_OUTCOME in step.retry.codes:
        yield f"{where}.retry.codes: {UNKNOWN_OUTCOME!r} may have taken effect and cannot be retried"
    for at, path in _paths(step):
        if problem := _path_problem(path, names):
            yield f"{where}.{at}: {problem}"


def _paths(step: Any) -> Iterator[tuple[str, Path]]:
    """What a step looks at, each with where it does."""
    if isinstance(step, ChoiceStep):
        yield from ((f"cases.{index}.when", path) for index, case in enumerate(step.cases) for path in case.when.paths)
    parts: dict[str, Any] = {}
    if isinstance(step, ModelStep):
        parts = {"prompt": step.prompt}
    elif isinstance(step, ToolStep):
        parts = {"arguments": step.arguments}
    elif isinstance(step, WaitStep):
        parts = {"until": step.until}
    elif isinstance(step, ApprovalStep):
        parts = {"question": step.question}
    elif isinstance(step, EndStep):
        parts = {"output": step.output, "fail.message": step.fail.message if step.fail else None}
    for name, part in parts.items():
        yield from ((name + at, path) for at, template in templates(part) for path in template.paths)


def _path_problem(path: Path, names: Sequence[str]) -> str:
    root, *rest = path
    if root not in ROOTS:
        return f"{named(path)} begins with none of {', '.join(ROOTS)}"
    if not rest:
        return f"{named(path)} is not a value"
    if root != "steps":
        return "" if rest[0] in ROOTS[str(root)] else f"{named(path)}: {root} has {', '.join(ROOTS[str(root)])}"
    if rest[0] not in names:
        return f"{named(path)}: there is no step {rest[0]!r}"
    return "" if len(rest) > 1 and rest[1] in OF_A_STEP else f"{named(path)}: a step has {', '.join(OF_A_STEP)}"


def _flow_problems(steps: Sequence[Placed], names: Sequence[str]) -> Iterator[str]:
    """Of one list of steps: where they lead, and whether they come to an end."""
    edges: dict[str, list[str]] = {}
    # A step that was visited as often as it may be is left only by its on_error.
    endless: dict[str, list[str]] = {}
    for placed in steps:
        step = placed.step
        ways = _ways(placed)
        for at, target in ways:
            if target not in placed.scope and target != _OUT:
                known = target in names
                yield (
                    f"{placed.where}.{at}: {target!r} stands in another list of steps"
                    if known
                    else f"{placed.where}.{at}: there is no step {target!r}"
                )
            elif target == _OUT and placed.branch is None:
                yield f"{placed.where}: leads nowhere; it needs a next, or a step after it"
        edges.setdefault(step.name, [target for _, target in ways if target in placed.scope or target == _OUT])
        bounded = not isinstance(step, EndStep) and step.max_visits is not None
        endless.setdefault(step.name, [target for at, target in ways if target in placed.scope and (at == "on_error" or not bounded)])
    reached = reachable(edges, steps[0].step.name)
    ends = {placed.step.name for placed in steps if isinstance(placed.step, EndStep)} | {_OUT}
    for placed in steps:
        name = placed.step.name
        if name not in reached:
            yield f"{placed.where}: no step leads to {name!r}"
        elif edges[name] and ends.isdisjoint(reachable(edges, name)):
            yield f"{placed.where}: no way leads from {name!r} to an end"
    for cycle in find_cycles(endless):
        yield f"{steps[0].where.rpartition('.')[0]}: {' → '.join([*cycle, cycle[0]])} goes round without end; one of them needs max_visits"


def _ways(placed: Placed) -> list[tuple[str, str]]:
    """Where a step may lead, each with the field that says so."""
    step = placed.step
    if isinstance(step, EndStep):
        return []
    ways = [("next", placed.following)]
    if isinstance(step, ChoiceStep):
        ways += [(f"cases.{index}.next", case.next) for index, case in enumerate(step.cases)]
    if step.on_error is not None:
        ways.append(("on_error", step.on_error))
    return ways
