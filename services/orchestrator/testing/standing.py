"""Owners of a run that stand still between any two of their calls, as a process does that is stopped, and go on when others have taken
the run over: A2, A4 and A8 with several owners at once. The store, the driver and the turn are the real ones."""

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.orchestrator.driving import Owned
from services.orchestrator.ports import ToolOutcome
from services.orchestrator.records import TERMINAL_EVENTS
from services.orchestrator.testing.approving import LEASE_S, Approving

ENDLESS = -1


class Gate:
    """Lets a process take `steps` more steps; then it stands still until it is let on. A call has two: its way there and its way back."""

    def __init__(self, steps: int = ENDLESS) -> None:
        self._left, self._on = steps, asyncio.Event()
        self.standing = asyncio.Event()

    def let_on(self, steps: int = ENDLESS) -> None:
        """So many more."""
        on, self._on, self._left = self._on, asyncio.Event(), steps
        self.standing.clear()
        on.set()

    async def passed(self) -> None:
        """One step."""
        while self._left == 0:
            self.standing.set()
            await self._on.wait()
        self._left -= 1


class Gated:
    """What a process sees of something that it calls: each call goes through its gate, there and back."""

    def __init__(self, called: Any, gate: Gate) -> None:
        self._called, self._gate = called, gate

    def __getattr__(self, name: str) -> Any:
        found, gate = getattr(self._called, name), self._gate

        async def stream(*args: Any, **parts: Any) -> AsyncGenerator[Any]:
            await gate.passed()
            async for one in found(*args, **parts):
                await gate.passed()
                yield one

        async def call(*args: Any, **parts: Any) -> Any:
            await gate.passed()
            answer = await found(*args, **parts)
            await gate.passed()
            return answer

        return stream if inspect.isasyncgenfunction(found) else call if inspect.iscoroutinefunction(found) else found


@dataclass
class Standing(Approving):
    """As Approving; owners stand still beside those that are lost. No two answers of the model are the same."""

    owners_beside: list[tuple[Owned, Gate]] = field(default_factory=list)
    # Calls whose start was durable when the run's cancel was acknowledged.
    begun_before: set[str] = field(default_factory=set)
    ended_for_good: set[str] = field(default_factory=set)
    answers: int = 0

    def __post_init__(self) -> None:
        """Has the model answer."""
        self.reply = self._answer

    def _answer(self, call: Any) -> Any:
        self.answers += 1
        if any(message.tool_calls for message in call.messages):
            return "done"
        return [(name, {**arguments, "answer": self.answers}) for name, arguments in self.calls]

    # --- the tools ---

    async def execute(self, name: str, version: str, arguments: bytes, key: str, *rest: Any) -> AsyncGenerator[ToolOutcome]:
        """As ports.Tools.execute. What was ended for good before it came is not begun."""
        if key in self.ended_for_good:
            yield self.known[key]
            return
        self.to_end = self.cancelled and key not in self.begun_before
        if orjson.loads(arguments) not in (await self._started())[key]:
            self.faults.append(f"A4: {key} was sent as nobody has announced it")
        async for outcome in super().execute(name, version, arguments, key, *rest):
            yield outcome

    async def cancel(self, key: str, *, for_good: bool) -> ToolOutcome | None:
        """As ports.Tools.cancel."""
        if for_good and key not in self.known:
            self.ended_for_good.add(key)
            self.known[key] = ToolOutcome("failed", code="transport.cancelled")
        return self.known.get(key)

    # --- owners and people ---

    async def cancel_run(self) -> None:
        """Asks for the run's end."""
        await super().cancel_run()
        self.begun_before = set(await self._started())

    async def own_beside(self, steps: int) -> None:
        """Has the next owner take so many steps and then stand still for longer than its lease."""
        gate = Gate(steps)
        owned = await self.take_up(Gated(self.store, gate), Gated(self, gate))
        if owned is not None:
            self.owners_beside.append((owned, gate))
            await self._go_on(owned, gate)

    async def wake(self, which: int, steps: int = ENDLESS) -> None:
        """Has one that stands still take so many more steps."""
        if self.owners_beside:
            owned, gate = self.owners_beside[which % len(self.owners_beside)]
            gate.let_on(steps)
            await self._go_on(owned, gate)

    async def _go_on(self, owned: Owned, gate: Gate) -> None:
        assert owned.task is not None
        standing = asyncio.create_task(gate.standing.wait())
        await asyncio.wait({owned.task, standing}, return_when=asyncio.FIRST_COMPLETED)
        standing.cancel()
        if owned.task.done():
            self.owners_beside.remove((owned, gate))
            left = owned.task.result()
            if left.written is not None and self.ended:
                self.faults.append("A2: the run was ended twice")
            self.ended = self.ended or left.written is not None
        await self.backend.advance(LEASE_S + 1)

    async def all_wake(self) -> None:
        """Has all of them come to their end."""
        while self.owners_beside:
            await self.wake(0)

    # --- what came of it ---

    async def _started(self) -> dict[str, list[Any]]:
        """The arguments of each call whose start is durable, by its key."""
        found = defaultdict(list)
        for event in (await self.store.read(self.ref, 0, 10_000, False))[3]:
            if event.type == "tool_call_started":
                told = orjson.loads(event.data)
                found[told["idempotency_key"]].append(told["arguments"])
        return found

    async def judged(self, status: str) -> list[str]:
        """What is wrong with the history."""
        found = await super().judged(status)
        events = (await self.store.read(self.ref, 0, 10_000, False))[3]
        ends = [event.type for event in events if event.type in TERMINAL_EVENTS]
        if len(ends) != 1 or events[-1].type != ends[0]:
            found.append(f"A2: the run ended with {ends}, and last came {events[-1].type}")
        keys = {}
        for event in events:
            told = orjson.loads(event.data)
            if event.type == "tool_call_started":
                keys[told["call_id"]] = told["idempotency_key"]
            elif event.type == "tool_call_completed" and len(self.effects[keys[told["call_id"]]]) == 0 and "note" not in told:
                found.append(f"A8: {told['call_id']} was told as done and never ran")
            elif event.type == "tool_call_failed" and told["error"]["code"] == "cancelled" and self.effects[keys[told["call_id"]]]:
                found.append(f"A8: {told['call_id']} was told as cancelled and ran")
        return found
