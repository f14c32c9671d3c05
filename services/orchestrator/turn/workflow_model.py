"""A model step of a workflow: a conversation of its own, over its prompt, with its own tools and its own limit of model calls."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from services.orchestrator.ports import Message, ModelFinished, ToolDefinition
from services.orchestrator.turn import arguments, guard, limits, lost
from services.orchestrator.turn.degradation import Concluded
from services.orchestrator.turn.model_step import Asked, count, intended, model_step
from services.orchestrator.turn.plan_tools import with_ids
from services.orchestrator.turn.state import RunStopped, Turn
from services.orchestrator.turn.workflow_state import Flow, Place
from services.orchestrator.workflows.definition import ModelStep
from services.orchestrator.workflows.expressions import ExpressionError
from services.orchestrator.workflows.schema import misfits

# These end the run, whatever the step declares.
_OF_THE_RUN = frozenset({"DEADLINE_EXCEEDED", "STEP_LIMIT", "TOOL_LIMIT", "TOKEN_LIMIT", "COST_LIMIT", guard.REASON})
_SCHEMA = "Answer with one JSON value and nothing else. It must fit this JSON Schema: {}"
_REPAIR = "Your answer does not fit: {}. Answer again, with the whole JSON value and nothing else."
_LAST = "No tools can be called any more in this step. Answer now with what you have."


class _Unseen:
    """The run's writer, apart from the text of the model: the run's answer is what its end makes of it."""

    def __init__(self, turn: Turn) -> None:
        self._writer = turn.writer
        self.emit, self.flush_soon, self.flush = turn.writer.emit, turn.writer.flush_soon, turn.writer.flush
        self.provisional_from = 0

    def delta(self, message_id: str, text: str) -> None:
        """Shows nothing."""

    async def supersede(self) -> None:
        """Nothing was shown that could be taken back."""


async def ask_models(flow: Flow, places: Sequence[str]) -> None:
    """One model call for each place, side by side; what each gives is checkpointed as it comes. Raises RunStopped, Fenced."""
    numbered = [place for place in places if place in flow.places and _number(flow, place)]
    # A prompt that cannot be made may have ended the branches beside it.
    numbered = [place for place in numbered if place in flow.places]
    if not numbered:
        return
    if len(numbered) == 1:
        await _ask(flow, numbered[0])
    else:
        await _ask_all(flow, numbered)
    # Not earlier: beside calls at work nobody can tell what those that were lost have cost.
    await lost.settle(flow.turn)


async def _ask_all(flow: Flow, places: Sequence[str]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for place in places:
                group.create_task(_ask(flow, place))
    except BaseExceptionGroup as group_error:
        # One cause is enough: a limit that was reached, or an epoch that is old.
        raise group_error.exceptions[0] from None


def _number(flow: Flow, place: str) -> int:
    """The number of the step's next model call, which its next owner keeps; 0 where the run has none left for it in this round, or
    its prompt cannot be made."""
    turn, kept = flow.turn, flow.places[place]
    if "number" in kept:
        return int(kept["number"])
    left = next((budget.left for budget in limits.budgets(turn) if budget.reason == "STEP_LIMIT"), 1)
    if left <= 0 and any("number" in other for other in flow.places.values()):
        return 0
    limits.check(turn, lost.tokens(turn))
    if "prompt" not in kept:
        try:
            kept["prompt"] = flow.step(place).prompt.render(flow.scope())
        except ExpressionError as error:
            flow.failed(place, "expression.failed", str(error))
            return 0
    turn.state.step += 1
    kept["number"] = turn.state.step
    return int(kept["number"])


async def _ask(flow: Flow, place: str) -> None:
    if place not in flow.places:
        # Another branch has failed before this one was asked.
        return
    turn, kept = flow.turn, flow.places[place]
    step: ModelStep = flow.step(place)
    number = kept["number"]
    # The call is known by its number; what it uses is counted in the state that all share.
    unseen: Any = _Unseen(turn)
    agent = turn.agent.model_copy(update={"model": step.model}) if step.model else turn.agent
    asking = replace(
        turn, state=replace(turn.state, step=number - 1), messages=_conversation(flow, kept), delivered="", writer=unseen, agent=agent,
    )  # fmt: skip
    offered = _offered(turn, step)
    last = limits.last_step(asking) if offered else None
    last_of_step = kept.get("asked", 0) + 1 >= step.max_steps
    notes = [guard.note(asking), limits.note(asking, last)] if offered else []
    notes += [_SCHEMA.format(orjson.dumps(step.answer).decode())] if step.answer is not None else []
    notes += [_LAST] if offered and last_of_step and not last else []
    asked = Asked([] if last or last_of_step else offered, [note for note in notes if note])
    # Again by whoever takes the run over, and makes the call again.
    asking.meant = intended(asking, asked)
    turn.writer.emit("step_started", {"step": number, "name": step.name, **asking.meant})
    problem, answer = await _answered(flow, place, asking, asked)
    if place not in flow.places or flow.places[place] is not kept:
        # Another branch has failed, and with it this one.
        problem = None
    else:
        kept.pop("number")
        kept["asked"] = kept.get("asked", 0) + 1
    if answer is not None:
        count(asking, answer)
        turn.state.spent = asking.state.spent
        if answer.message.tool_calls and last is not None:
            raise limits.reached(last)
        answer = with_ids(asking, answer)
    if flow.places.get(place) is kept:
        if problem is not None:
            flow.failed(place, *problem[:2], passing=problem[2])
        elif answer is not None and answer.message.tool_calls and not last_of_step:
            _keep(turn, kept, answer.message)
            kept["asks"] = True
            flow.part["open"].append([number, step.name])
        elif answer is not None:
            _take(flow, place, answer, exhausted=bool(answer.message.tool_calls))
    if [number, step.name] not in flow.part["open"]:
        turn.writer.emit("step_completed", {"step": number, "name": step.name, "usage": turn.state.usage})
    flow.tell()
    await turn.writer.checkpoint(turn.snapshot(), turn.unstored())


async def _answered(flow: Flow, place: str, asking: Turn, asked: Asked) -> tuple[tuple[str, str, bool | None] | None, ModelFinished | None]:
    """The answer, or what went wrong as code, message and whether it passes. Raises RunStopped where that ends the run."""
    timer = asyncio.timeout(flow.left_s(place))
    try:
        async with timer:
            return None, await model_step(asking, asked)
    except TimeoutError:
        if not timer.expired():
            raise
        return ("timeout", f"the step took longer than {flow.step(place).timeout_s:g} s", None), None
    except RunStopped as stopped:
        if stopped.reason in _OF_THE_RUN or isinstance(stopped, Concluded):
            raise
        return (f"model.{stopped.reason.lower()}", stopped.message, stopped.retryable), None


def _take(flow: Flow, place: str, answer: ModelFinished, *, exhausted: bool) -> None:
    """The step's result out of its last answer; one that does not fit its schema may be corrected once."""
    kept, step = flow.places[place], flow.step(place)
    if exhausted:
        flow.failed(place, "workflow.max_steps", f"asked for tools after {step.max_steps} model calls")
        return
    if step.answer is None:
        flow.done(place, answer.message.text)
        return
    wrong, value = _read(step, answer.message.text)
    if not wrong:
        flow.done(place, value)
    elif kept.get("repaired"):
        flow.failed(place, "output.invalid", "; ".join(wrong))
    else:
        kept["repaired"] = True
        _keep(flow.turn, kept, answer.message)
        _keep(flow.turn, kept, Message("user", _REPAIR.format("; ".join(wrong))))


def _read(step: ModelStep, text: str) -> tuple[list[str], Any]:
    """What is wrong with an answer, and its value."""
    bare = text.strip()
    if bare.startswith("```"):
        bare = bare.removeprefix("```json").strip("`").strip()
    try:
        value, _ = arguments.read(bare)
    except orjson.JSONDecodeError:
        return ["it is not JSON"], None
    except ValueError as error:
        return [str(error)], None
    return misfits(step.answer or {}, value), value


def _keep(turn: Turn, kept: Place, message: Message) -> None:
    kept.setdefault("said", []).append(len(turn.messages))
    turn.messages.append(message)


def _conversation(flow: Flow, kept: Place) -> list[Message]:
    """The instructions and what was recalled, the step's prompt, and what was said in this step."""
    messages = flow.turn.messages
    results = {message.tool_call_id: message for message in messages if message.role == "tool"}
    found = [*messages[: flow.part["base"]], Message("user", kept["prompt"])]
    for index in kept.get("said", ()):
        found.append(messages[index])
        found += [results[call.call_id] for call in messages[index].tool_calls if call.call_id in results]
    return found


def _offered(turn: Turn, step: ModelStep) -> list[ToolDefinition]:
    wanted = {tool.partition("@")[0] for tool in step.tools}
    return [tool for tool in turn.tools or [] if tool.name in wanted]
