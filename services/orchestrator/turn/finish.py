"""How a turn ends: its answer or its error, and what leaves afterwards."""

import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from services.orchestrator.ports import ModelFinished
from services.orchestrator.records import Event, Terminal
from services.orchestrator.turn import client_tools, degradation, forgetting, handoff
from services.orchestrator.turn.carried import user_text
from services.orchestrator.turn.citations import resolve
from services.orchestrator.turn.degradation import Concluded
from services.orchestrator.turn.guarding import question
from services.orchestrator.turn.state import RunStopped, Turn

# "Remember that …": what the user explicitly wants kept, far above the importance from which memories last.
_REMEMBER = re.compile(r"\b(?:please\s+)?remember(?:\s+that)?[\s:,]+(?P<what>[^\n]+)|(?:请)?记住[，,：:\s]*(?P<zh>[^\n]+)", re.I)
_QUESTION = re.compile(r"\b(?:do|did|can|could|will|would|don't|doesn't|didn't)\s+(?:you|i|we)\b[^.!]*$", re.I)
IMPORTANCE = 0.9
_FINISH_REASONS = {"": "stop", "tool_calls": "stop"}


def succeed(turn: Turn, answer: ModelFinished) -> Terminal:
    """The end of a turn with an answer; its events go into the same write."""
    text = answer.message.text
    step = turn.state.step
    writer = turn.writer
    if text:
        writer.emit("message_completed", {"text": text, "message_id": f"{turn.ref.run_id}/{step}"})
    cited = tell_cited(turn, text)
    writer.emit("step_completed", {"step": step, "usage": turn.state.usage})
    finish_reason = _FINISH_REASONS.get(answer.finish_reason, answer.finish_reason)
    data = orjson.dumps({"output_text": text, "finish_reason": finish_reason, "usage": turn.state.usage, "citations": cited})
    return Terminal("succeeded", data, "run_finished", data, _outbox(turn, text))


def ask_client(turn: Turn) -> Terminal:
    """The end of a turn whose step asks for tools of the client, and has nothing else to do any more: what it said goes to the next run of
    its thread and not to memory."""
    (text, cited), calls = client_tools.said_with(turn), client_tools.waiting(turn)
    turn.writer.emit("interrupt_raised", {"kind": client_tools.PART, "calls": calls})
    data = orjson.dumps({
        "output_text": text, "finish_reason": client_tools.FINISH_REASON, "client_tool_calls": calls, "usage": turn.state.usage,
        "citations": cited,
    })  # fmt: skip
    left = client_tools.carry(turn, user_text(turn, question(turn)))
    return Terminal("succeeded", data, "run_finished", data, _only_forgetting(turn), left)


def tell_cited(turn: Turn, text: str) -> list[Mapping[str, Any]]:
    """The sources that a text cites, each told by an event, as is what it cites and was not given."""
    cited, unknown = resolve(text, turn.state.citations)
    for citation in cited:
        turn.writer.emit("citation", citation)
    for mark in unknown:
        message = f"The answer cites [{mark}], which is no source that it was given."
        degradation.warn(turn, "citation_unresolved", reason="unknown_source", user_message=message, citation_id=mark)
    return cited


def fail(turn: Turn, stop: RunStopped) -> Terminal:
    """The end of a turn that was stopped: as the ladder has it, else with an error. What was shown so far is kept with the run."""
    conclusion = handoff.conclusion(turn, stop)
    if conclusion is not None:
        return _conclude(turn, conclusion)
    error = {"reason": stop.reason, "message": stop.message, "retryable": stop.retryable}
    data = orjson.dumps({"error": error, "usage": turn.state.usage})
    result = orjson.dumps({"error": error, "usage": turn.state.usage, "output_text": turn.delivered})
    return Terminal("failed", result, "run_failed", data, _only_forgetting(turn))


def _conclude(turn: Turn, end: Concluded) -> Terminal:
    handoff.told(turn, end)
    added = f"\n\n{end.message}" if turn.delivered else end.message
    text, message_id = turn.delivered + added, f"{turn.ref.run_id}/{turn.state.step + 1}"
    turn.writer.delta(message_id, added)
    turn.writer.emit("message_completed", {"text": text, "message_id": message_id})
    result: dict[str, Any] = {"output_text": text, "finish_reason": end.finish_reason, "usage": turn.state.usage, "citations": []}
    if end.handoff:
        result["handoff"] = end.handoff
    data = orjson.dumps(result)
    # What was refused would only be refused again in the next turn; what a person takes over belongs to the conversation.
    return Terminal("succeeded", data, "run_finished", data, _outbox(turn, text) if end.handoff else _only_forgetting(turn))


def cancel(turn: Turn, *, kept: bool = False) -> Terminal:
    """The end of a turn that somebody asked to end: the text so far is kept with the run and, where `kept`, in the conversation."""
    data = cancelled_data(turn.delivered, turn.state.usage)
    return Terminal("cancelled", data, "run_cancelled", data, _outbox(turn, turn.delivered) if kept else _only_forgetting(turn))


def cancelled_data(text: str, usage: Mapping[str, int]) -> bytes:
    """Data of run_cancelled."""
    return orjson.dumps({"output_text": text, "usage": usage})


def to_remember(text: str) -> str:
    """What the user explicitly asks to remember; empty when nothing is."""
    found = _REMEMBER.search(text)
    if found is None:
        return ""
    what = (found["what"] or found["zh"] or "").strip()
    # "Do you remember …?" asks and does not tell.
    if what.endswith(("?", "？")) or _QUESTION.search(text[: found.start()]):
        return ""
    return what


def _outbox(turn: Turn, text: str) -> bytes:
    if turn.agent.recall is None:
        return _only_forgetting(turn)
    entry: dict[str, Any] = {
        "v": 1, "principal": turn.spec.principal, "request_id": turn.spec.request_id, "canary": turn.spec.canary,
        "trace": dict(turn.spec.trace), "user_text": user_text(turn, question(turn)),
        "assistant_text": text, "tool_calls": client_tools.logged(turn),
        "remember": to_remember(_asked(turn)), "ended_ms": int(time.time() * 1000),
    }  # fmt: skip
    if before_ms := forgetting.pending(turn):
        entry["forget_before_ms"] = before_ms
    return orjson.dumps(entry)


def _asked(turn: Turn) -> str:
    """What the user said last, also before calls whose results the run goes on from: memory has heard nothing of that yet."""
    return question(turn) or str(turn.carried.get("said", ""))


def _only_forgetting(turn: Turn) -> bytes:
    """What leaves a run whose own turn is not kept."""
    return forgetting.entry(turn.spec, forgetting.pending(turn))


def text_of(event: Event) -> str:
    """Text of a message_delta."""
    return orjson.loads(event.data)["text"]
