"""What others asked of the run since its owner last looked, moved into its state, in order, once each."""

from collections.abc import Callable, Mapping

import structlog

from services.orchestrator.approvals.records import COMMAND
from services.orchestrator.records import Command
from services.orchestrator.turn import approvals, orders, plan_execute, steering, stopping, supervisor
from services.orchestrator.turn.state import Turn

# Changes the turn's state and may emit events; messages are not touched here, since a step may be in the middle of its tool calls.
Handler = Callable[[Turn, Command], None]
HANDLERS: Mapping[str, Handler] = {
    COMMAND: approvals.decided,
    supervisor.COMMAND: supervisor.finished,
    steering.COMMAND: steering.steered,
    stopping.COMMAND: stopping.stop_wanted,
    orders.COMMAND: orders.ordered,
    plan_execute.COMMAND: plan_execute.updated,
}
log = structlog.get_logger("bulkhead.turn")


async def absorb(turn: Turn) -> None:
    """Hands each new command to the handler of its kind; what they change is durable when this returns. Raises Fenced."""
    news = [command for command in turn.commands if command.number > turn.state.inbox]
    turn.commands.clear()
    if not news:
        return
    for command in news:
        handler = HANDLERS.get(command.kind)
        if handler is None:
            # Of a version after this one.
            log.warning("command_unknown", run_id=turn.ref.run_id, kind=command.kind)
        else:
            handler(turn, command)
        turn.state.inbox = command.number
    # Text that was shown and cannot be taken back is found by the next owner only while no checkpoint says that it is settled.
    if not turn.delivered:
        await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
