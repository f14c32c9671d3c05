"""Model calls that were made and of which nobody has the answer: cut off with their owner, on their way, or because somebody wished so.

A provider bills them all the same, so they count as used. What they cost, the model gateway knows, which books every call against the
money of its run; their tokens are estimated. It is asked once something was lost, and by no other run.
"""

import asyncio

from services.common.errors import BulkheadError
from services.orchestrator.ports import Message, ModelFinished, ToolDefinition
from services.orchestrator.records import RunRecord
from services.orchestrator.turn import degradation
from services.orchestrator.turn.limits import DELEGATED
from services.orchestrator.turn.state import Turn

# Name of what is kept of them among the parts of a turn's state until they are counted: `calls`, their estimated tokens, and `unsure`
# where money may have gone that is not counted.
PART = "lost"
BYTES_A_TOKEN = 4
# What a call that ended just now holds of the money is given back within this; what is held for longer counts as spent.
SETTLED_WITHIN_S, LOOK_S = 1.0, 0.05
# Nothing was spent on what was refused: all other failures may have been billed.
_MAY_COST = frozenset({"model", "internal"})


def prompt_tokens(turn: Turn) -> int:
    """Estimated tokens of the next model call's prompt, which holds at least what the call before it took and gave."""
    said = turn.messages or [Message("system", turn.agent.prompt), *(Message(m["role"], m["text"]) for m in turn.spec.input)]
    size = sum(len(message.encode()) for message in said)
    return max(turn.state.spent[0], _tokens(size + sum(map(_size, turn.tools or ()))))


def cut_off(turn: Turn, text: str = "", calls: int = 1) -> None:
    """Notes calls that were at work and are not any more; `text` is what was heard of the answer."""
    part = turn.state.parts.setdefault(PART, {})
    used = {"calls": calls, "input_tokens": calls * prompt_tokens(turn), "output_tokens": _tokens(len(text.encode()))}
    for name, value in used.items():
        part[name] = part.get(name, 0) + value
    doubt(turn)


def failed(turn: Turn, error: BaseException, text: str) -> None:
    """As cut_off for a call that ended with `error`: without a word of an answer nobody knows whether it was made at all."""
    if isinstance(error, BulkheadError) and not text:
        if degradation.cause_of(error) in _MAY_COST:
            doubt(turn)
        return
    cut_off(turn, text)


def doubt(turn: Turn) -> None:
    """Notes that money may have gone that is not counted; it matters where money is limited."""
    if turn.spec.limits.max_cost_microusd:
        turn.state.parts.setdefault(PART, {})["unsure"] = 1


def tokens(turn: Turn) -> int:
    """Estimated tokens of calls that are not counted yet."""
    part = turn.state.parts.get(PART, {})
    return int(part.get("input_tokens", 0) + part.get("output_tokens", 0))


def uncertain(record: RunRecord) -> bool:
    """Whether a run has ended before anybody could find out what its calls that were cut off have cost."""
    part = record.state.get("parts", {}).get(PART, {})
    return bool(record.losses > part.get("losses", 0) or part.get("unsure") or part.get("calls"))


def found_again(turn: Turn, answer: ModelFinished) -> dict[str, int]:
    """Usage of an answer that was given before, and is told as free: one of the lost calls was no other than this."""
    used = {"input_tokens": prompt_tokens(turn), "output_tokens": _tokens(len(answer.message.encode()))}
    part = turn.state.parts.get(PART, {})
    if part.get("calls"):
        share = part["input_tokens"] // part["calls"]
        part["calls"] -= 1
        part["input_tokens"] -= share
    doubt(turn)
    return {**answer.usage, **used}


async def settle(turn: Turn, **marks: bool) -> None:
    """Counts what is noted, and tells it with the next write; `marks` are told with it. No other call of the run may be at work."""
    part = turn.state.parts.get(PART)
    if not part:
        return
    cost = await _cost(turn) if part.get("unsure") else 0
    calls = part.pop("calls", 0)
    used = {name: part.pop(name, 0) for name in ("input_tokens", "output_tokens")}
    if cost is not None:
        part.pop("unsure", None)
    if not calls and not cost:
        return
    used = {**used, "cached_input_tokens": 0, "reasoning_tokens": 0, "cost_microusd": cost or 0}
    for name, value in used.items():
        turn.state.usage[name] += value
    turn.state.usage["model_calls"] += calls
    told = {"step": turn.state.step + 1, "model": degradation.model_of(turn), "provider": "", "lost": True, "estimated": True}
    turn.writer.emit("usage", told | marks | used | ({} if calls == 1 else {"model_calls": calls}))


async def _cost(turn: Turn) -> int | None:
    """Money of the run's own calls that is not counted, in micro-USD; None where that cannot be found out now."""
    for _ in range(int(SETTLED_WITHIN_S / LOOK_S)):
        turn.enter_call()
        try:
            seen = await turn.services.models.spent(turn.ref.run_id)
        except BulkheadError:
            return None
        if not seen[1]:
            break
        await asyncio.sleep(LOOK_S)
    own = turn.state.usage["cost_microusd"] - turn.state.parts.get(DELEGATED, {}).get("cost_microusd", 0)
    return max(0, sum(seen) - own)


def _tokens(size: int) -> int:
    return -(-size // BYTES_A_TOKEN)


def _size(tool: ToolDefinition) -> int:
    return len(tool.name) + len(tool.description) + len(tool.parameters)
