"""The strategy `workflow`: the steps that an agent version declares, one after the other or side by side.

What can be worked on at a time is done in rounds: first the tool calls, of all places together, then the model calls. Each result is
checkpointed with the move that follows from it, so that a step that has ended is never worked on again.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from services.orchestrator.agent_status import WAITING
from services.orchestrator.ports import Message, ModelFinished, ToolDefinition, ToolOutcome, ToolRequest
from services.orchestrator.records import Terminal
from services.orchestrator.turn import approvals, arguments, degradation, finish, guard, guarding, limits
from services.orchestrator.turn.execute_tools import UNKNOWN, execute_tools
from services.orchestrator.turn.model_step import find_tools
from services.orchestrator.turn.plan_tools import planned, start_next
from services.orchestrator.turn.prepare import prepare
from services.orchestrator.turn.state import PendingCall, RunParked, RunStopped, Turn
from services.orchestrator.turn.workflow_model import ask_models
from services.orchestrator.turn.workflow_state import FLOW, Flow, now_ms
from services.orchestrator.workflows.definition import REQUEST_APPROVAL, ApprovalStep, EndStep, ModelStep, ToolStep, WaitStep
from services.orchestrator.workflows.expressions import ExpressionError, as_text, fill

# For less than this a run keeps its worker.
PARK_FROM_MS = 1_000
_APPROVAL = ToolDefinition(REQUEST_APPROVAL, "1", "Asks a person.", b"{}", repeatable=True, timeout_s=0.0, approval="required")


class WorkflowStrategy:
    """Works off the workflow of the agent."""

    async def advance(self, turn: Turn, *, resumed: bool) -> Terminal | None:
        """As Strategy.advance."""
        flow = Flow(turn)
        if "at" not in flow.part or not turn.messages:
            await self._begin(flow)
            return None
        if turn.state.phase == "tools":
            turn.settle = _settle
            await execute_tools(turn, _approved, resumed=resumed)
            return None
        flow.check()
        if isinstance(end := flow.step(FLOW), EndStep):
            return _end(flow, end)
        if over := flow.ready(WaitStep):
            for place in over:
                if place in flow.places:
                    flow.done(place, None)
            await _store(flow)
            return None
        if turn.tools is None:
            turn.tools = await find_tools(turn)
        asking = [place for place, kept in flow.places.items() if kept.get("asks")]
        calling = flow.ready(ToolStep, ApprovalStep)
        if asking or calling:
            await _start_tools(flow, asking, calling)
        elif models := flow.ready(ModelStep):
            await ask_models(flow, models)
        else:
            await _wait(flow)
        turn.check_time()
        return None

    async def _begin(self, flow: Flow) -> None:
        turn = flow.turn
        # Its steps are announced by name, when they begin.
        turn.state.started_step = max(1, turn.state.started_step)
        if turn.state.phase == "prepare" or not turn.messages:
            # Else an owner that was lost has written down what memory gave, and everything said since is counted from there.
            await prepare(turn)
        # What a model is told before the prompt of its step: instructions, and what memory gave.
        _, recalled = (turn.state.parts.get(degradation.PART) or {}).get("recalled", (0, 0))
        instructions = next((index for index, message in enumerate(turn.messages) if message.role != "system"), len(turn.messages))
        flow.part["base"] = max(recalled, instructions)
        if "at" not in flow.part:
            flow.begin()
            flow.tell()


def _approved(turn: Turn, call: PendingCall) -> ToolOutcome | None:
    """The result of an approval step: whoever rejects it, or nobody, is told of before this is asked."""
    if call.name != REQUEST_APPROVAL:
        return None
    answer = (turn.state.parts.get(approvals.PART) or {}).get("answers", {}).get(str(call.number))
    if answer is None or answer["outcome"] != "approved":
        return ToolOutcome("failed", code=approvals.REQUIRED, message="Nobody has approved this.")
    return ToolOutcome("done", orjson.dumps({"approved": True, "by": answer["by"], "reason": answer["reason"]}), version=call.version)


async def _store(flow: Flow) -> None:
    flow.tell()
    await flow.turn.writer.checkpoint(flow.turn.snapshot(), flow.turn.unstored())


async def _wait(flow: Flow) -> None:
    """Raises RunParked, unless it is for a moment."""
    until_ms = flow.next_ms()
    left_ms = until_ms - now_ms()
    if left_ms >= PARK_FROM_MS:
        flow.tell()
        flow.turn.tell_rest(WAITING, flow.waiting())
        raise RunParked(until_ms)
    flow.turn.writer.flush_soon()
    await asyncio.sleep(max(0, left_ms) / 1000)


def _call_of(step: ToolStep | ApprovalStep) -> tuple[str, Any]:
    """The tool that a step calls, and the templates of its arguments."""
    if isinstance(step, ApprovalStep):
        return REQUEST_APPROVAL, {"question": step.question, "step": step.name}
    return step.tool.partition("@")[0], step.arguments


async def _start_tools(flow: Flow, asking: Sequence[str], stepping: Sequence[str]) -> None:
    """Plans and starts the calls that models have asked for and those that steps declare, as the calls of one answer."""
    turn, state = flow.turn, flow.turn.state
    offered = [*(turn.tools or []), _APPROVAL]
    known = {tool.name for tool in offered}
    requests: list[tuple[str, ToolRequest]] = []
    for place in asking:
        requests += [(place, call) for call in turn.messages[flow.places[place]["said"][-1]].tool_calls]
    declared = []
    for place in stepping:
        if place not in flow.places:
            continue
        name, filled = _call_of(flow.step(place))
        if name not in known:
            flow.failed(place, "tool_missing", f"there is no tool {name!r} that this run may use")
            continue
        try:
            arguments = orjson.dumps(fill(filled, flow.scope()))
        except ExpressionError as error:
            flow.failed(place, "expression.failed", str(error))
            continue
        declared.append((place, name, arguments))
    declared = [each for each in declared if each[0] in flow.places]
    requests = [each for each in requests if each[0] in flow.places]
    # Before anything is noted of them: whoever is interrupted here plans them again.
    made, unwanted = await guarding.asked(turn, [r for _, r in requests] + [ToolRequest("", name, raw) for _, name, raw in declared])
    requests = [(place, request) for (place, _), request in zip(requests, made, strict=False)]
    declared = [(place, name, made[len(requests) + at].arguments) for at, (place, name, _) in enumerate(declared)]
    if declared or flow.part.get("tooled") == state.step:
        # Steps that only call tools go round as well.
        limits.check(turn)
        # The calls of a model go by the number of the call that asked for them, as long as nothing else did.
        state.step += 1
    number = state.step
    for index, (place, name, arguments) in enumerate(declared, len(requests)):
        requests.append((place, ToolRequest(f"call_{number}_{index}", name, arguments)))
    if declared:
        names = ", ".join(flow.places[place]["step"] for place, _, _ in declared)
        turn.writer.emit("step_started", {"step": number, "name": names})
        flow.part["open"].append([number, names])
    if not requests:
        await _store(flow)
        return
    state.pending, state.phase = planned(turn, [request for _, request in requests], offered, unwanted), "tools"
    # What a workflow declares is bounded there; only a model can go round in circles.
    if asked := state.pending[: len(requests) - len(declared)]:
        guard.asked(turn, asked)
    flow.part["calls"] = {str(index): place for index, (place, _) in enumerate(requests)}
    flow.part["tooled"] = number
    start_next(turn)
    await _store(flow)


def _settle(turn: Turn, call: PendingCall, outcome: ToolOutcome) -> None:
    """Takes the result of a call to where it belongs; written together with it."""
    flow = Flow(turn)
    place = flow.part["calls"].get(str(call.number), "")
    step = flow.step(place) if place in flow.places else None
    if isinstance(step, ToolStep | ApprovalStep) and _call_of(step)[0] == call.name:
        if outcome.outcome == "done":
            try:
                output, _ = arguments.read(outcome.output or b"null")
            except ValueError as error:
                # The call was made, and is not made again for that.
                flow.failed(place, "output.invalid", str(error), passing=False)
            else:
                flow.done(place, output)
        elif outcome.outcome == "unknown":
            flow.failed(place, UNKNOWN, "it is not known whether the call took effect", passing=False)
        else:
            flow.failed(place, outcome.code or "failed", outcome.message)
    if not turn.state.pending:
        for kept in flow.places.values():
            kept.pop("asks", None)
        for number, name in flow.part["open"]:
            turn.writer.emit("step_completed", {"step": number, "name": name, "usage": turn.state.usage})
        flow.part.update(open=[], calls={})
        turn.state.phase = "model"
        guard.step_ended(turn)
    flow.tell()


class _Named:
    """The run's writer, which adds the step's name to what is told of it."""

    def __init__(self, turn: Turn, name: str) -> None:
        self._emit, self._name = turn.writer.emit, name

    def emit(self, kind: str, data: Mapping[str, Any]) -> None:
        """As RunWriter.emit."""
        self._emit(kind, {**data, "name": self._name} if kind == "step_completed" else data)


def _end(flow: Flow, end: EndStep) -> Terminal:
    """The end of the run as a step declares it. Raises RunStopped where that is a failure."""
    turn = flow.turn
    try:
        text = as_text(fill(end.output, flow.scope())) if end.fail is None else end.fail.message.render(flow.scope())
    except ExpressionError as error:
        flow.failed(FLOW, "expression.failed", str(error))
        flow.tell(ended=True)
        flow.check()
    turn.state.step += 1
    number = turn.state.step
    turn.writer.emit("step_started", {"step": number, "name": end.name})
    flow.tell(ended=True)
    if end.fail is not None:
        turn.writer.emit("step_completed", {"step": number, "name": end.name, "usage": turn.state.usage})
        raise RunStopped(end.fail.reason, text)
    # Whoever was here before may have shown it.
    turn.writer.delta(f"{turn.ref.run_id}/{number}", text[len(turn.delivered) :])
    turn.delivered = text
    named: Any = _Named(turn, end.name)
    return finish.succeed(replace(turn, writer=named), ModelFinished(Message("assistant", text), "stop", {}))
