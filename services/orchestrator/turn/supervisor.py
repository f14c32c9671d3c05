"""Supervisor: the tool loop of an agent that has other agents work for it, each in a run of its own.

To delegate is a tool call whose result is the other agent's answer; to hand over makes the other agent's answer the run's own. A child
run's id follows from the run, the step and the call, so whoever takes the run over finds the children that are there and makes no
second ones. While only children are at work the run is parked.
"""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from services.orchestrator.agents import DELEGATE, HAND_OVER, ChildAgent
from services.orchestrator.children.naming import child_run_id, child_thread_id
from services.orchestrator.ports import ChildRun, Message, ModelFinished, ToolDefinition, ToolOutcome
from services.orchestrator.records import Command, Limits, Terminal
from services.orchestrator.turn import approvals, finish, lost
from services.orchestrator.turn.execute_tools import DEFERRED, execute_tools
from services.orchestrator.turn.limits import DELEGATED, held
from services.orchestrator.turn.patience import patiently
from services.orchestrator.turn.plan_tools import startable
from services.orchestrator.turn.react import ReAct
from services.orchestrator.turn.state import COUNTED, PendingCall, RunParked, Turn

# Of the run's parts: the children of the step at work, by the number of their call.
PART = "children"
COMMAND = "child"
# Of the run's parts: the time (ms since 1970) up to which active time of children is counted.
COUNTED_UNTIL = "children_until"
# A parked run looks after its children so often: one whose thread was deleted tells of nothing, and what one told may not have come.
LOOK_MS = 60_000
# The store may be away for a moment while a child is made.
MOST_TASK_CHARS = 65_536
_SCHEMA = {
    "type": "object",
    "properties": {"task": {"type": "string", "minLength": 1, "maxLength": MOST_TASK_CHARS}},
    "required": ["task"],
    "additionalProperties": False,
}
_DELEGATE = "Has the agent {0} work on a task and answers with its result. It sees only what the task says. {1}"
_GONE = {"reason": "RUN_NOT_FOUND", "message": "The run of the agent was deleted."}
_NOTHING_LEFT = {"reason": "BUDGET_USED_UP", "message": "Too little of the run's limits is left for another agent."}
_HAND_OVER = "Hands this conversation over to the agent {0}, whose answer goes to the user as it is. {1}"


class Supervisor(ReAct):
    """ReAct whose further tools are other agents."""

    async def advance(self, turn: Turn, *, resumed: bool) -> Terminal | None:
        """As Strategy.advance. Raises RunParked while children are at work and nothing else is."""
        turn.intent = self.intent
        if (over := _over(turn)) is not None:
            # Its answer was written down by an owner who was lost before it could end the run.
            return _handed_over(turn, over)
        if turn.state.phase != "tools":
            return await super().advance(turn, resumed=resumed)
        if resumed:
            await _look_after(turn)
        await self._begin(turn)
        await execute_tools(turn, self.built_in, resumed=resumed)
        if (over := _over(turn)) is not None:
            return _handed_over(turn, over)
        if turn.state.phase == "tools" and not turn.leaving():
            await self._begin(turn)
            # What has started and is pending is with children or with people; what has not may have to wait for them.
            if not startable(turn.state.pending, turn.agent.most_at_once, approvals.held(turn)):
                await _wait(turn)
        return None

    def offered(self, turn: Turn) -> list[ToolDefinition]:
        """As ReAct.offered."""
        return [*super().offered(turn), *(tool for child in turn.agent.agents for tool in _tools(child))]

    def built_in(self, turn: Turn, call: PendingCall) -> ToolOutcome | None:
        """The answer of a child, once there is one."""
        child = _asked(turn, call)
        if child is None:
            return None
        if (wrong := _task_problem(call)) is not None:
            return wrong
        known = turn.state.parts.get(PART, {}).get(str(call.number))
        if known is None or "status" not in known:
            return DEFERRED
        turn.state.parts[PART].pop(str(call.number))
        if known["status"] == "succeeded":
            if call.name.startswith(HAND_OVER):
                turn.state.parts[PART]["over"] = known
            return ToolOutcome("done", orjson.dumps({"agent": child.name, "answer": known["output_text"]}), "1")
        error = known.get("error") or {"reason": "CANCELLED", "message": "The run of the agent was cancelled."}
        return ToolOutcome("failed", code=f"agent.{error['reason'].lower()}", message=error["message"])

    async def _begin(self, turn: Turn) -> None:
        """Starts the child runs of calls that may start; each is written down before it is made, and made again by whoever takes over."""
        children = turn.state.parts.setdefault(PART, {})
        asked = [call for call in turn.state.pending if call.started and _asked(turn, call) and _task_problem(call) is None]
        asked = [call for call in asked if not approvals.not_made(turn, call)]
        fresh = [call for call in asked if str(call.number) not in children]
        if fresh:
            await lost.settle(turn)
        for call in fresh:
            child = _asked(turn, call)
            assert child is not None
            given = _slice(turn, child)
            if given is None:
                children[str(call.number)] = {"run_id": "", "agent": child.name, "status": "failed", "error": _NOTHING_LEFT}
                continue
            run_id = child_run_id(turn.ref.run_id, turn.state.step, call.number)
            made = {"run_id": run_id, "thread_id": child_thread_id(run_id), "agent": child.name, "limits": given}
            children[str(call.number)] = made
            turn.writer.emit("child_run_started", {"call_id": call.call_id, **{k: made[k] for k in ("run_id", "thread_id", "agent")}})
        if fresh:
            await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
        for call in asked:
            known = children[str(call.number)]
            if "status" not in known and not known.get("made"):
                await self._make(turn, call, known)
                known["made"] = True

    async def _make(self, turn: Turn, call: PendingCall, known: dict[str, Any]) -> None:
        task = orjson.loads(call.arguments)["task"]
        said: list[Mapping[str, str]] = [{"role": "user", "text": task}]
        if call.name.startswith(HAND_OVER):
            said = [{"role": "system", "text": f"Another agent hands this conversation over to you: {task}"}, *turn.spec.input]
        run = ChildRun(
            known["run_id"], known["thread_id"], known["agent"], tuple(said), Limits(*known["limits"]), turn.ref,
            turn.spec.child_of.get("depth", 0) + 1, turn.spec.experiment, turn.spec.arm,
        )  # fmt: skip
        children = turn.services.children
        assert children is not None

        async def create() -> Mapping[str, str] | None:
            turn.enter_call()
            return await children.create(run, turn.principal)

        turn.check_time()
        refused = await patiently(turn, create)
        if refused is not None:
            known.update(status="failed", error=refused)


def _over(turn: Turn) -> Mapping[str, Any] | None:
    """What became of the child that the conversation was handed to, once it has answered."""
    found: Mapping[str, Any] | None = turn.state.parts.get(PART, {}).pop("over", None)
    return found


def _at_work(turn: Turn) -> list[dict[str, Any]]:
    """The children that have not ended, as far as the run knows."""
    return [known for number, known in turn.state.parts.get(PART, {}).items() if number != "over" and "status" not in known]


async def _look_after(turn: Turn) -> None:
    """Takes the ends of children of which nothing was heard: one whose thread was deleted will never tell of it. Raises Overloaded."""
    assert turn.services.children is not None
    told = {command.data.get("run_id") for command in turn.commands if command.kind == COMMAND}
    for known in _at_work(turn):
        if not known.get("made") or known["run_id"] in told:
            continue
        ended = await turn.services.children.ended(known["run_id"], known["thread_id"], turn.principal)
        if ended is None:
            known.update(status="failed", error=_GONE)
            _hold(turn, known, {})
        elif ended:
            _take(turn, ended)


async def _wait(turn: Turn) -> None:
    """Parks the run where nothing is left to do but to wait for children, or for people as well. Raises RunParked, Overloaded."""
    asked = turn.state.parts.get(approvals.PART, {})
    if asked.get("ask") or turn.commands or any("status" in known for known in turn.state.parts.get(PART, {}).values()):
        return
    look_ms = int(time.time() * 1000) + LOOK_MS
    if asked.get("wait"):
        try:
            return await approvals.wait(turn)
        except RunParked as parked:
            # People may take days; children are looked after all the same.
            raise RunParked(min(parked.until_ms, look_ms) if _at_work(turn) else parked.until_ms) from None
    raise RunParked(look_ms)


def finished(turn: Turn, command: Command) -> None:
    """Notes what became of a child run, and counts what it used. One that nobody waits for any more changes nothing."""
    _take(turn, command.data)


def _take(turn: Turn, data: Mapping[str, Any]) -> None:
    children = turn.state.parts.get(PART, {})
    known = next((made for made in children.values() if made["run_id"] == data["run_id"]), None)
    if known is None or "status" in known:
        return
    known.update({name: data[name] for name in ("status", "output_text", "error", "finish_reason", "citations") if name in data})
    for name in COUNTED:
        turn.state.usage[name] += data["usage"].get(name, 0)
    delegated = turn.state.parts.setdefault(DELEGATED, {"cost_microusd": 0})
    delegated["cost_microusd"] += data["usage"].get("cost_microusd", 0)
    if data.get("uncertain"):
        _hold(turn, known, data["usage"])
    turn.state.active_ms += _passed_ms(turn, data)
    shown = {name: data[name] for name in ("run_id", "thread_id", "status", "usage") if name in data}
    turn.writer.emit("child_run_finished", {"agent": known["agent"], **shown})


def _hold(turn: Turn, known: Mapping[str, Any], told: Mapping[str, int]) -> None:
    """Takes what a child was given as used, beyond what it told: nobody knows what became of it, and no limit is to be passed."""
    lent = turn.state.parts.setdefault(DELEGATED, {"cost_microusd": 0}).setdefault("held", {})
    used = {
        "max_tool_calls": told.get("tool_calls", 0), "max_cost_microusd": told.get("cost_microusd", 0),
        "max_total_tokens": told.get("input_tokens", 0) + told.get("output_tokens", 0),
    }  # fmt: skip
    for name, given in zip(used, known["limits"][2:], strict=True):
        lent[name] = lent.get(name, 0) + max(0, int(given) - used[name])


def _passed_ms(turn: Turn, data: Mapping[str, Any]) -> int:
    """Active time of a child, without what passed while one was at work beside it that is counted already."""
    active_ms = int(data.get("active_ms", 0))
    if not data.get("ended_ms"):
        # Told by the version before.
        return active_ms
    until_ms = turn.state.parts.get(COUNTED_UNTIL, 0)
    turn.state.parts[COUNTED_UNTIL] = max(until_ms, data["ended_ms"])
    return max(0, min(active_ms, data["ended_ms"] - max(data["started_ms"], until_ms)))


async def cancel_children(turn: Turn) -> None:
    """Asks for the end of the children that are at work, for a run that ends before them. Raises Overloaded."""
    for known in _at_work(turn):
        assert turn.services.children is not None
        await turn.services.children.cancel(known["run_id"], turn.principal)


def at_work_of(state: Mapping[str, Any]) -> list[str]:
    """Run ids of the children that have not ended, by the checkpoint of a run."""
    known = state.get("parts", {}).get(PART, {})
    return [made["run_id"] for number, made in known.items() if number != "over" and "status" not in made]


def _tools(child: ChildAgent) -> list[ToolDefinition]:
    forms = {"delegate": [(DELEGATE, _DELEGATE)], "hand_over": [(HAND_OVER, _HAND_OVER)]}
    forms["both"] = [*forms["delegate"], *forms["hand_over"]]
    schema = orjson.dumps(_SCHEMA)
    return [
        # A child run of the same id is the same run, so asking for it again is harmless.
        ToolDefinition(prefix + child.name, "1", text.format(child.name, child.description).strip(), schema, repeatable=True, own=True)
        for prefix, text in forms[child.mode]
    ]


def _asked(turn: Turn, call: PendingCall) -> ChildAgent | None:
    """The agent that a call asks for; None where it is another tool's."""
    if not call.version or call.over:
        return None
    return next((child for child in turn.agent.agents if call.name in (DELEGATE + child.name, HAND_OVER + child.name)), None)


def _task_problem(call: PendingCall) -> ToolOutcome | None:
    try:
        arguments = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    task = arguments.get("task") if isinstance(arguments, dict) else None
    if isinstance(task, str) and task.strip() and len(task) <= MOST_TASK_CHARS:
        return None
    message = f"Give the task as a text of 1 to {MOST_TASK_CHARS} characters, in an object with the one key task."
    return ToolOutcome("failed", code="input.invalid", message=message)


def _slice(turn: Turn, child: ChildAgent) -> list[float] | None:
    """What a child may use: its share of what is left to the run when it starts, less what other children at work were given, and what
    the run's own calls take that the same answer asked for.

    In the order of Limits, 0 for no limit; None where too little is left.
    """
    limits, usage, lent = turn.spec.limits, turn.state.usage, held(turn)
    planned = sum(not (call.started or call.over or approvals.not_made(turn, call)) for call in turn.state.pending)
    used = [
        turn.active_ms() / 1000, turn.state.step, usage["tool_calls"] + planned + lent.get("max_tool_calls", 0),
        usage["cost_microusd"] + lent.get("max_cost_microusd", 0),
        usage["input_tokens"] + usage["output_tokens"] + lent.get("max_total_tokens", 0),
    ]  # fmt: skip
    every = [limits.deadline_s, limits.max_steps, limits.max_tool_calls, limits.max_cost_microusd, limits.max_total_tokens]
    given = [made["limits"] for made in _at_work(turn)]
    found: list[float] = []
    for i, limit in enumerate(every):
        if not limit:
            found.append(0)
            continue
        # Time passes for all of them at once.
        taken = sum(limits_of[i] for limits_of in given) if i else 0
        left = (limit - used[i] - taken) * child.share
        if left < 1:
            return None
        found.append(left if i == 0 else int(left))
    return found


def _handed_over(turn: Turn, over: Mapping[str, Any]) -> Terminal:
    """The end of a run whose answer is another agent's."""
    text = over["output_text"]
    turn.state.step += 1
    turn.writer.delta(f"{turn.ref.run_id}/{turn.state.step}", text)
    turn.delivered = text
    turn.state.citations.update({citation["citation_id"]: citation for citation in over.get("citations", [])})
    answer = ModelFinished(Message("assistant", text), over.get("finish_reason", "stop"), dict.fromkeys(COUNTED, 0))
    return finish.succeed(turn, answer)
