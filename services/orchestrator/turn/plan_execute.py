"""Plan and execute: the model first writes a plan, then works it off and keeps it up to date with a tool of its own.

The plan stands in the checkpoint, and everybody who watches the run sees each version of it as a `plan_updated` event.
Source: Wang et al., Plan-and-Solve Prompting, arXiv:2305.04091.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.errors import FieldViolation, InvalidInput
from services.orchestrator.agents import UPDATE_PLAN
from services.orchestrator.ports import ToolDefinition, ToolOutcome
from services.orchestrator.records import Command
from services.orchestrator.turn.react import ReAct
from services.orchestrator.turn.state import PendingCall, Turn

# Kind of the command with which a caller changes the plan.
COMMAND = "plan"
MOST_STEPS = 50
MOST_PROBLEMS = 5
MOST_TITLE_CHARS = 500
STATUSES = ("pending", "in_progress", "done", "skipped")
_SCHEMA = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST_STEPS,
            "items": {
                "type": "object",
                "properties": {
                    "title": {"type": "string", "minLength": 1, "maxLength": MOST_TITLE_CHARS},
                    "status": {"type": "string", "enum": list(STATUSES)},
                },
                "required": ["title", "status"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["steps"],
    "additionalProperties": False,
}
TOOL = ToolDefinition(
    UPDATE_PLAN, "1", "Writes the whole plan of this task: its steps in order, each with its status. Replaces the plan of before.",
    orjson.dumps(_SCHEMA), repeatable=True, own=True,
)  # fmt: skip
_FIRST = f"Before anything else, write a plan of this task with {UPDATE_PLAN}. If the task needs no tools, answer it at once."
_GO_ON = (
    f"Work off the plan below. Keep it up to date with {UPDATE_PLAN}; change its steps when what you learn asks for it.\n"
    "<plan>\n{}\n</plan>"
)


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1, max_length=MOST_TITLE_CHARS)
    status: str = Field(pattern=f"^({'|'.join(STATUSES)})$")


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: list[_Step] = Field(min_length=1, max_length=MOST_STEPS)


def checked_steps(steps: Any) -> list[dict[str, str]]:
    """The steps of a plan, as it stands in the state. Raises InvalidInput."""
    try:
        plan = _Plan.model_validate({"steps": steps})
    except ValidationError as error:
        found = [FieldViolation(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()[:MOST_PROBLEMS]]
        raise InvalidInput("the plan is not valid", violations=found) from None
    return [step.model_dump() for step in plan.steps]


def updated(turn: Turn, command: Command) -> None:
    """Takes a caller's plan, unless another one stands by now than the one that the caller saw."""
    plan = turn.state.plan
    if turn.agent.strategy != "plan_execute" or plan.get("version", 0) != command.data["version"]:
        turn.writer.emit("plan_update_dropped", {"number": command.number, "version": plan.get("version", 0)})
        return
    _write(turn, command.data["steps"], {"by": "user", "number": command.number})


def _write(turn: Turn, steps: list[dict[str, str]], about: Mapping[str, Any]) -> int:
    version = turn.state.plan.get("version", 0) + 1
    turn.state.plan = {"version": version, "steps": steps}
    turn.writer.emit("plan_updated", {**turn.state.plan, **about})
    return version


class PlanExecute(ReAct):
    """ReAct under a plan. Until there is one, writing it is the only tool."""

    def offered(self, turn: Turn) -> list[ToolDefinition]:
        """As ReAct.offered."""
        return [TOOL, *super().offered(turn)] if turn.state.plan else [TOOL]

    def told(self, turn: Turn) -> str:
        """The plan, or that there has to be one."""
        plan = turn.state.plan
        return _GO_ON.format("\n".join(f"[{step['status']}] {step['title']}" for step in plan["steps"])) if plan else _FIRST

    def built_in(self, turn: Turn, call: PendingCall) -> ToolOutcome | None:
        """Writes the plan."""
        if call.name != UPDATE_PLAN:
            return None
        try:
            steps = checked_steps(orjson.loads(call.arguments or "{}").get("steps"))
        except InvalidInput as error:
            wrong = "; ".join(f"{violation.field}: {violation.description}" for violation in error.violations)
            return ToolOutcome("failed", code="input.invalid", message=f"The plan is not valid: {wrong}.")
        return ToolOutcome("done", orjson.dumps({"version": _write(turn, steps, {})}))
