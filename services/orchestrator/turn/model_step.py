"""One model call: its text goes to the log as it comes, its whole answer is the step's result."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import structlog

from services.common.errors import BulkheadError
from services.orchestrator.agents import HAND_OFF
from services.orchestrator.ports import Message, ModelCall, ModelFinished, TextDelta, ToolDefinition
from services.orchestrator.turn import (
    answer_format,
    client_tools,
    degradation,
    forgetting,
    guarding,
    handoff,
    images,
    intent,
    limits,
    lost,
    steering,
)
from services.orchestrator.turn.missing_tools import tell_missing
from services.orchestrator.turn.state import RunStopped, Turn

# A model gateway that is lost midway is a crash, after which the step is made again; retries of a model are its own business.
# CANCELLED is what a gateway says that drains: this side cancels by ending the task, and then nobody reads the answer.
# Without the store nobody may spend, and a key may still be held by the call of an owner that is gone: both pass within seconds.
LOST = frozenset({"UNREACHABLE", "INCOMPLETE_ANSWER", "CANCELLED", "STORE_UNAVAILABLE", "IDEMPOTENCY_IN_FLIGHT"})
PATIENCE_S = 20.0
TOOLS_PATIENCE_S = 8.0
WAIT_FIRST_S = 0.1
WAIT_MOST_S = 2.0
log = structlog.get_logger("bulkhead.turn")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one model call is asked beside the conversation: which tools it may call, and what it is told for this step alone."""

    tools: Sequence[ToolDefinition]
    notes: Sequence[str]


async def model_step(turn: Turn, asked: Asked) -> ModelFinished:
    """Makes the call and answers its result, whose text is the text that was shown; a call that fails goes down the ladder.

    Raises RunStopped.
    """
    descent = degradation.Descent(turn, asked.tools, asked.notes)
    # Counted from the first loss: an answer may take longer than this before it is lost.
    give_up, wait_s = 0.0, WAIT_FIRST_S
    while True:
        turn.check_time()
        turn.enter_call()
        try:
            answer = _unfiltered(turn, await _stream(turn, descent))
            if _holds(turn):
                answer = await _allowed(turn, answer)
            if (reason := descent.poison()) is not None:
                forgetting.by_ladder(turn, reason)
            return answer
        except BulkheadError as error:
            turn.check_time()
            give_up = give_up or time.monotonic() + PATIENCE_S
            if error.reason in LOST and time.monotonic() <= give_up:
                log.warning("model_call_lost", run_id=turn.ref.run_id, reason=error.reason)
            elif error.reason in LOST or (turn.delivered and turn.spec.append_only) or not descent.down(error):
                # Nobody is there to ask for less; and less would not go on from text that was shown and cannot be taken back.
                raise descent.end(error) from error
            else:
                give_up, wait_s = 0.0, 0.0
                turn.writer.flush_soon()
        if turn.delivered and not turn.spec.append_only:
            await turn.writer.supersede()
            turn.delivered = ""
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        wait_s = min(max(wait_s * 2, WAIT_FIRST_S), WAIT_MOST_S)


async def find_tools(turn: Turn) -> list[ToolDefinition]:
    """The agent's tools that the caller may use; none, with a warning, where that cannot be found out. Raises RunStopped."""
    names = [name for name in turn.agent.tools if name != HAND_OFF]
    own = [handoff.TOOL] if len(names) < len(turn.agent.tools) else []
    if not names:
        return own
    give_up = time.monotonic() + TOOLS_PATIENCE_S
    while True:
        turn.enter_call()
        try:
            found = await turn.services.tools.definitions(names)
            await tell_missing(turn, names, found)
            return [*found, *own]
        except BulkheadError as error:
            turn.check_time()
            # An executor that is being replaced is back in seconds, and an answer without tools is a poor one.
            if error.reason == "UNREACHABLE" and time.monotonic() < give_up:
                await asyncio.sleep(WAIT_FIRST_S)
                continue
            failure = error
        degradation.warn(turn, "tools_unavailable", reason=failure.reason)
        return own


def _unfiltered(turn: Turn, answer: ModelFinished) -> ModelFinished:
    """The answer with a text in it, also where a content filter left none."""
    added = degradation.filtered(turn, answer)
    if not added:
        return answer
    if not _holds(turn):
        turn.writer.delta(f"{turn.ref.run_id}/{turn.state.step + 1}", added)
        turn.delivered += added
    return replace(answer, message=replace(answer.message, text=answer.message.text + added))


def _holds(turn: Turn) -> bool:
    """Whether answers are looked at before they are shown."""
    return guarding.holds(turn) or answer_format.holds(turn)


async def _allowed(turn: Turn, answer: ModelFinished) -> ModelFinished:
    """The answer as it may be shown, and is shown now, unless it does not have the form that is wanted. Raises RunStopped."""
    text = answer.message.text
    try:
        if guarding.holds(turn):
            text = await guarding.answered(turn, text)
    except (RunStopped, asyncio.CancelledError):
        # Paid for all the same.
        count(turn, answer)
        raise
    if misfits := answer_format.misfits(turn, replace(answer, message=replace(answer.message, text=text))):
        return replace(answer, message=replace(answer.message, text=text), misfits=misfits)
    if turn.spec.append_only and not text.startswith(turn.delivered):
        raise _diverged()
    if len(text) > len(turn.delivered):
        turn.writer.delta(f"{turn.ref.run_id}/{turn.state.step + 1}", text[len(turn.delivered) :])
        turn.delivered = text
    return replace(answer, message=replace(answer.message, text=text))


def count(turn: Turn, answer: ModelFinished) -> None:
    """Adds what a model call used to the run's usage, and tells it."""
    state, used = turn.state, answer.usage
    served: dict[str, Any] = {"step": state.step + 1, "model": answer.model, "provider": answer.provider}
    if answer.finish_reason:
        # Written down with what the answer led to, also of a step with tool calls, which tells of it nowhere else.
        served["finish_reason"] = answer.finish_reason
    if answer.replayed:
        used = lost.found_again(turn, answer)
        served |= {"replayed": True, "estimated": True}
    for name, value in used.items():
        state.usage[name] += value
    state.usage["model_calls"] += 1
    state.spent = (used["input_tokens"] + used["output_tokens"], used["cost_microusd"])
    turn.writer.emit("usage", {**served, **used, **intent.otherwise(turn)})


def intended(turn: Turn, asked: Asked) -> Mapping[str, str]:
    """What is written of the call that `asked` leads to, as it would be made now."""
    return _call(turn, degradation.Descent(turn, asked.tools, asked.notes))[1]


def _call(turn: Turn, asked: degradation.Descent) -> tuple[ModelCall, Mapping[str, str]]:
    """The next call but for its messages, and what is written of it."""
    spec, agent, shown = turn.spec, turn.agent, _continued(turn)
    # A second owner of a step may ask for something else than the first: for the rest of an answer, or knowing that time is short.
    # Under the key of the first that would be refused.
    model = degradation.model_of(turn)
    key = f"{turn.ref.run_id}/{turn.state.step + 1}" + ("/noted" if asked.notes else "") + (f"/{len(shown)}" if shown else "")
    tool_choice = client_tools.choice(turn, asked.tools)
    call = ModelCall(
        model=model, messages=(), tools=asked.tools, temperature=agent.temperature if spec.temperature is None else spec.temperature,
        max_tokens=limits.most_output(turn, agent.max_tokens if spec.max_tokens is None else spec.max_tokens, asked.most_output),
        run_id=turn.ref.run_id, thread_id=turn.ref.thread_id, key=key + asked.marks() + steering.mark(turn),
        stale_s=agent.degradation.stale_answers_s, budget_microusd=limits.money(turn),
        tool_choice=tool_choice, response_format=answer_format.of_call(turn, tool_choice),
    )  # fmt: skip
    bounds, forms = (call.temperature, call.max_tokens), (call.tool_choice, call.response_format)
    return call, intent.of_call(turn, call.key, model, call.tools, asked.notes, shown, bounds, forms)


def _continued(turn: Turn) -> str:
    """Text that was shown and cannot be taken back, where the model goes on from it; else it must say it again word for word."""
    return turn.delivered if turn.agent.continues_prefix else ""


async def _stream(turn: Turn, asked: degradation.Descent) -> ModelFinished:
    message_id = f"{turn.ref.run_id}/{turn.state.step + 1}"
    shown, continues, held = turn.delivered, bool(_continued(turn)), _holds(turn)
    call, turn.called = _call(turn, asked)
    messages = await images.shown(turn, _noted(degradation.conversation(turn), asked.notes), call)
    call = replace(call, messages=[*messages, Message("assistant", shown)] if continues else messages)
    said = shown if continues else ""
    try:
        async with aclosing(turn.services.models.stream(call)) as stream:
            async for item in stream:
                if isinstance(item, TextDelta):
                    said += item.text
                    if len(said) > len(turn.delivered) and not held:
                        if not said.startswith(turn.delivered):
                            raise _diverged()
                        turn.writer.delta(message_id, said[len(turn.delivered) :])
                        turn.delivered = said
                elif isinstance(item, ModelFinished):
                    text = item.message.text
                    whole = shown + text if continues and not text.startswith(shown) else text
                    if turn.spec.append_only and not held and not whole.startswith(turn.delivered):
                        raise _diverged()
                    if len(whole) > len(turn.delivered) and not held:
                        turn.writer.delta(message_id, whole[len(turn.delivered) :])
                        turn.delivered = whole
                    return item if whole == text else replace(item, message=replace(item.message, text=whole))
                else:
                    degradation.relay(turn, item.data)
                    turn.writer.flush_soon()
    except BaseException as error:
        lost.failed(turn, error, said[len(shown) :] if continues else said)
        raise
    raise AssertionError("a model stream ends with its result or an error")


def _noted(messages: Sequence[Message], notes: Sequence[str]) -> list[Message]:
    """The conversation with `notes` among its instructions; at its end, some providers refuse system messages."""
    if not notes:
        return list(messages)
    leading = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return [*messages[:leading], Message("system", "\n".join(notes)), *messages[leading:]]


def _diverged() -> RunStopped:
    return RunStopped(
        "OUTPUT_DIVERGED", "The answer was interrupted and could not be continued from the text already sent.", retryable=True
    )
