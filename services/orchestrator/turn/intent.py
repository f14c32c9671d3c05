"""What is written of a model call before it is made: under which idempotency key, and what it asks.

The event `step_started` tells it with the write that ends the step before, so it costs no write of its own; whoever owns the run next
finds in the log what was about to be asked and paid for. Source: design page "durability", section What is written, and before what.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.orchestrator.ports import ToolDefinition
from services.orchestrator.turn import degradation
from services.orchestrator.turn.state import Turn


def of_call(
    turn: Turn, key: str, model: str, tools: Sequence[ToolDefinition], notes: Sequence[str], shown: str, bounds: Sequence[float | None],
    forms: Sequence[bytes] = (),
) -> dict[str, str]:  # fmt: skip
    """The key of a call and the SHA-256, in hex, of what it asks: the conversation, then the rest. `shown` is text that the model is to
    go on from; `bounds` are temperature and most tokens of the answer, `forms` what it may answer in, as OpenAI's tool_choice and
    response_format."""
    hasher = _conversation(turn)
    asked = [model, *bounds, [[tool.name, tool.version] for tool in tools], list(notes), shown]
    hasher.update(orjson.dumps([*asked, *(form.decode() for form in forms)] if any(forms) else asked))
    return {"idempotency_key": key, "request_digest": hasher.hexdigest()}


def start_step(turn: Turn) -> None:
    """Announces the next step, once by each owner: a call that was cut off is made again. Where it cannot be told yet what will be
    asked, whoever is about to ask it announces the step."""
    step = turn.state.step + 1
    meant = turn.intent(turn) if turn.announced < step and turn.intent is not None else None
    if meant is None:
        return
    turn.announced, turn.meant = step, meant
    turn.state.started_step = step
    turn.writer.emit("step_started", {"step": step, **meant})
    # Where no checkpoint is about to take it along, whoever goes on after a loss is to find it while the model thinks.
    turn.writer.flush_soon()


def otherwise(turn: Turn) -> Mapping[str, str]:
    """The call that was made, where it was another one than was announced: the user was heard meanwhile, or the ladder was taken."""
    return turn.called if turn.called != turn.meant else {}


def _conversation(turn: Turn) -> Any:
    """A hasher that has taken the messages as the model gets them, apart from notes; it is the caller's."""
    kept = turn.state.parts.get(degradation.PART) or {}
    if kept.get("without_memory") or kept.get("shorter_context"):
        hasher = hashlib.sha256()
        for message in degradation.conversation(turn):
            hasher.update(message.encode())
        return hasher
    # A conversation only grows, and what was taken once need not be taken again.
    count, last, hasher = turn.hashed or (0, None, hashlib.sha256())
    if count > len(turn.messages) or (count and turn.messages[count - 1] is not last):
        count, hasher = 0, hashlib.sha256()
    for message in turn.messages[count:]:
        hasher.update(message.encode())
    turn.hashed = (len(turn.messages), turn.messages[-1] if turn.messages else None, hasher)
    return hasher.copy()
