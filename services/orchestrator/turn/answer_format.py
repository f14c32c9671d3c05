"""The form that a run's caller wants its answer in. An answer is checked before anybody sees it, since text that was sent stays sent.

Where it does not fit, the model is told once what is wrong and asked again, in a step of its own; then the run fails. What is cut off at a
limit of tokens or by a content filter says so in its finish reason, and is not checked.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from services.orchestrator.ports import Message, ModelFinished
from services.orchestrator.turn import client_tools, degradation, limits
from services.orchestrator.turn.intent import start_step
from services.orchestrator.turn.schemas import AnswerSchema
from services.orchestrator.turn.state import RunStopped, Turn

# Name of what is kept among the parts of a turn's state: `tried`, once the model was asked again.
PART = "answer_format"
REASON = "OUTPUT_SCHEMA"
AGAIN = "answer_asked_again"
MOST_SHOWN_CHARS = 16_384
_WRONG = "The model's answer did not have the form that was asked for, also when it was asked again."
_TOLD = "Your answer does not have the form that is asked for:\n{}\nAnswer again, with nothing but JSON of that form."
_CUT_OFF = frozenset({"length", "content_filter", "stopped"})


def wanted(raw: str) -> Mapping[str, Any] | None:
    """OpenAI's response_format where it asks for more than text."""
    found = orjson.loads(raw) if raw else None
    return found if found is not None and found["type"] != "text" else None


def holds(turn: Turn) -> bool:
    """Whether answers are checked for their form, and shown only then."""
    return wanted(turn.spec.response_format) is not None


def of_call(turn: Turn, tool_choice: bytes) -> bytes:
    """The response_format of the next model call; none where that can only call a tool, of which some providers take no form beside it."""
    return turn.spec.response_format.encode() if holds(turn) and not client_tools.forces(tool_choice) else b""


def misfits(turn: Turn, answer: ModelFinished) -> list[str]:
    """Where an answer does not have the form that is wanted; empty where it has, or none is."""
    form = wanted(turn.spec.response_format)
    if form is None or answer.message.tool_calls or answer.finish_reason in _CUT_OFF:
        return []
    try:
        value = orjson.loads(answer.message.text)
    except orjson.JSONDecodeError as error:
        return [f"It is not valid JSON: {error}"]
    if form["type"] == "json_object":
        return [] if isinstance(value, dict) else ["It is not a JSON object."]
    return AnswerSchema(form["json_schema"]["schema"]).problems(value)


async def ask_again(turn: Turn, answer: ModelFinished) -> None:
    """Ends the step of an answer that does not fit, and has the model told what is wrong with it. Raises RunStopped, Fenced."""
    state = turn.state
    if state.parts.get(PART):
        raise RunStopped(REASON, _WRONG)
    try:
        limits.check(turn)
    except RunStopped as stopped:
        # Nothing is left to ask with, and the answer is no answer.
        raise RunStopped(REASON, _WRONG) from stopped
    state.parts[PART] = {"tried": 1}
    degradation.warn(turn, AGAIN, reason="output_schema")
    text = answer.message.text[:MOST_SHOWN_CHARS]
    told = _TOLD.format("\n".join(f"- {problem}" for problem in answer.misfits))
    # Some providers refuse an empty message.
    turn.messages += [*([Message("assistant", text, extra=answer.message.extra)] if text else []), Message("user", told)]
    turn.writer.emit("step_completed", {"step": state.step, "usage": state.usage})
    start_step(turn)
    await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
