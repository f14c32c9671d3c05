"""Two processes do anything in any order to two runs of one thread, and are watched at each step: A1 to A5, A9 and A10.

    played = Interleaving(backend)
    await played.play(actions)        # raises Broken

A machine of its own and no hypothesis state machine: hypothesis draws the list of actions, so that a failure shrinks to a short one.
"""

import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import orjson

from services.common.errors import Overloaded
from services.orchestrator.records import TERMINAL_EVENTS, Draft, Event, Fenced, Park, RunRecord, RunRef, Terminal, Written
from services.orchestrator.run_store import RunStore
from services.orchestrator.testing.runs import CANCELLED, accept, done, log_of
from services.orchestrator.testing.stores import Backend

# Mostly one run and often the same action: what goes wrong, goes wrong between few. What ends a run is rarer, so that it has a life.
_OFTEN = {"claim": 4, "delta": 4, "checkpoint": 2, "expire": 4, "again": 2}
NAMES = [
    *(name for name, times in _OFTEN.items() for _ in range(times)),
    "back",
    "finish",
    "fail",
    "release",
    "cancel",
    "accept",
    "park",
    "post",
    "post",
]
LEASE_S = 10
# A clock that is set right while leases run; no step back makes one end early.
BACK_S = 3
# So many lost workers that no run is given up, unless `budget` says less.
CRASHES = 1000
# What runs are given up for: owners that are lost, between checkpoints and claims by processes that have a suspect already.
LOSSES = [*["claim"] * 5, *["wary"] * 3, *["expire"] * 5, "back", "delta", "checkpoint", "release", "park", "post", "cancel", "accept"]
Action = tuple[str, int, int]


class Broken(AssertionError):
    """A promise that was broken; the text begins with its name."""


def must(kept: object, promise: str) -> None:
    """Raises Broken unless `kept`."""
    if not kept:
        raise Broken(promise)


class Process:
    """One process: what it believes to own, right or wrong."""

    def __init__(self, store: RunStore, meanwhile: Callable[[], Awaitable[object]]) -> None:
        """`meanwhile` lets other things happen while this process waits to try again."""
        self.store, self._meanwhile = store, meanwhile
        self.epochs: dict[RunRef, int] = {}
        self.numbers: dict[RunRef, int] = {}
        self.last: dict[RunRef, tuple[int, dict[str, Any], Written]] = {}

    async def write(self, ref: RunRef, parts: dict[str, Any]) -> None:
        """The next write of this process as an owner. Raises Fenced."""
        self.numbers[ref] += 1
        self.last.pop(ref, None)
        epoch, number = self.epochs[ref], self.numbers[ref]
        try:
            answer = await self.store.write(ref, epoch, number, "", **parts)
        except Overloaded:
            # Nobody knows whether it was written; a writer tries again, and others do not wait for it.
            await self._meanwhile()
            try:
                answer = await self.store.write(ref, epoch, number, "", **parts)
            except Fenced:
                return
        self.last[ref] = (number, parts, answer)


class Interleaving:
    """One thread and all that may happen to it."""

    def __init__(self, backend: Backend, budget: int = CRASHES) -> None:
        """`budget`: owners that a run may lose in a row."""
        self.budget = budget
        thread_id = uuid.uuid4().hex
        self.refs = [RunRef("acme", thread_id, uuid.uuid4().hex) for _ in range(2)]
        self.processes = [Process(backend.process(name), self._meanwhile) for name in ("one", "two")]
        self.move(backend)
        self.cancelled: set[RunRef] = set()
        self.accepted: set[RunRef] = set()
        self.lost: set[RunRef] = set()
        self.lost_in_a_row: dict[RunRef, int] = {}
        self.posted: dict[RunRef, int] = {}
        self.absorbed: dict[RunRef, int] = {}
        self.handed_out: set[tuple[RunRef, int]] = set()
        self.checkpoints: dict[RunRef, tuple[dict[str, Any], list[bytes]]] = {}
        self.void_from: dict[RunRef, int] = {}
        self.seen: list[Event] = []
        self._left = iter(())

    def move(self, backend: Backend) -> None:
        """Goes on over another way to the same store; the processes keep what they believe."""
        self.backend, self.store = backend, backend.process("watcher")
        for name, process in zip(("one", "two"), self.processes, strict=True):
            process.store = backend.process(name)

    async def play(self, actions: Iterable[Action], *, watched: bool = True) -> None:
        """Does all of it. `watched`: the promises are looked at after each action and not only after the last. Raises Broken."""
        self._left = iter(actions)
        await self._accept(self.refs[0])
        while await self.step():
            if watched:
                await self.check()
        await self.check()

    async def step(self) -> bool:
        """The next action; False when there is none."""
        action = next(self._left, None)
        if action is not None:
            await self._do(*action)
        return action is not None

    async def _meanwhile(self) -> None:
        """While one waits to try again, others get far."""
        for _ in range(4):
            await self.step()

    async def _do(self, name: str, who: int, which: int) -> None:
        process, ref = self.processes[who], self.refs[which]
        if name == "accept":
            await self._accept(ref)
        elif name == "expire":
            await self.backend.advance(LEASE_S + 1)
            self.lost.update([ref for ref in self.refs if (record := await self.store.run(ref)) and record.status == "running"])
        elif name == "back":
            await self.backend.advance(-BACK_S)
        elif name == "cancel":
            await process.store.request_cancel("acme", "ana", ref.run_id)
            if ref in self.accepted:
                await process.store.cancel(ref, "", CANCELLED, "")
            self.cancelled.add(ref)
        elif name == "post":
            await self._post(process, ref)
        elif name in ("claim", "wary"):
            await self._claim(process, ref, suspect=name == "claim")
        elif name == "again":
            await self._again(process, ref)
        elif ref in process.epochs:
            await self._write(process, ref, name)

    async def _post(self, process: Process, ref: RunRef) -> None:
        before = await self.store.run(ref)
        posted = await process.store.post(ref, "steer", b"{}", events=[Draft("warning", b"{}")])
        must((posted.verdict == "posted") == (before is not None and not before.ended), "A10: what is asked of a living run is kept")
        if posted.verdict == "posted":
            self.posted[ref] = self.posted.get(ref, 0) + 1
            must(len(await process.store.commands(ref, 0)) == self.posted[ref], "A10: a command is kept")
        if posted.woken:
            await process.store.enter(ref)

    async def _accept(self, ref: RunRef) -> None:
        if ref not in self.accepted:
            must(await accept(self.store, ref) == "new", "A1: a run is accepted")
            self.accepted.add(ref)

    async def _claim(self, process: Process, ref: RunRef, *, suspect: bool) -> None:
        before = await self.store.run(ref)
        claim = await process.store.claim(ref, LEASE_S, self.budget, suspect=suspect)
        if before is None or claim.verdict not in ("claimed", "failed", "suspect"):
            return
        lost = self.lost_in_a_row.get(ref, 0) + (before.status == "running")
        # Whoever takes a cancelled run only ends it, and as many may be lost at that.
        most = self.budget * (2 if ref in self.cancelled else 1)
        must((claim.verdict == "failed") == (lost >= most), "budget: a run is given up when its last owner is lost, and not before")
        last_one = 0 < lost == self.budget - 1 and ref not in self.cancelled
        must((claim.verdict == "suspect") == (last_one and not suspect), "budget: a suspect is left to who has none, and no other run is")
        if claim.verdict == "suspect":
            must(await self.store.run(ref) == before, "budget: a suspect that is left is left as it is")
            return
        self.lost_in_a_row[ref] = lost
        if claim.verdict == "failed":
            ended = await self.store.run(ref)
            asked = "cancelled" if ref in self.cancelled else "failed"
            must(ended is not None and ended.status == asked, "A10: a run that was to end does so also where its owners are lost")
        if claim.verdict != "claimed" or claim.record is None:
            return
        must(before.status == "queued" or ref in self.lost, "A4: a run is not taken from its living owner")
        must(claim.record.crashes == lost or self.budget == CRASHES, "budget: losses are counted from the last checkpoint on")
        self.lost.discard(ref)
        epoch = claim.record.epoch
        must((ref, epoch) not in self.handed_out, "A4: an epoch is handed out once")
        self.handed_out.add((ref, epoch))
        process.epochs[ref], process.numbers[ref] = epoch, 0
        process.last.pop(ref, None)
        state, messages = self.checkpoints.get(ref, ({}, []))
        must(
            claim.record.state == state and list(claim.messages) == messages, "A9: the next owner has the last checkpoint and nothing else"
        )
        must(ref not in self.cancelled or claim.record.cancel_requested, "A10: asked once, the next owner knows of it")
        if ref in self.void_from and ref not in self.cancelled:
            told = claim.written.last_seq if claim.written else 0
            (event,) = (await self.store.read(ref, told - 1, 1, False))[3] if told else (None,)
            void = {"from_seq": self.void_from.pop(ref)}
            must(event is not None and orjson.loads(event.data) == void, "A5: text of a lost attempt is taken back")

    async def _again(self, process: Process, ref: RunRef) -> None:
        if ref not in process.last or not self._owns(process, ref, await self.store.run(ref), ended=True):
            return
        number, parts, answer = process.last[ref]
        try:
            same = await process.store.write(ref, process.epochs[ref], number, "", **parts)
        except Fenced:
            same = None
        must(same == answer, "A4: a write that is sent again is one write")

    def _owns(self, process: Process, ref: RunRef, record: RunRecord | None, *, ended: bool = False) -> bool:
        return record is not None and process.epochs.get(ref) == record.epoch and (ended or record.status == "running")

    async def _write(self, process: Process, ref: RunRef, name: str) -> None:
        owns = self._owns(process, ref, await self.store.run(ref))
        parts = self._parts(name, ref)
        try:
            await process.write(ref, parts)
        except Fenced:
            must(not owns, "A4: an owner is not refused")
            return
        must(owns, "A4: nobody writes who is no owner")
        if name == "delta" and ref in process.last:
            self.void_from.setdefault(ref, process.last[ref][2].first_seq)
        if name == "park":
            self.absorbed[ref] = parts["park"].absorbed
        if name in ("checkpoint", "park"):
            self.lost_in_a_row.pop(ref, None)
            self.void_from.pop(ref, None)
            _, messages = self.checkpoints.get(ref, ({}, []))
            self.checkpoints[ref] = (orjson.loads(parts["state"]), [*messages, *parts["messages"]])

    def _parts(self, name: str, ref: RunRef) -> dict[str, Any]:
        state = orjson.dumps({"usage": {"steps": len(self.seen)}})
        return {
            "delta": {"events": [Draft("message_delta", b"{}", True)] * 2},
            "checkpoint": {"events": [Draft("warning", b"{}")], "mode": "c", "state": state, "messages": [b"m"]},
            "finish": {"events": [Draft("usage", b"{}")], "mode": "f", "terminal": done()},
            "fail": {"events": [], "mode": "f", "terminal": Terminal("failed", b"{}", "run_failed", b"{}")},
            "release": {"events": [], "mode": "r"},
            "park": {
                "events": [Draft("warning", b"{}")],
                "mode": "p",
                "state": state,
                "messages": [b"m"],
                "park": Park(0, max(0, self.posted.get(ref, 0) - len(self.seen) % 2)),
            },
        }[name]

    async def check(self) -> None:
        """What the store promises at any time. Raises Broken."""
        events = await log_of(self.store, self.refs[0])
        must([e.seq for e in events] == list(range(1, len(events) + 1)), "A3: numbers are contiguous, from 1")
        must(events[: len(self.seen)] == self.seen, "A5: what was seen stays")
        self.seen = events
        for ref in self.refs:
            record = await self.store.run(ref)
            self._check_run(ref, record, [e for e in events if e.run_id == ref.run_id])
            if record is not None and record.status == "waiting" and record.cancel_requested:
                must((await self.store.inspect(ref))[:2] == ("parked", 0), "A10: a cancel wakes a parked run")

    def _check_run(self, ref: RunRef, record: RunRecord | None, own: Sequence[Event]) -> None:
        must((record is not None) == (ref in self.accepted), "A1: what was accepted is there")
        if record is None:
            return
        must(own[0].type == "run_queued", "A1: the log of a run begins with its acceptance")
        terminal = [e for e in own if e.type in TERMINAL_EVENTS]
        must(len(terminal) == (1 if record.ended else 0), "A2: one terminal event, together with the terminal state")
        if record.ended:
            must(own[-1] is terminal[0] and record.terminal_seq == terminal[0].seq, "A2: the terminal event is the last")
        attempts = [e.attempt for e in own]
        must(attempts == sorted(attempts), "A5: attempts do not mix")
        if record.status == "waiting":
            must(self.absorbed.get(ref, 0) == self.posted.get(ref, 0), "A10: nothing that was asked waits behind a parked run")
        if ref in self.cancelled:
            must(record.cancel_requested or record.ended, "A10: asked once, it stays asked")
