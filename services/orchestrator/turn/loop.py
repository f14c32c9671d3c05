"""The agent loop: what the agent's strategy does, step by step, until there is an answer."""

from collections.abc import Callable

from services.orchestrator.records import Terminal
from services.orchestrator.turn import approvals, finish, lost
from services.orchestrator.turn.commands import absorb
from services.orchestrator.turn.execute_tools import end_calls, report_unfinished
from services.orchestrator.turn.state import RunStopped, Turn
from services.orchestrator.turn.strategy import strategy_of


async def run_turn(turn: Turn, should_hand_over: Callable[[], bool]) -> Terminal | None:
    """Works from the checkpoint to the end; None when it stops at a step's end because the process is going away.

    Raises RunParked where the run waits for somebody else.
    """
    turn.leaving = should_hand_over
    strategy = strategy_of(turn.agent)
    resumed = True
    try:
        while not should_hand_over():
            turn.check_time()
            if turn.commands:
                await absorb(turn)
            if approvals.cancels(turn):
                report_unfinished(turn, "cancelled", await end_calls(turn))
                await lost.settle(turn)
                return finish.cancel(turn)
            terminal = await strategy.advance(turn, resumed=resumed)
            if terminal is not None:
                return terminal
            resumed = False
    except RunStopped as stopped:
        await approvals.catch_up(turn)
        report_unfinished(turn, "stopped")
        await lost.settle(turn)
        return finish.fail(turn, stopped)
    return None
