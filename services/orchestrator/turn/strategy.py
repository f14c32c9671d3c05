"""The strategies by which an agent comes from its input to its answer. agents.yaml names one for each version."""

from collections.abc import Mapping
from typing import Protocol

from services.orchestrator.agents import AgentDefinition
from services.orchestrator.records import Terminal
from services.orchestrator.turn.plan_execute import PlanExecute
from services.orchestrator.turn.react import ReAct
from services.orchestrator.turn.state import Turn
from services.orchestrator.turn.supervisor import Supervisor
from services.orchestrator.turn.workflow import WorkflowStrategy


class Strategy(Protocol):
    """One way to work. It has no state of its own: all that it knows stands in the turn, which any owner can go on with."""

    async def advance(self, turn: Turn, *, resumed: bool) -> Terminal | None:
        """Does the next stage, which ends with a checkpoint where anything was done; answers the end of the run when that is it.

        `resumed`: the state is another owner's, or fresh, and calls that it holds may be at work. Raises RunStopped, Fenced,
        Overloaded.
        """
        ...


STRATEGIES: Mapping[str, Strategy] = {
    "react": ReAct(),
    "plan_execute": PlanExecute(),
    "supervisor": Supervisor(),
    "workflow": WorkflowStrategy(),
}


def strategy_of(agent: AgentDefinition) -> Strategy:
    """The strategy that an agent names."""
    return STRATEGIES[agent.strategy]
