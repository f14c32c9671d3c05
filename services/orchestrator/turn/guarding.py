"""What a turn does with the verdicts of guardrails: one place for each kind of text, and one way to ask.

Each verdict that says anything is an event `guard_triggered`, a metric and a part of the checkpoint, from where the audit record has it.
Nothing of it holds a word of the text.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import structlog
from opentelemetry.metrics import get_meter

from services.orchestrator.ports import Message, Recalled, ToolOutcome, ToolRequest
from services.orchestrator.turn.degradation import Concluded
from services.orchestrator.turn.guardrails import ALLOWED, ARGUMENTS, CONTEXT, INPUT, OUTPUT, RESULT, Examined, Verdict
from services.orchestrator.turn.said import question_of
from services.orchestrator.turn.state import PendingCall, RunStopped, Turn

# Name of what is kept among the parts of a turn's state: `verdicts`, and the text that stands in for what the user `said`.
PART = "guardrails"
MOST_VERDICTS = 100
REFUSED, UNAVAILABLE = "GUARD_REFUSED", "GUARD_UNAVAILABLE"
# Of a check that did not come about.
FAILED = "guard_failed"
# How the codes of tool calls begin that were refused, or whose result was.
CODE = "guard."
HELD_BACK = "[A message of the user was held back.]"
_NOT_MADE = "This call was refused by a policy, so it was not made. Do something else, or answer without it."
_NOT_SHOWN = "The call was made, but a policy held its result back. Do not make it again for the same purpose; go on without its result."
_FAILED_SO = "The call failed. A policy held back what it said."
_MESSAGES = {INPUT: "A policy does not allow this request.", OUTPUT: "A policy held the answer back."}
_UNCHECKED = "It could not be checked whether a policy allows this. Please try again later."
log = structlog.get_logger("bulkhead.guardrails")
_verdicts = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_guard_verdicts_total", description="Verdicts of guardrails that said anything, by stage, action and detector."
)


def holds(turn: Turn) -> bool:
    """Whether the answers of models are looked at, and shown only then."""
    return OUTPUT in turn.services.guardrails.stages


def verdicts_of(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The verdicts on a run, by its checkpoint."""
    return list(state.get("parts", {}).get(PART, {}).get("verdicts", ()))


def question(turn: Turn) -> str:
    """What the user just said, as the run may know it."""
    return may_be_known(turn.state.parts, question_of(turn.spec.input))


def may_be_known(parts: Mapping[str, Any], text: str) -> str:
    """What the user said last to a run, `text`, or what stands in for it by the parts of the run's state; that may be nothing at all."""
    known: str = parts.get(PART, {}).get("said", text)
    return known


async def said(turn: Turn, messages: Sequence[Message]) -> list[Message]:
    """What was said before the first model call, as the model may read it. Raises RunStopped."""
    stages = turn.services.guardrails.stages
    if INPUT not in stages and RESULT not in stages:
        return list(messages)
    fresh = {said.get("tool_call_id") for said in turn.spec.input if said["role"] == "tool"}
    names = {call.call_id: call.name for message in messages for call in message.tool_calls}
    asked, found = question_of(turn.spec.input), []
    for message in messages:
        if message.role == "tool":
            # What tools gave to a run that was cut off, it was given by then.
            found.append(await _client_result(turn, message, names) if message.tool_call_id in fresh and RESULT in stages else message)
            continue
        verdict = await _verdict(turn, INPUT, message.text, kind=message.role) if INPUT in stages else ALLOWED
        if verdict.action == "refuse":
            raise _stopped(turn, INPUT, verdict)
        if verdict.action == "replace":
            if message.text == asked:
                _part(turn)["said"] = verdict.text
            message = replace(message, text=verdict.text)
        found.append(message)
    return found


async def _client_result(turn: Turn, message: Message, names: Mapping[str, str]) -> Message:
    """What the run's client brings of a call, as the model may read it."""
    tool = names.get(message.tool_call_id, "")
    verdict = await _verdict(turn, RESULT, message.text, tool=tool, call_id=message.tool_call_id)
    return replace(message, text=_instead(verdict, message.text, _NOT_SHOWN))


async def steered(turn: Turn, text: str, number: int) -> str:
    """What the user says to a run at work, as the model may read it."""
    if INPUT not in turn.services.guardrails.stages:
        return text
    verdict = await _verdict(turn, INPUT, text, kind="user", number=number)
    return _instead(verdict, text, HELD_BACK)


async def recalled(turn: Turn, found: Recalled) -> Recalled:
    """What memory gave, without the parts that are refused."""
    if CONTEXT not in turn.services.guardrails.stages:
        return found
    parts = []
    for part in found.parts:
        verdicts = [await _verdict(turn, CONTEXT, text, kind=part.kind) for text in (part.text, part.assistant_text)]
        if all(verdict.action != "refuse" for verdict in verdicts):
            text, answer = (_instead(v, text, "") for v, text in zip(verdicts, (part.text, part.assistant_text), strict=True))
            parts.append(replace(part, text=text, assistant_text=answer))
    return Recalled(parts, found.warnings)


async def answered(turn: Turn, text: str) -> str:
    """What a model said, as it may be shown. Raises RunStopped."""
    verdict = await _verdict(turn, OUTPUT, text)
    if verdict.action == "refuse":
        raise _stopped(turn, OUTPUT, verdict)
    return _instead(verdict, text, "")


async def asked(turn: Turn, calls: Sequence[ToolRequest]) -> tuple[list[ToolRequest], dict[int, list[str]]]:
    """Tool calls as they may be made, before anybody is asked to approve them; and, by their place, those that are refused: code and
    message."""
    if ARGUMENTS not in turn.services.guardrails.stages:
        return list(calls), {}
    allowed, refused = list(calls), {}
    for place, call in enumerate(calls):
        verdict = await _verdict(turn, ARGUMENTS, call.arguments.decode("utf-8", "replace"), tool=call.name, call_id=call.call_id)
        if verdict.action == "refuse":
            refused[place] = [CODE + verdict.reason, _NOT_MADE]
        elif verdict.action == "replace":
            allowed[place] = replace(call, arguments=verdict.text.encode())
    return allowed, refused


async def brought(turn: Turn, call: PendingCall, outcome: ToolOutcome, *, ending: bool = False) -> ToolOutcome:
    """The outcome of a call as the model, and the log, may have it. Raises RunStopped, but not of a run that is `ending` anyway."""
    if RESULT not in turn.services.guardrails.stages or outcome.outcome not in ("done", "failed") or outcome.code.startswith(CODE):
        return outcome
    done = outcome.outcome == "done"
    text = outcome.output.decode("utf-8", "replace") if done else outcome.message
    verdict = await _verdict(turn, RESULT, text, tool=call.name, ending=ending, call_id=call.call_id)
    if verdict.action == "allow":
        return outcome
    if not done:
        return replace(outcome, message=_instead(verdict, text, _FAILED_SO))
    if verdict.action == "refuse":
        return replace(outcome, outcome="failed", output=b"", code=CODE + verdict.reason, message=_NOT_SHOWN, citations=())
    return replace(outcome, output=_json(verdict.text))


async def _verdict(turn: Turn, stage: str, text: str, *, kind: str = "", tool: str = "", ending: bool = False, **about: Any) -> Verdict:
    guard = turn.services.guardrails
    if not text:
        return ALLOWED
    turn.enter_call()
    left_s = turn.remaining_s()
    try:
        async with asyncio.timeout(guard.timeout_s if left_s is None else min(guard.timeout_s, left_s)):
            verdict = await guard.check(Examined(stage, text, turn.ref, turn.spec.agent, kind, tool))
    except Exception as error:  # whatever keeps a check from answering: nothing may pass unseen for a defect of it
        if not ending:
            turn.check_time()
        opened = stage in guard.fails_open
        log.error("guard_failed", run_id=turn.ref.run_id, stage=stage, allowed=opened, exc_info=error)
        verdict = Verdict("allow" if opened else "refuse", FAILED)
    if verdict.action != "allow" or verdict.reason:
        _tell(turn, stage, verdict, {"kind": kind, "tool": tool, **about})
    return verdict


def _tell(turn: Turn, stage: str, verdict: Verdict, about: Mapping[str, Any]) -> None:
    found = {"stage": stage, "action": verdict.action, "reason": verdict.reason, "detector": verdict.detector, "version": verdict.version}
    scores = {"score": verdict.score, "threshold": verdict.threshold}
    shown = {name: value for name, value in {**about, **scores}.items() if value not in ("", None)}
    turn.writer.emit("guard_triggered", {**found, **shown, "spans": [list(span) for span in verdict.spans]})
    _verdicts.add(1, {"stage": stage, "action": verdict.action, "detector": verdict.detector})
    kept = _part(turn).setdefault("verdicts", [])
    if len(kept) < MOST_VERDICTS:
        # Audit records hold no fractions.
        whole = {f"{name}_milli": round(value * 1000) for name, value in scores.items() if value is not None}
        kept.append({**found, **whole, "step": turn.state.step})


def _part(turn: Turn) -> dict[str, Any]:
    found: dict[str, Any] = turn.state.parts.setdefault(PART, {})
    return found


def _instead(verdict: Verdict, text: str, refused: str) -> str:
    return {"allow": text, "replace": verdict.text, "refuse": refused}[verdict.action]


def _stopped(turn: Turn, stage: str, verdict: Verdict) -> RunStopped:
    if verdict.reason == FAILED:
        return RunStopped(UNAVAILABLE, _UNCHECKED, retryable=True)
    rephrase = turn.agent.degradation.rephrase
    return Concluded(REFUSED, rephrase, "rephrase") if rephrase else RunStopped(REFUSED, _MESSAGES[stage])


def _json(text: str) -> bytes:
    """Text that stands in for a result, which is JSON."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return orjson.dumps(text)
    return text.encode()
