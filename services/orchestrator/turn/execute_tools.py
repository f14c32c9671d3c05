"""The tool calls of one step: started durably, run side by side or in order, their results checkpointed one by one.

A call is known by its key `<run>/<step>/<call>`. Whoever cannot tell how a call ended asks the executor by that key; what
stays unknown is asked of a person, or told to the model as unknown, and is never repeated by itself.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import orjson
import structlog

from services.common import tasks
from services.common.errors import BulkheadError
from services.orchestrator.ports import Message, ToolOutcome, ToolProgress, Warned
from services.orchestrator.turn import approvals, content, degradation, guard, guarding, handoff
from services.orchestrator.turn.citations import issue
from services.orchestrator.turn.intent import start_step
from services.orchestrator.turn.orders import CANCELLED, RETRY, STOPPED_IN_TIME, Attendance, continued, endable
from services.orchestrator.turn.plan_tools import announce, start_next
from services.orchestrator.turn.results import cut
from services.orchestrator.turn.state import PendingCall, Turn

POLL_S = 0.1
# A call that runs elsewhere is waited for this much longer than its own time limit.
OVERTIME_S = 5.0
# The executor, or the store that it answers from, is being replaced: both are back in seconds.
AWAY = frozenset({"UNREACHABLE", "CANCELLED", "STORE_UNAVAILABLE"})
AWAY_TRIES = 32
AWAY_WAIT_S = 0.25
# A run that is cancelled waits so long to hear what became of its calls; what is not known by then is told as unknown.
ENDED_WITHIN_S = 3.0
UNKNOWN = "tool_outcome_unknown"
# Name, among the parts of a turn's state, of the calls that were at work when the run ended, as the tool_log has the others.
LEFT = "left"
# The outcome of a call that comes from elsewhere, later, as a command; until then it stays pending and nothing is done for it.
DEFERRED = ToolOutcome("deferred")
log = structlog.get_logger("bulkhead.turn")
_UNKNOWN_TEXT = "It is not known whether this call took effect. Do not call it again for the same purpose; tell the user about it."


class BuiltIn(Protocol):
    """Answers the calls of tools that are the strategy's own."""

    def __call__(self, turn: Turn, call: PendingCall) -> ToolOutcome | None:
        """The outcome of a call, or DEFERRED; None where the tool is the executor's. What it changes of the state is written with it."""
        ...


async def execute_tools(turn: Turn, built_in: BuiltIn, *, resumed: bool) -> None:
    """Brings every pending call to its end, unless the process goes away before all have started.

    `resumed`: another owner may have sent those that have started.
    """
    turn.enter_call()
    await approvals.put(turn)
    with Attendance(turn) as attendance:
        while call := _given_up(turn, attendance):
            if await _give_up(turn, attendance, call) is None:
                break
        if turn.state.phase != "tools":
            return
        held = approvals.held(turn)
        at_work = [call for call in turn.state.pending if call.started and call.number not in held]
        if not at_work or approvals.answered(turn):
            # A former owner left between two calls, or people have answered.
            resumed, fresh = resumed and bool(at_work), start_next(turn)
            at_work += fresh
            if not at_work:
                return await approvals.wait(turn)
            if fresh:
                await turn.writer.checkpoint(turn.snapshot())
        if len(turn.state.pending) == 1:
            await _one(turn, built_in, attendance, at_work[0], resumed)
        else:
            await _together(turn, built_in, attendance, at_work, resumed)
    turn.check_time()


async def _together(turn: Turn, built_in: BuiltIn, attendance: Attendance, at_work: Sequence[PendingCall], resumed: bool) -> None:
    begun: list[asyncio.Task] = []
    giving_up: set[int] = set()

    async def work(call: PendingCall, sent_before: bool) -> None:
        for following in await _one(turn, built_in, attendance, call, sent_before):
            begun.append(group.create_task(work(following, False)))

    async def give_up(call: PendingCall) -> None:
        for following in await _give_up(turn, attendance, call) or ():
            begun.append(group.create_task(work(following, False)))
        giving_up.discard(call.number)

    def ordered() -> None:
        call = _given_up(turn, attendance, giving_up)
        # Where none is at work any more, the next round is about to begin and finds it.
        if call is not None and not all(task.done() for task in begun):
            giving_up.add(call.number)
            begun.append(group.create_task(give_up(call)))

    attendance.idle = ordered
    try:
        async with asyncio.TaskGroup() as group:
            begun += [group.create_task(work(call, resumed)) for call in at_work]
            for _ in approvals.held(turn):
                # Of some it was heard while the start of these was written.
                ordered()
    except BaseExceptionGroup as group_error:
        # One cause is enough: a limit that was reached, or an epoch that is old.
        raise group_error.exceptions[0] from None


def _given_up(turn: Turn, attendance: Attendance, but: Set[int] = frozenset()) -> PendingCall | None:
    """A call that somebody wants ended while it waits for an approval. To make it again there changes nothing."""
    held = approvals.held(turn) - but
    for call in turn.state.pending:
        order = attendance.given(call) if call.number in held and not call.started and endable(turn, call) else None
        if order is not None and order.continuation != RETRY:
            return call
    return None


async def _give_up(turn: Turn, attendance: Attendance, call: PendingCall) -> list[PendingCall] | None:
    """Ends such a call, which is not made; answers those that may be sent now, None where somebody has answered in this moment. Raises
    RunStopped."""
    if not await approvals.withdraw(turn, call) or (order := attendance.taken(call)) is None:
        return None
    call.started = True
    announce(turn, call)
    outcome = continued(turn, call, order, STOPPED_IN_TIME)
    assert outcome is not None, "it was not to be made again"
    return await _record(turn, call, outcome)


def _ordered(turn: Turn, attendance: Attendance, call: PendingCall) -> ToolOutcome | None:
    """As _give_up, of a call whose owner was lost when nobody could approve it any more. Raises RunStopped."""
    order = attendance.given(call) if approvals.not_made(turn, call) and endable(turn, call) else None
    if order is None or order.continuation == RETRY:
        return None
    attendance.taken(call)
    return continued(turn, call, order, STOPPED_IN_TIME)


async def _one(turn: Turn, built_in: BuiltIn, attendance: Attendance, call: PendingCall, sent_before: bool) -> list[PendingCall]:
    """Brings one call to its end; answers those that may be sent now, which the same write has announced."""
    outcome = _refusal(call) or _ordered(turn, attendance, call) or approvals.refusal(turn, call) or handoff.called(turn, call)
    if outcome is None and (outcome := built_in(turn, call)) is None:
        outcome = await _attended(turn, attendance, call, sent_before)
    if outcome is DEFERRED:
        return []
    # First who may keep something back: of what it keeps back nothing is shown.
    return await _record(turn, call, await content.taken(turn, call, await guarding.brought(turn, call, outcome)))


def _key(turn: Turn, call: PendingCall) -> str:
    return f"{turn.ref.run_id}/{turn.state.step}/{call.number}"


async def _attended(turn: Turn, attendance: Attendance, call: PendingCall, sent_before: bool) -> ToolOutcome:
    """How a call of the executor ended, by itself or because somebody asked for it. Raises RunStopped."""
    key = _key(turn, call)
    work = _resolve if sent_before and not approvals.retrying(turn, call) else _execute
    while True:
        outcome, order, begun = await attendance.attend(call, partial(work, turn, call, key))
        if order is None:
            assert outcome is not None
            return outcome
        known = await _ended(turn, call, key, for_good=order.continuation != RETRY) if begun or sent_before else STOPPED_IN_TIME
        if (outcome := continued(turn, call, order, known)) is not None:
            return outcome
        work, sent_before = (_resolve if begun or sent_before else _execute), True


async def _ended(turn: Turn, call: PendingCall, key: str, *, for_good: bool) -> ToolOutcome:
    """Ends a call at the executor and answers what became of it, as far as that can be found out."""
    for _ in range(AWAY_TRIES):
        try:
            known = await turn.services.tools.cancel(key, for_good=for_good)
        except BulkheadError as error:
            if error.reason not in AWAY:
                log.warning("tool_call_not_cancelled", run_id=turn.ref.run_id, call=key, reason=error.reason)
                break
        else:
            if known is None or known.outcome != "running":
                return known or STOPPED_IN_TIME
        await asyncio.sleep(AWAY_WAIT_S)
    return STOPPED_IN_TIME if call.repeatable else ToolOutcome("unknown")


async def end_calls(turn: Turn) -> dict[int, ToolOutcome]:
    """Ends the calls at work of a run that is cancelled; answers what became of those of which that can be told, by their numbers."""
    started = [call for call in turn.state.pending if call.started and (_refusal(call) or approvals.refusal(turn, call)) is None]
    if not started:
        return {}
    turn.enter_call()
    ending = {call.number: asyncio.create_task(_ended(turn, call, _key(turn, call), for_good=True)) for call in started}
    await asyncio.wait(ending.values(), timeout=ENDED_WITHIN_S)
    found = {}
    for number, task in ending.items():
        if task.done() and (error := task.exception()):
            # A defect: the run ends all the same, and this call's outcome is told as unknown.
            log.error("tool_call_not_ended", run_id=turn.ref.run_id, call=number, exc_info=error)
        elif task.done():
            found[number] = task.result()
    await tasks.end(ending.values())
    told = [call for call in started if call.number in found]
    # Beside each other: however many there are, this takes no longer than one check may.
    shown = await asyncio.gather(*(guarding.brought(turn, call, found[call.number], ending=True) for call in told))
    shown = await asyncio.gather(*(content.taken(turn, *each, ENDED_WITHIN_S) for each in zip(told, shown, strict=True)))
    return {call.number: outcome for call, outcome in zip(told, shown, strict=True)}


def _refusal(call: PendingCall) -> ToolOutcome | None:
    """What can be told without asking the executor."""
    if call.over:
        message = "The run has no tool calls left. Answer with what you have."
        return ToolOutcome("failed", code="limit.tool_calls", message=message)
    if not call.version:
        # Which tools were on offer, the model was told; an owner that took the run over does not know it any more.
        return ToolOutcome("failed", code="input.unknown_tool", message=f"No tool {call.name[:64]!r} was on offer in this step.")
    try:
        arguments = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        return ToolOutcome("failed", code="input.malformed_json", message="The arguments are not valid JSON. Send one JSON object.")
    if not isinstance(arguments, dict):
        return ToolOutcome("failed", code="input.malformed_json", message="The arguments must be one JSON object.")
    return None


async def _execute(turn: Turn, call: PendingCall, key: str) -> ToolOutcome:
    try:
        outcome = await _send(turn, call, key)
    except BulkheadError as error:
        turn.check_time()
        if error.reason in AWAY:
            return await _resolve(turn, call, key)
        if error.code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED"):
            return _lost(call, error.reason)
        return ToolOutcome("failed", code=f"refused.{error.reason.lower()}", message=error.message)
    return await _resolve(turn, call, key) if outcome.outcome == "running" else outcome


async def _send(turn: Turn, call: PendingCall, key: str) -> ToolOutcome:
    """Sends the call and relays what it tells on the way. Raises BulkheadError."""
    arguments = (call.arguments or "{}").encode()
    approval = approvals.token(turn, call)
    stream = turn.services.tools.execute(call.name, call.version, arguments, key, turn.ref.run_id, turn.ref.thread_id, approval)
    note = ""
    async with aclosing(stream):
        async for item in stream:
            if isinstance(item, ToolOutcome):
                return replace(item, note=note) if note else item
            if isinstance(item, ToolProgress):
                turn.writer.emit("tool_call_progress", {"call_id": call.call_id, **item.data})
            elif isinstance(item, Warned):
                degradation.relay(turn, item.data)
                note = degradation.stand_in(item.data) or note
            turn.writer.flush_soon()
    raise AssertionError("a tool call ends with its outcome or an error")


async def _resolve(turn: Turn, call: PendingCall, key: str) -> ToolOutcome:
    """Finds out how a call ended that may have been sent: by its key, and by sending it (again) only where that is safe."""
    patience = time.monotonic() + call.timeout_s + OVERTIME_S
    away = 0
    while True:
        turn.check_time()
        try:
            known = await turn.services.tools.call_of(key)
            outcome = await _again(turn, call, key, known)
        except BulkheadError as error:
            away += 1
            if away >= AWAY_TRIES or error.reason not in AWAY:
                return _lost(call, error.reason)
            await asyncio.sleep(AWAY_WAIT_S)
            continue
        if outcome.outcome != "running":
            return outcome
        if time.monotonic() > patience:
            return _lost(call, "still at work")
        await asyncio.sleep(POLL_S)


async def _again(turn: Turn, call: PendingCall, key: str, known: ToolOutcome | None) -> ToolOutcome:
    """What is known of the call, or what sending it now brings. Raises BulkheadError."""
    stopped = known is not None and (known.outcome, known.code) == CANCELLED
    if known is not None and not stopped and not (known.outcome == "unknown" and call.repeatable):
        return known
    # Never seen, harmless to do twice, or stopped in time when its owner was lost; the key keeps even a call that is still
    # on its way from being done twice. Never seen is never begun: the executor asks no tool that must not be asked twice before the
    # claim would outlast the store, by its file and, with BULKHEAD_STATE_REPLICAS, by what replicas have on disk. A former primary that
    # knows of no claim gets none acknowledged either. (Claims are kept for a day: whoever asks later cannot tell.)
    return await _send(turn, call, key)


def _lost(call: PendingCall, reason: str) -> ToolOutcome:
    if call.repeatable:
        return ToolOutcome("failed", code="tool_unavailable", message=f"The tool is not available now ({reason.lower()}).")
    return ToolOutcome("unknown")


async def _record(turn: Turn, call: PendingCall, outcome: ToolOutcome) -> list[PendingCall]:
    """Checkpoints the result together with its event, and with the start of the calls that it makes way for."""
    state = turn.state
    following: list[PendingCall] = []
    if outcome.outcome == "unknown" and not outcome.cancel and approvals.doubt(turn, call):
        following = [] if turn.leaving() else start_next(turn)
        await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
        return following
    # It stands in the event too, so that whoever makes the conversation out of the log says what was said.
    remark = approvals.remark(turn, call) + (f"[{outcome.note}]\n" if outcome.note else "")
    note = {"note": remark} if remark else {}
    if outcome.outcome == "done":
        guard.brought(turn, call)
        output = issue(state.citations, outcome.citations, outcome.output or b"null")
        if output != outcome.output:
            outcome = replace(outcome, output=output)
        said = output.decode("utf-8", "replace")
        shown = orjson.Fragment(output)
        turn.writer.emit(
            "tool_call_completed",
            {"call_id": call.call_id, "tool": call.name, "output": shown, "duration_ms": outcome.duration_ms, **note, **_cancel(outcome)},
        )
        content.tell(turn, outcome)
    else:
        error = {"code": outcome.code or "failed", "message": outcome.message}
        if outcome.outcome == "unknown":
            error = {"code": UNKNOWN, "message": _UNKNOWN_TEXT}
        turn.writer.emit("tool_call_failed", {"call_id": call.call_id, "tool": call.name, "error": error, **note, **_cancel(outcome)})
        if not outcome.cancel:
            degradation.tool_failed(turn, call.name, error["code"])
        said = orjson.dumps({"error": error}).decode()
    state.tool_log.append({"name": call.name, "arguments": call.arguments[:2_000], "output": (remark + said)[:2_000]})
    message = Message("tool", remark + cut(said), tool_call_id=call.call_id)
    turn.messages.append(message)
    approvals.ended(turn, call)
    state.pending = [p for p in state.pending if p.number != call.number]
    if turn.settle is not None:
        turn.settle(turn, call, outcome)
    elif not state.pending:
        end_step(turn)
    if state.pending and not turn.leaving():
        following = start_next(turn)
    await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
    return following


def _cancel(outcome: ToolOutcome) -> dict[str, Any]:
    return {"cancel": outcome.cancel} if outcome.cancel else {}


def end_step(turn: Turn) -> None:
    """Announces the end of this step and, with it, the next one."""
    state = turn.state
    guard.step_ended(turn)
    turn.writer.emit("step_completed", {"step": state.step, "usage": state.usage})
    state.phase = "model"
    start_step(turn)


def report_unfinished(turn: Turn, how: str, became: Mapping[int, ToolOutcome] = {}) -> None:
    """Tells of the calls at work at the run's end, also those of an owner that was lost: nobody waits for them any more.

    `how` it ends: cancelled or stopped. `became` is what is known of them.
    """
    approvals.report(turn)
    for call in turn.state.pending:
        if call.started:
            known = became.get(call.number)
            told = {"call_id": call.call_id, "tool": call.name}
            ended = {"name": call.name, "arguments": call.arguments[:2_000]}
            left = turn.state.parts.setdefault(LEFT, [])
            if known is not None and known.outcome == "done":
                shown = orjson.Fragment(known.output or b"null")
                turn.writer.emit("tool_call_completed", {**told, "output": shown, "duration_ms": known.duration_ms})
                content.tell(turn, known)
                left.append({**ended, "output": (known.output or b"null").decode("utf-8", "replace")[:2_000]})
                continue
            certain = call.repeatable if known is None else known.outcome == "failed"
            error = {"code": "cancelled" if certain else UNKNOWN, "message": f"The run was {how} while this call was at work."}
            withheld = known if known is not None and known.code.startswith(guarding.CODE) else None
            if (refused := _refusal(call) or approvals.refusal(turn, call) or withheld) is not None:
                error = {"code": refused.code, "message": refused.message}
            turn.writer.emit("tool_call_failed", {**told, "error": error})
            left.append({**ended, "output": orjson.dumps({"error": error}).decode()[:2_000]})
