"""What users say to a run at work.

A message is a command in the run's inbox. It is absorbed into the state when it comes and put into the conversation before the next
model call, in one write with its event, so that it is neither lost nor said twice, whoever owns the run.
"""

from services.orchestrator.ports import Message, ModelFinished
from services.orchestrator.records import Command
from services.orchestrator.turn import guarding, limits
from services.orchestrator.turn.state import RunStopped, Turn

# Kind of the command, and name of what is kept among the parts of a turn's state: `waiting`, [number, text] of what is not in the
# conversation yet; `step`, the one that the newest messages were put before.
COMMAND, PART = "steer", "steering"


def steered(turn: Turn, command: Command) -> None:
    """Absorbs a message."""
    turn.state.parts.setdefault(PART, {}).setdefault("waiting", []).append([command.number, command.data["text"]])


async def apply(turn: Turn) -> None:
    """Puts what was said into the conversation; durable when this returns. Raises Fenced."""
    part = turn.state.parts.get(PART)
    # Text that was shown of this step and cannot be taken back is gone on from first.
    if not part or not part.get("waiting") or turn.delivered:
        return
    step = turn.state.step + 1
    # Looked at before any of it is taken: whoever goes on instead finds all of it.
    said = [(number, await guarding.steered(turn, text, number)) for number, text in part["waiting"]]
    del part["waiting"]
    for number, text in said:
        turn.messages.append(Message("user", text))
        turn.writer.emit("steer_applied", {"number": number, "step": step, "text": text})
    part["step"] = step
    await turn.writer.checkpoint(turn.snapshot(), turn.unstored())


def mark(turn: Turn) -> str:
    """What the key of a model call bears of it: a former owner may have made the same step without the message."""
    part = turn.state.parts.get(PART)
    return "/steered" if part and part.get("step") == turn.state.step + 1 else ""


def goes_on(turn: Turn) -> bool:
    """Whether there is something that the model has not been told, and may be told."""
    if not turn.state.parts.get(PART, {}).get("waiting") and not any(command.kind == COMMAND for command in turn.commands):
        return False
    try:
        limits.check(turn)
    except RunStopped:
        return False
    return True


async def go_on(turn: Turn, answer: ModelFinished) -> None:
    """An answer becomes part of the conversation instead of its end. Raises Fenced."""
    state = turn.state
    if answer.message.text:
        turn.messages.append(answer.message)
        turn.writer.emit("message_completed", {"text": answer.message.text, "message_id": f"{turn.ref.run_id}/{state.step}"})
    turn.writer.emit("step_completed", {"step": state.step, "usage": state.usage})
    turn.delivered = ""
    await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
