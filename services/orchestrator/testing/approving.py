"""A run whose tools need approvals, worked on by owners that can be lost at any write, with people who decide: for properties over many
histories. The store, the driver, the turn and the decisions are the real ones; tools verify what they are given as the executor does."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import orjson
from structlog.testing import capture_logs

from services.common.approval import Approval, canonical, digest
from services.common.errors import Conflict, PermissionDenied
from services.common.identity import Minter, Principal, Verifier
from services.common.limits import TierPolicy
from services.orchestrator.agents import AgentDefinition
from services.orchestrator.approvals import deciding, raising
from services.orchestrator.approvals.deciding import Choice, Deciding
from services.orchestrator.approvals.raising import Raising
from services.orchestrator.approvals.records import Interrupt
from services.orchestrator.driving import Driver, Owned
from services.orchestrator.ports import Checked, ToolDefinition, ToolOutcome
from services.orchestrator.records import Fenced, RunRef, Schedule, Written
from services.orchestrator.testing.runs import CANCELLED, accept
from services.orchestrator.testing.turn_world import World
from services.orchestrator.turn import approvals
from services.orchestrator.turn.state import Services

LEASE_S, CRASHES = 10.0, 10_000
MOST_OWNERS = 60
# What needs an approval, and what is never made again by itself.
GUARDED, ALONE = frozenset({"wipe", "fetch"}), frozenset({"wipe", "mail"})


class Watchers:
    """A hub that nobody watches through."""

    def watched(self, ref: RunRef) -> bool:
        """Nobody."""
        return False

    def noticed(self, ref: RunRef, last_seq: int) -> None:
        """Nobody listens."""


class Losing:
    """A store whose owner is lost at its `lost_at`-th write: before it took place or, with `after`, behind it. 0: never."""

    def __init__(self, store: Any, lost_at: int, after: bool) -> None:
        self._store, self._left, self._after = store, lost_at, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _lose(self, doing: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            doing.close()
            raise Fenced("lost")
        done = await doing
        if self._left == 0:
            raise Fenced("lost")
        return done

    async def write(self, *args: Any, **parts: Any) -> Written:
        """As RunStore.write."""
        return await self._lose(self._store.write(*args, **parts))

    async def raise_interrupts(self, *args: Any) -> Any:
        """As InterruptStore.raise_interrupts."""
        return await self._lose(self._store.raise_interrupts(*args))

    async def settle_interrupt(self, *args: Any, **parts: Any) -> Any:
        """As InterruptStore.settle_interrupt."""
        return await self._lose(self._store.settle_interrupt(*args, **parts))


@dataclass
class Approving(World):
    """One run in `backend` whose model asks for `calls` in one step; `unknown` are keys whose outcome nobody knows at first."""

    backend: Any = None
    minter: Minter | None = None
    verifier: Verifier | None = None
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    unknown: set[str] = field(default_factory=set)
    ref: RunRef = field(default_factory=lambda: RunRef("acme", "t", "r"))
    effects: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[str, list[Approval]] = field(default_factory=lambda: defaultdict(list))
    decided: dict[str, Interrupt] = field(default_factory=dict)
    ended: bool = False
    # Its end was asked for and that acknowledged, before its owner took it.
    to_end: bool = False
    cancelled: bool = False
    owned: Owned | None = None
    # Owners that the run may lose in a row.
    budget: int = CRASHES

    # --- the tools ---

    async def definitions(self, names: Sequence[str]) -> list[ToolDefinition]:
        """As ports.Tools.definitions."""
        return [
            ToolDefinition(name, "1", name, b"{}", repeatable=name not in ALONE, approval="waivable" if name in GUARDED else "")
            for name in names
        ]

    async def check(self, name: str, version: str, arguments: bytes) -> Checked:
        """As ports.Tools.check."""
        await asyncio.sleep(0)
        return Checked(canonical(orjson.loads(arguments)), [], b"{}")

    async def execute(
        self, name: str, version: str, arguments: bytes, key: str, run_id: str, thread_id: str, approval: str = ""
    ) -> AsyncGenerator[ToolOutcome]:
        """As ports.Tools.execute: once a key, and a further time for each time that a person says so."""
        await asyncio.sleep(0)
        if self.to_end:
            self.faults.append(f"A8: {key} was started after an acknowledged cancel")
        stated = None
        if approval:
            stated = Approval.verified(self.verifier, approval)  # type: ignore[arg-type]
            right = Approval("acme", run_id, key, name, version, digest(arguments), stated.approvers, stated.again)
            if stated != right:
                self.faults.append(f"{key} came with an approval of {stated}")
            self.tokens[key].append(stated)
        if name in GUARDED and (stated is None or not stated.approvers):
            self.faults.append(f"{key} came without an approval")
        again = stated.again if stated is not None else 0
        if len(self.effects[key]) <= again:
            self.effects[key].append(arguments)
            lost = key in self.unknown and not again
            self.known[key] = ToolOutcome("unknown") if lost else ToolOutcome("done", b"{}", "1")
        yield self.known[key]

    # --- owners and people ---

    @property
    def store(self) -> Any:
        """The store as one process sees it."""
        return self.backend.process("owner")

    async def begin(self) -> None:
        """Accepts the run."""
        assert await accept(self.store, self.ref) == "new"

    async def own(self, lost_at: int = 0, *, after: bool = False) -> None:
        """Has an owner work on the run until it lets go of it, is lost, or the run waits."""
        owned = await self.take_up(Losing(self.store, lost_at, after), self)
        if owned is None:
            return
        assert owned.task is not None
        with capture_logs() as told:
            left = await owned.task
        # Where a run ends whatever happens, the log alone tells of a defect.
        self.faults += [f"logged: {line}" for line in told if line["log_level"] == "error"]
        if left.status == "lost":
            await self.backend.advance(LEASE_S + 1)
        self.ended = left.written is not None

    async def take_up(self, store: Any, world: Any) -> Owned | None:
        """Begins to work on the run as its next owner, where it may be taken; `store` and `world` are what that owner sees of them."""
        if self.ended:
            return None
        await self.store.unpark(self.ref)
        if (await self.store.inspect(self.ref))[0] == "held" and await self.store.admit(self.ref, Schedule()):
            await self.store.enter(self.ref)
        claim = await self.store.claim(self.ref, LEASE_S, self.budget)
        if claim.verdict != "claimed":
            return None
        interrupts = Raising(store, store, Watchers(), self.minter, lambda tier: TierPolicy())  # type: ignore[arg-type]
        agents = SimpleNamespace(agents=SimpleNamespace(get=lambda name: self.agent, by_digest={"d": self.agent}))
        driver: Any = Driver(
            SimpleNamespace(delta_batch_s=0.001, store_patience_s=1.0, audit_days=0), store, Watchers(), agents,
            Services(world, world, world, interrupts), SimpleNamespace(), self.minter, should_hand_over=self.leaving,
        )  # type: ignore[arg-type]  # fmt: skip
        assert claim.record is not None
        self.to_end = self.cancelled
        self.owned = owned = Owned(self.ref, claim.record)
        owned.task = asyncio.create_task(driver.drive(owned, claim))
        return owned

    async def interrupts(self) -> list[Interrupt]:
        """Those that were raised."""
        return await self.store.interrupts(self.ref)

    async def decide(self, user: str, which: int, choice: Choice) -> str:
        """Has somebody decide one of the interrupts; answers what came of it."""
        raised = await self.interrupts()
        if not raised:
            return "nothing"
        interrupt = raised[which % len(raised)]
        commanding: Any = SimpleNamespace(told=_nothing)
        world: Any = self
        people = Deciding(self.store, self.store, commanding, world, self.minter)  # type: ignore[arg-type]
        try:
            seen = await people.decide(Principal("acme", user), interrupt.interrupt_id, choice)
        except (Conflict, PermissionDenied) as error:
            return error.reason
        if not seen.interrupt.open:
            # Under the key of before it is the same decision, and changes nothing.
            if self.decided.get(interrupt.interrupt_id, seen.interrupt) != seen.interrupt:
                self.faults.append(f"{interrupt.interrupt_id} was decided twice")
            self.decided[interrupt.interrupt_id] = seen.interrupt
        return "done"

    async def cancel_run(self) -> None:
        """Asks for the run's end."""
        await self.store.cancel(self.ref, "", CANCELLED, "")
        self.cancelled = True

    async def finish(self, days: float = 2.0) -> str:
        """Lets owners work, and time pass where the run waits, until it has ended; answers its status."""
        for _ in range(MOST_OWNERS):
            await self.own()
            record = await self.store.run(self.ref)
            if record.ended:
                return record.status
            if record.status == "waiting":
                await self.backend.advance(days * 86_400)
        raise AssertionError(f"the run never ends: {await self.store.run(self.ref)}")

    async def judged(self, status: str) -> list[str]:
        """What is wrong with the history."""
        found = list(self.faults)
        events = (await self.store.read(self.ref, 0, 10_000, False))[3]
        told: dict[str, list[str]] = defaultdict(list)
        for event in events:
            if event.type in ("interrupt_raised", "interrupt_resolved"):
                told[orjson.loads(event.data)["interrupt_id"]].append(event.type)
        raised = {interrupt.interrupt_id: interrupt for interrupt in await self.interrupts()}
        for interrupt_id, interrupt in raised.items():
            expected = ["interrupt_raised", "interrupt_resolved"]
            if told[interrupt_id] != expected:
                found.append(f"{interrupt_id} was told as {told[interrupt_id]}")
            before = self.decided.get(interrupt_id)
            if before is not None and (interrupt.outcome, interrupt.arguments) != (before.outcome, before.arguments):
                found.append(f"{interrupt_id} was answered {before.outcome} and is {interrupt.outcome}")
        for number, (name, _) in enumerate(self.calls):
            key = f"{self.ref.run_id}/1/{number}"
            found += self._judge_call(key, name, raised, status)
        return found

    def _judge_call(self, key: str, name: str, raised: Mapping[str, Interrupt], status: str) -> list[str]:
        found, interrupt = [], raised.get(key)
        retries = sum(i.outcome == "retry" for id_, i in raised.items() if id_.startswith(f"{key}/unknown/"))
        most = 1 + retries if name not in GUARDED or (interrupt is not None and interrupt.outcome == "approved") else 0
        effects = self.effects[key]
        if len(effects) > most:
            found.append(f"{key} ran {len(effects)} times of {most}")
        if interrupt is not None and any(effect != interrupt.arguments.encode() for effect in effects):
            found.append(f"{key} ran with {effects} and not with {interrupt.arguments}")
        if interrupt is not None and interrupt.four_eyes and most:
            by = set(interrupt.approvers())
            if len(by) < 2 or interrupt.user in by:
                found.append(f"{key} was approved by {by}, with four eyes")
        if status == "succeeded" and most and not effects:
            found.append(f"{key} was approved and never ran")
        return found


async def _nothing(*_: Any) -> None:
    """Nobody has to be told."""


def calling(calls: Sequence[tuple[str, Mapping[str, Any]]], agent: AgentDefinition, **fields: Any) -> Approving:
    """The world of a run whose model makes `calls` and then answers."""
    return Approving(lambda call: "done" if any(m.tool_calls for m in call.messages) else list(calls), agent, calls=calls, **fields)


@contextmanager
def on_the_clock_of(backend: Any) -> Iterator[None]:
    """Has what asks and decides look at the store's clock."""
    clock = SimpleNamespace(time=lambda: backend.clock.now_ms / 1000)
    with ExitStack() as stack:
        for module in (approvals, deciding, raising):
            stack.enter_context(mock.patch.object(module, "time", clock))
        yield
