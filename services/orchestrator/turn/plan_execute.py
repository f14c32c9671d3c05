"""Plan and execute: the model first writes a plan, then works it off and keeps it up to date with a tool of its own.

The plan stands in the checkpoint, and everybody who watches the run sees each version of it as a `plan_updated` event.
Source: Wang et al., Plan-and-Solve Prompting, arXiv:2305.04091.
"""

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.orchestrator.agents import UPDATE_PLAN
from services.orchestrator.ports import ToolDefinition, ToolOutcome
from services.orchestrator.turn.react import ReAct
from services.orchestrator.turn.state import PendingCall, Turn

MOST_STEPS = 50
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
    orjson.dumps(_SCHEMA), repeatable=True,
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
            plan = _Plan.model_validate_json(call.arguments or "{}")
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()[:5])
            return ToolOutcome("failed", code="input.invalid", message=f"The plan is not valid: {wrong}.")
        version = turn.state.plan.get("version", 0) + 1
        turn.state.plan = {"version": version, "steps": [step.model_dump() for step in plan.steps]}
        turn.writer.emit("plan_updated", turn.state.plan)
        return ToolOutcome("done", orjson.dumps({"version": version}))
