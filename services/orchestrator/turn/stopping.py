"""Users' wish that a run at work stops generating.

It is a command in the run's inbox. It holds for the model call under way or, where none is, for the next one: the text so far is the
answer of that step.
"""

import asyncio

from services.orchestrator.ports import Message, ModelFinished
from services.orchestrator.records import Command
from services.orchestrator.turn import lost
from services.orchestrator.turn.model_step import Asked, model_step
from services.orchestrator.turn.state import Turn

# Kind of the command, and name of what is kept among the parts of a turn's state: `wanted`, the number of a wish that holds, and
# `done`, that of the last one fulfilled.
COMMAND, PART = "stop", "stopping"
STOPPED = "stopped"
_NOTHING_USED = dict.fromkeys(("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_microusd"), 0)


def stop_wanted(turn: Turn, command: Command) -> None:
    """Absorbs a wish to stop."""
    part = turn.state.parts.setdefault(PART, {})
    if command.number > part.get("done", 0):
        part["wanted"] = command.number


def wanted(turn: Turn) -> int:
    """The number of a wish that holds for the next model call, 0 where there is none."""
    fresh = (command.number for command in turn.commands if command.kind == COMMAND)
    return max(fresh, default=turn.state.parts.get(PART, {}).get("wanted", 0))


async def generate(turn: Turn, asked: Asked) -> ModelFinished:
    """As model_step; where somebody wants it to stop, the text so far is the answer, with the finish reason STOPPED."""
    number, stopped = wanted(turn), False
    if not number:
        task = asyncio.current_task()
        assert task is not None

        def stop(command: Command) -> None:
            nonlocal number
            if not number:
                task.cancel()
            number = command.number

        turn.listening[COMMAND] = stop
        try:
            answer = await model_step(turn, asked)
        except asyncio.CancelledError:
            # The run itself may have been cancelled, lost or handed over at the same time.
            if not number or task.uncancel():
                raise
            stopped = True
        else:
            if number:
                # It came too late for this answer, and holds for the next one.
                task.uncancel()
            return answer
        finally:
            del turn.listening[COMMAND]
        if stopped:
            await lost.settle(turn, stopped=True)
    part = turn.state.parts.setdefault(PART, {})
    part.pop("wanted", None)
    part["done"] = number
    return ModelFinished(Message("assistant", turn.delivered), STOPPED, _NOTHING_USED)
