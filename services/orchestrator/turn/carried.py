"""What a run was given of another one: of one that was cut off where its thread was forked or rolled back, the messages up to there; of one
that ended with calls for its client to make, all of them.

They come after the earlier turns and before the run's own input, or instead of it where the run goes on with the same step. The tool
calls among them were made by the run that was cut off, and are made by nobody again.
"""

from collections.abc import Mapping
from typing import Any

from services.orchestrator.ports import Message
from services.orchestrator.records import RunSpec
from services.orchestrator.turn.client_tools import joined as with_results
from services.orchestrator.turn.said import in_words, message_of
from services.orchestrator.turn.state import Turn


def said(turn: Turn) -> list[Message]:
    """The conversation of this turn before its first model call, without prompt and earlier turns."""
    return conversation(turn.carried, turn.spec)


def conversation(carried: Mapping[str, Any], spec: RunSpec) -> list[Message]:
    """What a run was given, of which a run that was cut off or that asked its client left `carried`."""
    own = [message_of(message) for message in spec.input]
    if not carried or forgotten(carried, spec):
        return own
    before = [Message.decode(raw.encode()) for raw in carried["messages"]]
    return before if spec.continues else with_results(carried, before, own)


def forgotten(carried: Mapping[str, Any], spec: RunSpec) -> bool:
    """Whether a run is to go on without what its thread's last run asked of the client, as without all before it."""
    return bool(spec.reset_memory and carried.get("asks") and not spec.answers)


def user_text(turn: Turn, question: str) -> str:
    """What the user said in this turn, as the turns after it remember it."""
    kept = {} if forgotten(turn.carried, turn.spec) else turn.carried
    return joined(kept, in_words(turn.spec.input, question), continues=turn.spec.continues)


def joined(carried: Mapping[str, Any], question: str, *, continues: bool) -> str:
    """What a user said in the runs that were cut off or that asked their client, and to the one that went on from there."""
    if not carried:
        return question
    said_before: str = carried["said"]
    return said_before if continues or not question else f"{said_before}\n\n{question}"


def take_over(turn: Turn) -> None:
    """Puts what the messages refer to into the state: sources that were issued, and the plan."""
    if turn.carried and not forgotten(turn.carried, turn.spec):
        turn.state.citations.update(turn.carried.get("citations", {}))
        if not turn.state.plan:
            turn.state.plan = dict(turn.carried.get("plan", {}))
