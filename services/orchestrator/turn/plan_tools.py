"""The tool calls of one answer: which of them may be made, which run side by side, and which wait for another."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from services.common.approval import digest
from services.orchestrator.ports import ModelFinished, ToolDefinition, ToolRequest
from services.orchestrator.turn import approvals, arguments, guard, limits
from services.orchestrator.turn.state import PendingCall, Turn

MOST_ID_CHARS = 128
Unwanted = Mapping[int, Sequence[str]]
_UNREADABLE = "input.malformed_json", "The arguments are not valid JSON, or nested too deeply. Send one JSON object."


def with_ids(turn: Turn, answer: ModelFinished) -> ModelFinished:
    """The answer with ids for its tool calls that are unique within the conversation, and not too long for others to keep; providers may
    leave them empty or repeat them."""
    if not answer.message.tool_calls:
        return answer
    step = turn.state.step + 1
    used = {call.call_id for message in turn.messages for call in message.tool_calls}
    calls = []
    for number, call in enumerate(answer.message.tool_calls):
        call_id = call.call_id if call.call_id and len(call.call_id) <= MOST_ID_CHARS else f"call_{step}_{number}"
        if call_id in used:
            call_id = f"call_{step}_{number}"
        while call_id in used:
            # Of a run that this one goes on from.
            call_id += "_"
        used.add(call_id)
        calls.append(call if call_id == call.call_id else replace(call, call_id=call_id))
    if calls == list(answer.message.tool_calls):
        return answer
    return replace(answer, message=replace(answer.message, tool_calls=tuple(calls)))


def plan(
    turn: Turn, requests: Sequence[ToolRequest], offered: Sequence[ToolDefinition], last: limits.Budget | None, unwanted: Unwanted
) -> list[PendingCall]:
    """As `planned`; `last` is the limit for which there had to be no calls.

    Raises RunStopped at a limit, or where the model goes round in circles.
    """
    if last is not None:
        raise limits.reached(last)
    calls = planned(turn, requests, offered, unwanted)
    guard.asked(turn, calls)
    return calls


def planned(turn: Turn, requests: Sequence[ToolRequest], offered: Sequence[ToolDefinition], unwanted: Unwanted) -> list[PendingCall]:
    """The calls that are asked for, of which those beyond the limit are marked, and those in `unwanted` (code and message) refused."""
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
                # What is the turn's own has the time that the run has.
                0.0 if tool is None or tool.own else tool.timeout_s,
                started=False,
                # Effects come in the order that the model gave, and none while something else is at work.
                alone=tool is not None and (not tool.repeatable or request.name in turn.agent.sequential_tools),
                over=number >= left,
                read_only=tool is not None and tool.read_only,
            )
        )
    # Tools of the turn's own read what they need of it, and tell in their own words what is wrong.
    sent = [call for call in calls if call.name in known and not known[call.name].own]
    malformed = {call.number: _UNREADABLE for call in sent if not _readable(call)}
    approvals.planned(turn, calls, known, {**malformed, **unwanted})
    return calls


def _readable(call: PendingCall) -> bool:
    try:
        arguments.read(call.arguments or "{}")
    except ValueError:
        return False
    return True


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
        announce(turn, call)
    return ready


def announce(turn: Turn, call: PendingCall) -> None:
    """Tells, with the next write, that a call begins: what is called and how it is known, and what may become of it."""
    given: Any
    try:
        given, final = arguments.read(call.arguments or "{}")
    except ValueError:
        # Told, and digested, as the text that it is.
        given, final = call.arguments, call.arguments.encode()
    told = {
        "call_id": call.call_id, "tool": call.name, "version": call.version, "arguments": given, "arguments_digest": digest(final),
        "idempotency_key": f"{turn.ref.run_id}/{turn.state.step}/{call.number}",
        "side_effects": "none" if call.read_only else "idempotent" if call.repeatable else "once",
    }  # fmt: skip
    if call.timeout_s:
        left_s = turn.remaining_s()
        told["timeout_ms"] = max(0, int(1000 * (call.timeout_s if left_s is None else min(call.timeout_s, left_s))))
    turn.writer.emit("tool_call_started", told)
