"""What users ask of single tool calls of a run at work: that they end, and how the run goes on without them.

An order is a command in the run's inbox. A call at work hears of it at once (Attendance), and so does one that waits for an approval; one
whose owner was lost, or that waits for its turn, finds it in the turn's state. What became of the call at the executor is told with its
result, whatever the order was.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, NamedTuple

from services.orchestrator.ports import ToolOutcome
from services.orchestrator.records import Command
from services.orchestrator.turn.state import PendingCall, RunStopped, Turn
from services.orchestrator.workflows.definition import REQUEST_APPROVAL

# Kind of the command, and name of what is kept of it among the parts of a turn's state: `calls`, orders by the call that they are for,
# and `obeyed`, the numbers of those that were obeyed before they were absorbed.
COMMAND, PART = "tool", "orders"
SKIP, FAIL, RETRY, SUBSTITUTE = "skip", "fail", "retry", "substitute"
CONTINUATIONS = (SKIP, FAIL, RETRY, SUBSTITUTE)
# What the executor notes of a call that was stopped before it could take effect.
CANCELLED = ("failed", "transport.cancelled")
STOPPED_IN_TIME = ToolOutcome(CANCELLED[0], code=CANCELLED[1], message="The call was cancelled.")
SKIPPED = "cancelled.skipped"
_SKIPPED_TEXT = "The user had this call skipped. Go on without its result, and do not make it again."


class Order(NamedTuple):
    """How a run is to go on without a call; `result` is JSON that stands in for the call's own."""

    number: int
    call_id: str
    continuation: str
    result: str

    @classmethod
    def of(cls, command: Command) -> "Order":
        """The order that a command is."""
        data = command.data
        return cls(command.number, data["call_id"], data["continuation"], data.get("result", ""))


def ordered(turn: Turn, command: Command) -> None:
    """Absorbs an order that no call has obeyed yet; one for a call that has ended by now is told as ignored."""
    part, order = turn.state.parts.setdefault(PART, {}), Order.of(command)
    if order.number in part.get("obeyed", ()):
        part["obeyed"].remove(order.number)
    elif any(call.call_id == order.call_id and endable(turn, call) for call in turn.state.pending):
        part.setdefault("calls", {})[order.call_id] = [order.number, order.continuation, order.result]
    else:
        turn.writer.emit("tool_cancel_ignored", {"number": order.number, "call_id": order.call_id})


def endable(turn: Turn, call: PendingCall) -> bool:
    """Whether orders are for a call: not for a workflow's question to people, whose answer is theirs alone."""
    return turn.agent.workflow is None or call.name != REQUEST_APPROVAL


class Attendance:
    """Orders for the calls of one step, while they are at work. `idle` is told of an order for a call that is not."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        kept = turn.state.parts.get(PART, {}).get("calls", {})
        self._orders = {call_id: Order(number, call_id, continuation, result) for call_id, (number, continuation, result) in kept.items()}
        self._tasks: dict[str, asyncio.Task] = {}
        self.idle: Callable[[], None] = lambda: None
        for command in turn.commands:
            if command.kind == COMMAND:
                self.hear(command)

    def __enter__(self) -> "Attendance":
        self._turn.listening[COMMAND] = self.hear
        return self

    def __exit__(self, *_: object) -> None:
        del self._turn.listening[COMMAND]

    def hear(self, command: Command) -> None:
        """Takes an order; the last one for a call holds."""
        order = Order.of(command)
        if order.number in self._turn.state.parts.get(PART, {}).get("obeyed", ()):
            return
        self._orders[order.call_id] = order
        if (task := self._tasks.pop(order.call_id, None)) is not None:
            task.cancel()
        else:
            self.idle()

    def given(self, call: PendingCall) -> Order | None:
        """The order that nobody has obeyed yet."""
        return self._orders.get(call.call_id)

    async def attend(self, call: PendingCall, work: Callable[[], Awaitable[ToolOutcome]]) -> tuple[ToolOutcome | None, Order | None, bool]:
        """The outcome of `work`, or the order that came instead, and whether `work` had begun by then."""
        if (order := self.taken(call)) is not None:
            return None, order, False
        task = asyncio.current_task()
        assert task is not None
        self._tasks[call.call_id] = task
        try:
            outcome = await work()
        except asyncio.CancelledError:
            # The run itself may have been cancelled, lost or handed over at the same time.
            if call.call_id in self._tasks or task.uncancel():
                raise
            return None, self.taken(call), True
        finally:
            self._tasks.pop(call.call_id, None)
        if (order := self.taken(call)) is not None:
            task.uncancel()
            return None, order, True
        return outcome, None, True

    def taken(self, call: PendingCall) -> Order | None:
        """The order that is obeyed now."""
        order = self._orders.pop(call.call_id, None)
        if order is not None:
            part = self._turn.state.parts.setdefault(PART, {})
            part.get("calls", {}).pop(call.call_id, None)
            if order.number > self._turn.state.inbox:
                part.setdefault("obeyed", []).append(order.number)
        return order


def continued(turn: Turn, call: PendingCall, order: Order, known: ToolOutcome) -> ToolOutcome | None:
    """What the run goes on with, `known` being what became of the call; None where it is to be made again. Raises RunStopped."""
    became = "cancelled" if (known.outcome, known.code) == CANCELLED else known.outcome
    told: dict[str, Any] = {"number": order.number, "continuation": order.continuation, "executor": became}
    if order.continuation == RETRY and (became == "cancelled" or (became == "unknown" and call.repeatable)):
        turn.writer.emit("tool_call_retried", {"call_id": call.call_id, "tool": call.name, "cancel": told})
        return None
    if order.continuation == SUBSTITUTE:
        return ToolOutcome("done", order.result.encode(), version=call.version, cancel=told)
    if order.continuation == FAIL:
        error = {"code": "cancelled", "message": "The call was cancelled, and the run ends with it."}
        turn.writer.emit("tool_call_failed", {"call_id": call.call_id, "tool": call.name, "error": error, "cancel": told})
        turn.state.pending = [pending for pending in turn.state.pending if pending.number != call.number]
        raise RunStopped("TOOL_CALL_CANCELLED", f"A call of the tool {call.name[:64]} was cancelled, and the run was to end with it.")
    if order.continuation == SKIP and became == "cancelled":
        return ToolOutcome("failed", code=SKIPPED, message=_SKIPPED_TEXT, cancel=told)
    return replace(known, cancel=told)
