"""One model call: its text goes to the log as it comes, its whole answer is the step's result."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from services.common.errors import BulkheadError
from services.orchestrator.ports import Message, ModelCall, ModelFinished, TextDelta, ToolDefinition
from services.orchestrator.turn import limits
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
    """Makes the call and answers its result, whose text is the text that was shown. Raises RunStopped."""
    # Counted from the first loss: an answer may take longer than this before it is lost.
    give_up, wait_s = 0.0, WAIT_FIRST_S
    while True:
        turn.check_time()
        turn.enter_call()
        try:
            return await _stream(turn, asked)
        except BulkheadError as error:
            turn.check_time()
            give_up = give_up or time.monotonic() + PATIENCE_S
            if error.reason not in LOST or time.monotonic() > give_up:
                raise RunStopped(error.reason, error.message, error.retryable) from error
            log.warning("model_call_lost", run_id=turn.ref.run_id, reason=error.reason)
        if turn.delivered and not turn.spec.append_only:
            await turn.writer.supersede()
            turn.delivered = ""
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        wait_s = min(wait_s * 2, WAIT_MOST_S)


async def find_tools(turn: Turn) -> list[ToolDefinition]:
    """The agent's tools that the caller may use; none, with a warning, where that cannot be found out. Raises RunStopped."""
    if not turn.agent.tools:
        return []
    give_up = time.monotonic() + TOOLS_PATIENCE_S
    while True:
        turn.enter_call()
        try:
            return await turn.services.tools.definitions(turn.agent.tools)
        except BulkheadError as error:
            turn.check_time()
            # An executor that is being replaced is back in seconds, and an answer without tools is a poor one.
            if error.reason == "UNREACHABLE" and time.monotonic() < give_up:
                await asyncio.sleep(WAIT_FIRST_S)
                continue
            failure = error
        turn.writer.emit(
            "warning",
            {
                "code": "tools_unavailable",
                "capability_lost": "tools",
                "fallback": "",
                "user_message": "Tools are not available, so this answer is made without them.",
                "attributes": {"reason": failure.reason},
            },
        )
        return []


async def _stream(turn: Turn, asked: Asked) -> ModelFinished:
    step = turn.state.step + 1
    message_id = f"{turn.ref.run_id}/{step}"
    # Text that was shown and cannot be taken back: the model goes on from it, or must say it again word for word.
    shown = turn.delivered
    messages = _noted(turn.messages, asked.notes)
    continues = bool(shown) and turn.agent.continues_prefix
    if continues:
        messages.append(Message("assistant", shown))
    # A second owner of a step may ask for something else than the first: for the rest of an answer, or knowing that time is short.
    # Under the key of the first that would be refused.
    key = f"{turn.ref.run_id}/{step}" + ("/noted" if asked.notes else "") + (f"/{len(shown)}" if continues else "")
    call = ModelCall(
        model=turn.agent.model, messages=messages, tools=asked.tools,
        temperature=turn.agent.temperature if turn.spec.temperature is None else turn.spec.temperature,
        max_tokens=limits.most_output(turn, turn.agent.max_tokens if turn.spec.max_tokens is None else turn.spec.max_tokens),
        run_id=turn.ref.run_id, thread_id=turn.ref.thread_id,
        key=key,
    )  # fmt: skip
    said = shown if continues else ""
    async with aclosing(turn.services.models.stream(call)) as stream:
        async for item in stream:
            if isinstance(item, TextDelta):
                said += item.text
                if len(said) > len(turn.delivered):
                    if not said.startswith(turn.delivered):
                        raise _diverged()
                    turn.writer.delta(message_id, said[len(turn.delivered) :])
                    turn.delivered = said
            elif isinstance(item, ModelFinished):
                text = item.message.text
                whole = shown + text if continues and not text.startswith(shown) else text
                if turn.spec.append_only and not whole.startswith(turn.delivered):
                    raise _diverged()
                if len(whole) > len(turn.delivered):
                    turn.writer.delta(message_id, whole[len(turn.delivered) :])
                    turn.delivered = whole
                return replace(item, message=replace(item.message, text=whole))
            else:
                turn.writer.emit("warning", item.data)
                turn.writer.flush_soon()
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
