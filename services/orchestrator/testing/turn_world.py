"""Turns in memory: a model that does what a function says, two tools, and a store whose owners can be lost at any write.

For properties of the agent loop over many examples. What a real store does with a write is tested elsewhere.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common.identity import Principal
from services.orchestrator.agents import AgentDefinition
from services.orchestrator.blobs.ports import Keeper
from services.orchestrator.ports import Message, ModelCall, ModelFinished, TextDelta, ToolDefinition, ToolOutcome, ToolRequest
from services.orchestrator.records import Command, Draft, Fenced, Limits, Park, RunRef, RunSpec, Terminal, Written
from services.orchestrator.turn.guardrails import AllowAll, Guardrails
from services.orchestrator.turn.loop import run_turn
from services.orchestrator.turn.state import RunParked, Services, Turn, TurnState
from services.orchestrator.writer import RunWriter

REF = RunRef("acme", "t", "r")
PRINCIPAL = Principal("acme", "ana")
# An owner that is lost this often has met a defect.
MOST_OWNERS = 200
Reply = str | Sequence[tuple[str, Mapping[str, Any]]]


@dataclass
class Journal:
    """What is durable. At the writes numbered in `lost_at` the owner is lost: before the write took place or, where the value is
    true, after it."""

    lost_at: Mapping[int, bool] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    state: bytes = b""
    terminals: list[Terminal] = field(default_factory=list)
    epoch: int = 0
    writes: int = 0

    async def write(
        self, ref: RunRef, epoch: int, number: int, trace_id: str, drafts: Sequence[Draft], *, mode: str, state: bytes = b"",
        messages: Sequence[bytes] = (), terminal: Terminal | None = None, park: Park | None = None,
    ) -> Written:  # fmt: skip
        """As RunStore.write."""
        await asyncio.sleep(0)
        if epoch != self.epoch:
            raise Fenced("another owner")
        self.writes += 1
        survives = self.lost_at.get(self.writes)
        if survives is not False:
            self.events += [(draft.type, orjson.loads(draft.data)) for draft in drafts]
            self.messages += messages
            self.state = state or self.state
            if terminal is not None:
                self.events.append((terminal.event, orjson.loads(terminal.data)))
                self.terminals.append(terminal)
        if survives is not None and terminal is None:
            self.epoch += 1
            raise Fenced("lost")
        return Written(1, len(self.events), 0, "")

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Data of the events of these types."""
        return [data for kind, data in self.events if kind in kinds]


class Watchers:
    """A hub that nobody watches through."""

    def watched(self, ref: RunRef) -> bool:
        """Nobody."""
        return False


@dataclass
class World:
    """`reply` answers a model call: a text, or tool calls. The tools are `look`, which changes nothing, and `mail`, which does.

    `usage` gives input tokens, output tokens and micro-USD of a step by its number; `text` is what the user says.
    """

    reply: Callable[[ModelCall], Reply]
    agent: AgentDefinition
    limits: Limits = field(default_factory=Limits)
    journal: Journal = field(default_factory=Journal)
    usage: Callable[[int], tuple[int, int, int]] = lambda step: (10, 2, 7)
    tool: Callable[[str, Mapping[str, Any]], ToolOutcome] = lambda name, arguments: ToolOutcome("done", b"{}")
    asked: list[ModelCall] = field(default_factory=list)
    billed: int = 0
    sent: list[str] = field(default_factory=list)
    executed: Counter = field(default_factory=Counter)
    running: dict[str, str] = field(default_factory=dict)
    most_running: int = 0
    faults: list[str] = field(default_factory=list)
    known: dict[str, ToolOutcome] = field(default_factory=dict)
    owners: int = 0
    unknown: Sequence[str] = ()
    parked: list[int] = field(default_factory=list)
    leaving: Callable[[], bool] = lambda: False
    inbox: list[Command] = field(default_factory=list)
    at_work: Turn | None = None
    text: str = "go"
    guardrails: Guardrails = field(default_factory=AllowAll)
    # What more the run was asked, as of RunSpec; what it was given of the run before; and who keeps its images.
    asked_for: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    blobs: Keeper | None = None

    # --- the model ---

    async def stream(self, call: ModelCall) -> AsyncGenerator[TextDelta | ModelFinished]:
        """As ports.Models.stream."""
        self.asked.append(call)
        await asyncio.sleep(0)
        step = int(call.key.split("/")[1])
        input_tokens, output_tokens, cost = self.usage(step)
        self.billed += cost
        reply = self.reply(call)
        await asyncio.sleep(0)
        if isinstance(reply, str):
            yield TextDelta(reply)
            message = Message("assistant", reply)
        else:
            calls = [ToolRequest(f"s{step}c{i}", name, orjson.dumps(arguments)) for i, (name, arguments) in enumerate(reply)]
            message = Message("assistant", "", tuple(calls))
        used = {"input_tokens": input_tokens, "output_tokens": output_tokens, "cost_microusd": cost}
        yield ModelFinished(
            message, "tool_calls" if message.tool_calls else "stop", {**used, "cached_input_tokens": 0, "reasoning_tokens": 0}
        )

    async def spent(self, run_id: str) -> tuple[int, int]:
        """As ports.Models.spent: each call costs what it says, also where nobody gets its answer."""
        await asyncio.sleep(0)
        return self.billed, 0

    # --- the tools ---

    async def definitions(self, names: Sequence[str]) -> list[ToolDefinition]:
        """As ports.Tools.definitions."""
        there = [name for name in names if name not in self.unknown]
        return [ToolDefinition(name, "1", name, b"{}", repeatable=name == "look") for name in there]

    async def missing(self, names: Sequence[str]) -> list[str]:
        """As ports.Tools.missing."""
        return [name for name in names if name in self.unknown]

    async def execute(
        self, name: str, version: str, arguments: bytes, key: str, run_id: str, thread_id: str, approval: str = ""
    ) -> AsyncGenerator[ToolOutcome]:
        """As ports.Tools.execute. A call that is cut off has an unknown outcome."""
        announced = self.journal.of("tool_call_started")
        if self.agent.strategy == "workflow":
            # Its calls are numbered together with those of other steps.
            known = (name, orjson.loads(arguments)) in [(data["tool"], data["arguments"]) for data in announced]
        else:
            known = key in [data["idempotency_key"] for data in announced]
        if not known:
            self.faults.append(f"{key} was sent before its start was written")
        if self.running and (name == "mail" or "mail" in self.running.values()):
            self.faults.append(f"{key} ran beside {self.running}")
        self.executed[key] += 1
        self.sent.append(key)
        self.running[key] = name
        self.most_running = max(self.most_running, len(self.running))
        self.known[key] = ToolOutcome("unknown")
        try:
            for _ in range(1 + len(key) % 3):
                await asyncio.sleep(0)
            self.known[key] = self.tool(name, orjson.loads(arguments))
        finally:
            del self.running[key]
        yield self.known[key]

    async def cancel(self, key: str, *, for_good: bool) -> ToolOutcome | None:
        """As ports.Tools.cancel."""
        await asyncio.sleep(0)
        return self.known.get(key) or (ToolOutcome("failed", code="transport.cancelled") if for_good else None)

    async def call_of(self, key: str) -> ToolOutcome | None:
        """As ports.Tools.call_of."""
        await asyncio.sleep(0)
        return self.known.get(key)

    # --- callers ---

    def post(self, kind: str, **data: Any) -> int:
        """Sends the run a command, of which its owner hears when it waits for something the next time; answers its number."""
        self.inbox.append(Command(len(self.inbox) + 1, kind, 0, data))
        if self.at_work is not None:
            asyncio.get_running_loop().call_soon(self.at_work.hear, self.inbox[-1:])
        return len(self.inbox)

    # --- owners ---

    def run(self) -> dict[str, Any]:
        """Has one owner after the other work until the run has ended; answers the data of its end."""
        asyncio.run(self._owners())
        assert len(self.journal.terminals) == 1, f"the run ended {len(self.journal.terminals)} times"
        return orjson.loads(self.journal.terminals[0].result)

    async def _owners(self) -> None:
        while not self.journal.terminals:
            self.owners += 1
            assert self.owners < MOST_OWNERS, "the run never ends"
            await asyncio.create_task(self._owner())

    async def _owner(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        working = True

        def lost() -> None:
            # As a driver: who only writes the end any more finds out by that.
            if working:
                task.cancel()

        turn = self.turn(lost)
        try:
            terminal = await run_turn(turn, self.leaving)
            working = False
            if terminal is None:
                await turn.writer.release(turn.snapshot())
            else:
                await turn.writer.finish(terminal)
        except RunParked as parked:
            await self._park(turn, parked)
        except (Fenced, asyncio.CancelledError):
            task.uncancel()
        await turn.writer.settled()

    async def _park(self, turn: Turn, parked: RunParked) -> None:
        """Lets go of the run; somebody takes it up again when its time has come, or at once where it waits for a command."""
        self.parked.append(parked.until_ms)
        with contextlib.suppress(Fenced):
            await turn.writer.park(turn.snapshot(parked=True), turn.unstored(), Park(parked.until_ms, turn.state.inbox))
        await asyncio.sleep(max(0.0, parked.until_ms / 1000 - time.time()))

    def turn(self, on_lost: Callable[[], Any] = lambda: None) -> Turn:
        """What the next owner takes up; `on_lost` as of RunWriter."""
        journal = self.journal
        journal.epoch += 1
        said = self.asked_for.get("input") or [{"role": "user", "text": self.text}]
        more = {name: value for name, value in self.asked_for.items() if name != "input"}
        spec = RunSpec("t", self.agent.name, "1", "d", said, self.limits, {}, **more)
        state = TurnState.decode(orjson.loads(journal.state) if journal.state else {})
        store: Any = journal
        hub: Any = Watchers()
        world: Any = self
        writer = RunWriter(store, hub, REF, journal.epoch, self.owners, trace_id="", batch_s=0.01, patience_s=1.0, on_lost=on_lost)
        messages = [Message.decode(raw) for raw in journal.messages]
        self.at_work = turn = Turn(
            REF,
            spec,
            self.agent,
            state,
            messages,
            writer,
            Services(world, world, world, guardrails=self.guardrails, blobs=self.blobs),
            PRINCIPAL,
            lambda: "token",
            carried=self.carried,
        )
        turn.hear([command for command in self.inbox if command.number > state.inbox])
        return turn


def agent(**fields: Any) -> AgentDefinition:
    """An agent with both tools."""
    return AgentDefinition(name="a", version="1", description="", prompt="p", model="m", **{"tools": ("look", "mail"), **fields})


def notes(call: ModelCall) -> str:
    """What the model is told beside its prompt."""
    return "\n".join(message.text for message in call.messages[1:] if message.role == "system")


def steps_before(call: ModelCall) -> int:
    """Steps with tools before this call."""
    return sum(bool(message.tool_calls) for message in call.messages)
