"""What is left of a run's limits: where it ends, what its model is told, and which step is made without tools.

The step at which a limit is found to be used up is not made, so no limit is exceeded by more than what one step takes; that of money not
at all: the model gateway has it in the reservation of each call.
"""

from collections.abc import Mapping
from typing import NamedTuple

from services.orchestrator.turn.state import RunStopped, Turn

# Name of what child runs used, among the parts of a turn's state.
DELEGATED = "delegated"
# From this share on the model is told what is left.
NEAR = 0.8
_MESSAGES = {
    "STEP_LIMIT": "The run reached its limit of {} steps.",
    "TOOL_LIMIT": "The run reached its limit of {} tool calls.",
    "TOKEN_LIMIT": "The run reached its limit of {} tokens.",
    "COST_LIMIT": "The run reached its limit of {} millionths of a dollar.",
}
_WORDS = {
    "STEP_LIMIT": "{} steps (this one included)",
    "TOOL_LIMIT": "{} tool calls",
    "TOKEN_LIMIT": "{} tokens",
    "COST_LIMIT": "{} millionths of a dollar",
}


class Budget(NamedTuple):
    """One limit: the reason that it ends a run with, what is used of it, where it stands, and what the next step may take."""

    reason: str
    used: int
    limit: int
    next_step: int

    @property
    def left(self) -> int:
        """What may still be used."""
        return max(0, self.limit - self.used)


def held(turn: Turn) -> Mapping[str, int]:
    """What child runs may have used and nobody can tell: tool calls, micro-USD and tokens, by the name of their limit."""
    found: Mapping[str, int] = turn.state.parts.get(DELEGATED, {}).get("held", {})
    return found


def budgets(turn: Turn) -> list[Budget]:
    """The limits that hold, with what all owners of the run have used of them."""
    limits, state, lent = turn.spec.limits, turn.state, held(turn)
    tokens = state.usage["input_tokens"] + state.usage["output_tokens"] + lent.get("max_total_tokens", 0)
    tool_calls, cost = (state.usage[name] + lent.get(f"max_{name}", 0) for name in ("tool_calls", "cost_microusd"))
    every = [
        Budget("STEP_LIMIT", state.step, limits.max_steps, 1),
        # None at all is left to a run that has none; every other limit is found used up only after something was used.
        Budget("TOOL_LIMIT", tool_calls, limits.max_tool_calls, 0),
        Budget("TOKEN_LIMIT", tokens, limits.max_total_tokens, state.spent[0]),
        Budget("COST_LIMIT", cost, limits.max_cost_microusd, state.spent[1]),
    ]
    return [budget for budget in every if budget.limit]


def reached(budget: Budget) -> RunStopped:
    """The end of a run at this limit."""
    return RunStopped(budget.reason, _MESSAGES[budget.reason].format(budget.limit))


def check(turn: Turn, lost_tokens: int = 0) -> None:
    """Raises RunStopped where no further step may be made. A run whose tool calls are used up may still answer. `lost_tokens` are those
    of calls that are not counted yet."""
    for budget in budgets(turn):
        if budget.reason != "TOOL_LIMIT" and budget.left <= (lost_tokens if budget.reason == "TOKEN_LIMIT" else 0):
            raise reached(budget)


def last_step(turn: Turn) -> Budget | None:
    """The limit for which the next step has to be the answer; None while there may be another one.

    Conversations grow, so a step takes at least what the one before took.
    """
    return next((budget for budget in budgets(turn) if budget.left <= budget.next_step), None)


def most_output(turn: Turn, *asked: int | None) -> int | None:
    """Bound of the next answer in tokens, which is never more than the run has left, nor than any of `asked`."""
    left = next((budget.left for budget in budgets(turn) if budget.reason == "TOKEN_LIMIT"), None)
    bounds = [bound for bound in (*asked, left) if bound is not None]
    return min(bounds) if bounds else None


def money(turn: Turn) -> int | None:
    """What the run's own model calls may cost together, in micro-USD: all but what its child runs took. None: no limit."""
    most: int = turn.spec.limits.max_cost_microusd
    took = turn.state.parts.get(DELEGATED, {}).get("cost_microusd", 0) + held(turn).get("max_cost_microusd", 0)
    return max(0, most - took) if most else None


def used_up(turn: Turn, reason: str) -> RunStopped | None:
    """The end of a run at the limit that ends it with `reason`, where it has one."""
    return next((reached(budget) for budget in budgets(turn) if budget.reason == reason), None)


def note(turn: Turn, last: Budget | None) -> str:
    """What the model is told before the next step; empty while no limit is near.

    It holds nothing that differs between two owners who make the same step, but for the fact that time is short.
    """
    if last is not None:
        return "This is the last step of this run, and no tools can be called any more. Answer now with what you have."
    left = [_WORDS[b.reason].format(b.left) for b in budgets(turn) if b.used >= NEAR * b.limit]
    deadline_s, left_s = turn.spec.limits.deadline_s, turn.remaining_s()
    if left_s is not None and left_s <= (1 - NEAR) * deadline_s:
        left.append("less than a fifth of the time")
    return f"The limits of this run are near. Left: {', '.join(left)}. Finish soon, with what you have." if left else ""
