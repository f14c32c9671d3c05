"""The one way in which a run's owner writes: buffered, fenced, one write at a time, each exactly once.

Text is flushed at once when it is the first, then every few hundredths of a second, with what was emitted before it; everything else
waits for the next commit, as what an answer led to must not be there without its state. A store that is away is waited for; an epoch
that is old ends the run here.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import structlog

from services.common.errors import Overloaded
from services.orchestrator.agent_status import THINKING, WRITING, AgentStatus
from services.orchestrator.hub import Hub
from services.orchestrator.records import Draft, Event, Fenced, Park, RunRef, Terminal, Written
from services.orchestrator.run_store import RunStore

RETRY_FIRST_S = 0.05
RETRY_MOST_S = 0.5
# The share of a wait that is always waited for.
RETRY_SPREAD = 0.5
log = structlog.get_logger("bulkhead.writer")


class RunWriter:
    """Writes as the owner of `ref` in `epoch`. After Fenced nothing is written any more."""

    def __init__(
        self, store: RunStore, hub: Hub, ref: RunRef, epoch: int, attempt: int, *, trace_id: str, batch_s: float, patience_s: float,
        on_lost: Callable[[], None], on_cancel: Callable[[], None] = lambda: None, on_progress: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`on_lost` is called once, when a write finds that the run is no longer ours or the store was away for `patience_s`. `on_cancel`
        is called when a write finds that the end of the run was asked for, before whoever waits for the write goes on: what it
        announces is not begun then. `on_progress` is called when a checkpoint is durable."""
        self._store, self._hub, self._ref = store, hub, ref
        self._epoch, self._attempt, self._trace_id = epoch, attempt, trace_id
        self._batch_s, self._patience_s = batch_s, patience_s
        self.epoch, self.trace_id = epoch, trace_id
        self._on_lost, self._on_cancel, self._on_progress = on_lost, on_cancel, on_progress
        self._number = 0
        self._drafts: list[Draft] = []
        # So many of the drafts may be written before the next state; text always.
        self._early = 0
        self._text: list[str] = []
        self._text_of = ""
        self.status = AgentStatus()
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._tasks: set[asyncio.Task] = set()
        # `_flushing_next`: the timer goes off with the next tick.
        self._flushed_text = self._flushing_next = False
        # Writes with a state that have not had their turn.
        self._waiting = 0
        self.provisional_from = 0
        self.lost = False
        self.ended: Written | None = None

    def emit(self, kind: str, data: Mapping[str, Any]) -> None:
        """Puts an event into the next write."""
        self._seal()
        if (status := self.status.before(kind, data)) is not None:
            self._drafts.append(status)
        self._drafts.append(Draft(kind, orjson.dumps(data)))

    def tell(self, status: str, detail: str = "") -> None:
        """Puts what the agent does from now on into the next write, as of AgentStatus.be, unless it was told last."""
        if (told := self.status.be(status, detail)) is not None:
            self._seal()
            self._drafts.append(told)

    def tell_soon(self, status: str) -> None:
        """As `tell`, written within the batch time: before what was emitted already, and still waits for its state. No status may be
        among that."""
        if (told := self.status.be(status)) is not None:
            self._seal()
            self._drafts.insert(self._early, told)
            self._early += 1
            self._flush_in_time()

    def delta(self, message_id: str, text: str) -> None:
        """Text of an answer in the making."""
        self.tell(WRITING)
        if self._text_of != message_id:
            self._seal()
            self._text_of, self._flushed_text = message_id, False
        self._text.append(text)
        loop = asyncio.get_running_loop()
        if not self._flushed_text and not self._flushing_next:
            # The first text a user sees is not held back; what comes within the same tick goes with it.
            if self._timer is not None:
                self._timer.cancel()
            self._flushing_next, self._timer = True, loop.call_soon(self._flush_now)
        else:
            self._flush_in_time()

    def flush_soon(self) -> None:
        """Writes what is buffered by now within the batch time."""
        self._mark_early()
        self._flush_in_time()

    def _flush_in_time(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._batch_s, self._flush_now)

    def _seal(self) -> None:
        """The text so far becomes one event."""
        if self._text:
            data = {"text": "".join(self._text), "message_id": self._text_of}
            self._drafts.append(Draft("message_delta", orjson.dumps(data), provisional=True))
            self._text.clear()
            self._early = len(self._drafts)

    def _mark_early(self) -> None:
        # Text that is not sealed yet becomes the draft behind the others.
        self._early = len(self._drafts) + bool(self._text)

    def _flush_now(self) -> None:
        self._timer = None
        self._flushed_text, self._flushing_next = True, False
        if (self._drafts or self._text) and not self.lost and self.ended is None:
            self._start("e")

    def _taken(self, *, early: bool = False) -> list[Draft]:
        """What is buffered, or of it what may be written `early`; it is buffered no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._flushing_next = None, False
        self._seal()
        end = self._early if early else len(self._drafts)
        drafts, self._drafts, self._early = self._drafts[:end], self._drafts[end:], 0
        return drafts

    def _start(self, mode: str, **parts: Any) -> asyncio.Task:
        if mode != "e":
            # A state and the events that led to it are one; what is emitted while this waits its turn belongs to a later state.
            parts["drafts"] = self._taken()
            self._waiting += 1
        task = asyncio.get_running_loop().create_task(self._write(mode, **parts))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, (Fenced, Overloaded)):
            log.error("write_failed", run_id=self._ref.run_id, exc_info=error)
            self._lose()

    async def flush(self) -> None:
        """Writes what is buffered by now. Raises Fenced."""
        self._mark_early()
        await asyncio.shield(self._start("e"))

    async def checkpoint(self, state: bytes, messages: Sequence[bytes] = ()) -> None:
        """Writes what is buffered, the state and further messages in one step; what was provisional is no more. Raises Fenced."""
        await asyncio.shield(self._start("c", state=state, messages=messages))

    async def supersede(self) -> None:
        """Takes back the text since the last checkpoint. Raises Fenced."""
        async with self._lock:
            self._text.clear()
            self._early = sum(not d.provisional for d in self._drafts[: self._early])
            self._drafts = [d for d in self._drafts if not d.provisional]
        self.tell(THINKING)
        if self.provisional_from:
            self.emit("attempt_superseded", {"from_seq": self.provisional_from})
            await asyncio.shield(self._start("s"))

    async def release(self, state: bytes) -> None:
        """Hands the run back, unfinished. Raises Fenced."""
        await asyncio.shield(self._start("r", state=state))

    async def park(self, state: bytes, messages: Sequence[bytes], park: Park) -> Written:
        """Lets go of the run until somebody wakes it; where a command came meanwhile, it is queued and named as the next run. Raises
        Fenced."""
        return await asyncio.shield(self._start("p", state=state, messages=messages, park=park))

    async def finish(self, terminal: Terminal, state: bytes = b"") -> Written:
        """The end of the run, with what is buffered before it, and its last state where somebody wants it. Raises Fenced."""
        return await asyncio.shield(self._start("f", terminal=terminal, state=state))

    async def settled(self) -> None:
        """Waits for the writes under way, without raising what they raise."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _write(
        self, mode: str, *, drafts: list[Draft] | None = None, state: bytes = b"", messages: Sequence[bytes] = (),
        terminal: Terminal | None = None, park: Park | None = None,
    ) -> Written:  # fmt: skip
        async with self._lock:
            if drafts is not None:
                self._waiting -= 1
            if self.ended is not None:
                return self.ended
            if self.lost:
                raise Fenced("the run is no longer ours")
            if drafts is None:
                # What this was meant to write may have gone to a write behind it, and what came since must not overtake that.
                drafts = [] if self._waiting else self._taken(early=True)
                if not drafts:
                    return Written(0, 0, 0, "")
            self._number += 1
            parts: dict[str, Any] = {"park": park} if park is not None else {}
            written = await self._send(self._number, drafts, mode=mode, state=state, messages=messages, terminal=terminal, **parts)
            self._account(mode, drafts, written)
            if mode == "c":
                self._on_progress()
            if written.cancel:
                self._on_cancel()
            if terminal is not None:
                drafts = [*drafts, Draft(terminal.event, terminal.data)]
                self.ended = written
            if drafts and self._hub.watched(self._ref):
                if written.last_seq - written.first_seq + 1 == len(drafts):
                    self._hub.publish(self._ref, self._events(drafts, written))
                else:
                    # The store put something of its own between them.
                    self._hub.noticed(self._ref, written.last_seq)
            return written

    async def _send(self, number: int, drafts: Sequence[Draft], **parts: Any) -> Written:
        give_up, wait_s = time.monotonic() + self._patience_s, RETRY_FIRST_S
        while True:
            try:
                return await self._store.write(self._ref, self._epoch, number, self._trace_id, drafts, **parts)
            except Fenced:
                self._lose()
                raise
            except Overloaded:
                # Whether it was written is not known; the same number makes the same write again harmless.
                if time.monotonic() > give_up:
                    self._lose()
                    raise
            # All runs of all processes wait for the same store. They spread downwards alone: once it is back, a write is through before
            # a lease ends, and nobody sleeps past its patience.
            left_s = max(0.0, give_up - time.monotonic())
            await asyncio.sleep(min(left_s, wait_s * random.uniform(RETRY_SPREAD, 1.0)))  # noqa: S311
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._on_lost()

    def _account(self, mode: str, drafts: Sequence[Draft], written: Written) -> None:
        if mode in ("c", "s", "f", "p"):
            self.provisional_from = 0
        elif not self.provisional_from:
            index = next((i for i, d in enumerate(drafts) if d.provisional), None)
            if index is not None:
                self.provisional_from = written.first_seq + index

    def _events(self, drafts: Sequence[Draft], written: Written) -> list[Event]:
        first, at, ref = written.first_seq, written.at_ms, self._ref
        return [
            Event(first + i, at, ref.thread_id, ref.run_id, self._attempt, d.type, d.data, d.provisional, self._trace_id)
            for i, d in enumerate(drafts)
        ]
