"""What a run was given of another one that was cut off where its thread was forked or rolled back: the messages up to there.

They come after the earlier turns and before the run's own input, or instead of it where the run goes on with the same step. The tool
calls among them were made by the run that was cut off, and are made by nobody again.
"""

from collections.abc import Mapping
from typing import Any

from services.orchestrator.ports import Message
from services.orchestrator.turn.state import Turn


def said(turn: Turn) -> list[Message]:
    """The conversation of this turn before its first model call, without prompt and earlier turns."""
    own = [Message(m["role"], m["text"]) for m in turn.spec.input]
    if not turn.carried:
        return own
    before = [Message.decode(raw.encode()) for raw in turn.carried["messages"]]
    return before if turn.spec.continues else [*before, *own]


def user_text(turn: Turn, question: str) -> str:
    """What the user said in this turn, as the turns after it remember it."""
    return joined(turn.carried, question, continues=turn.spec.continues)


def joined(carried: Mapping[str, Any], question: str, *, continues: bool) -> str:
    """What a user said in the runs that were cut off, and to the one that went on from there."""
    if not carried:
        return question
    said_before: str = carried["said"]
    return said_before if continues else f"{said_before}\n\n{question}"


def take_over(turn: Turn) -> None:
    """Puts what the messages refer to into the state: sources that were issued, and the plan."""
    if turn.carried:
        turn.state.citations.update(turn.carried.get("citations", {}))
        if not turn.state.plan:
            turn.state.plan = dict(turn.carried.get("plan", {}))
