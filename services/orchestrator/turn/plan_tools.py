"""The tool calls of one answer: which of them may be made, which run side by side, and which wait for another."""

import math
from collections.abc import Sequence, Set
from dataclasses import replace

import orjson

from services.orchestrator.ports import ModelFinished, ToolDefinition, ToolRequest
from services.orchestrator.turn import approvals, guard, limits
from services.orchestrator.turn.state import PendingCall, Turn


def with_ids(turn: Turn, answer: ModelFinished) -> ModelFinished:
    """The answer with ids for its tool calls that are unique within the run; providers may leave them empty or repeat them."""
    if not answer.message.tool_calls:
        return answer
    step = turn.state.step + 1
    used = {call.call_id for message in turn.messages for call in message.tool_calls}
    calls = []
    for number, call in enumerate(answer.message.tool_calls):
        call_id = call.call_id if call.call_id and call.call_id not in used else f"call_{step}_{number}"
        used.add(call_id)
        calls.append(call if call_id == call.call_id else replace(call, call_id=call_id))
    if calls == list(answer.message.tool_calls):
        return answer
    return replace(answer, message=replace(answer.message, tool_calls=tuple(calls)))


def plan(turn: Turn, answer: ModelFinished, offered: Sequence[ToolDefinition], last: limits.Budget | None) -> list[PendingCall]:
    """The calls of an answer, of which those beyond the limit are marked; `last` is the limit for which it had to be without any.

    Raises RunStopped at a limit, or where the model goes round in circles.
    """
    if last is not None:
        raise limits.reached(last)
    calls = planned(turn, answer.message.tool_calls, offered)
    guard.asked(turn, calls)
    return calls


def planned(turn: Turn, requests: Sequence[ToolRequest], offered: Sequence[ToolDefinition]) -> list[PendingCall]:
    """The calls that are asked for, of which those beyond the limit are marked."""
    known = {tool.name: tool for tool in offered}
    left = next((budget.left for budget in limits.budgets(turn) if budget.reason == "TOOL_LIMIT"), math.inf)
    calls = []
    for number, request in enumerate(requests):
        tool = known.get(request.name)
        calls.append(
            PendingCall(
                number,
                request.call_id,
                request.name,
                tool.version if tool else "",
                request.arguments.decode("utf-8", "replace"),
                tool.repeatable if tool else False,
                tool.timeout_s if tool else 0.0,
                started=False,
                # Effects come in the order that the model gave, and none while something else is at work.
                alone=tool is not None and (not tool.repeatable or request.name in turn.agent.sequential_tools),
                over=number >= left,
            )
        )
    approvals.planned(turn, calls, known)
    return calls


def startable(pending: Sequence[PendingCall], most: int | None, held: Set[int] = frozenset()) -> list[PendingCall]:
    """The calls that may start now: in their order, at most `most` at a time, and none beside one that runs alone.

    Those in `held` wait for a person. What runs alone does not overtake them, the others do.
    """
    at_work = [call for call in pending if call.started and call.number not in held]
    if any(call.alone for call in at_work):
        return []
    ready: list[PendingCall] = []
    waits = False
    for call in pending:
        if call.number in held:
            waits = True
            continue
        if call.started or (waits and call.alone):
            continue
        busy = len(at_work) + len(ready)
        if most is not None and busy >= most:
            break
        if call.alone:
            if not busy:
                ready.append(call)
            break
        ready.append(call)
    return ready


def start_next(turn: Turn) -> list[PendingCall]:
    """Marks, counts and announces the calls that may start now; they are sent only after this is written."""
    ready = startable(turn.state.pending, turn.agent.most_at_once, approvals.held(turn))
    for call in ready:
        call.started = True
        # One that is refused for the limit has used none of it.
        turn.state.usage["tool_calls"] += not (call.over or approvals.not_made(turn, call))
        _announce(turn, call)
    return ready


def _announce(turn: Turn, call: PendingCall) -> None:
    try:
        arguments = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        arguments = call.arguments
    turn.writer.emit("tool_call_started", {"call_id": call.call_id, "tool": call.name, "version": call.version, "arguments": arguments})
