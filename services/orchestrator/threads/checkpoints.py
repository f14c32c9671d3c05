"""Points of a thread that one can go back to: ends of steps and of runs, and events of the thread itself."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from services.common.errors import Conflict, InvalidInput, NotFound
from services.orchestrator.hub import PAGE
from services.orchestrator.records import ID_PATTERN, TERMINAL_EVENTS, Event, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.turn.client_tools import PART as CLIENT_TOOLS

OF_THREAD = frozenset({"thread_forked", "thread_rolled_back"})
BOUNDARIES = TERMINAL_EVENTS | OF_THREAD | {"step_completed"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A checkpoint as a caller names it: by number, by run and step (0: its end), the beginning, or none of these: the last one."""

    seq: int = 0
    run_id: str = ""
    step: int = 0
    beginning: bool = False

    def problem(self) -> str:
        """What is wrong with it; empty where nothing is."""
        if self.seq < 0 or self.step < 0:
            return "seq and step must not be negative"
        if (self.seq > 0) + bool(self.run_id) + self.beginning > 1:
            return "name it by seq, by run_id or as the beginning"
        if self.step and not self.run_id:
            return "a step needs its run_id"
        if self.run_id and not ID_PATTERN.fullmatch(self.run_id):
            return "run_id must be 1 to 128 characters out of A-Z a-z 0-9 . _ : -"
        return ""


class Position(NamedTuple):
    """The last event of what is kept, and the run that it cuts off after which of its steps ('' and 0: none)."""

    seq: int = 0
    run_id: str = ""
    step: int = 0


async def log_of(store: RunStore, ref: RunRef, after_seq: int, until_seq: int) -> AsyncGenerator[list[Event]]:
    """The thread's events after `after_seq` up to `until_seq`, page by page. Raises Gone where they are no longer kept."""
    while after_seq < until_seq:
        _, _, _, events = await store.read(ref, after_seq, PAGE, False)
        events = [event for event in events if event.seq <= until_seq]
        if not events:
            return
        yield events
        after_seq = events[-1].seq


async def resolve(store: RunStore, ref: RunRef, last_seq: int, asked: Asked) -> Position:
    """Where a checkpoint lies.

    Raises InvalidInput (CHECKPOINT_INVALID, SEQ_FROM_THE_FUTURE, SEQ_INSIDE_STEP), NotFound (RUN_NOT_FOUND, STEP_NOT_FOUND), Conflict
    (RUN_NOT_ENDED), Gone (RESUME_GAP).
    """
    if problem := asked.problem():
        raise InvalidInput.field("checkpoint", problem)
    if asked.beginning:
        return Position()
    if asked.run_id:
        return await _of_run(store, ref._replace(run_id=asked.run_id), last_seq, asked.step)
    if asked.seq:
        return await _at(store, ref, last_seq, asked.seq)
    return await _last(store, ref, last_seq)


async def _at(store: RunStore, ref: RunRef, last_seq: int, seq: int) -> Position:
    if seq > last_seq:
        raise InvalidInput("seq lies beyond the last event", reason="SEQ_FROM_THE_FUTURE", metadata={"last_seq": str(last_seq)})
    _, _, _, events = await store.read(ref, seq - 1, 2, False)
    if not events or events[0].seq != seq or events[0].type not in BOUNDARIES:
        raise InvalidInput("seq is not the end of a step or of a run", reason="SEQ_INSIDE_STEP", metadata={"seq": str(seq)})
    return await _settled(store, ref, events[0], events[1] if len(events) > 1 else None)


async def _of_run(store: RunStore, ref: RunRef, last_seq: int, step: int) -> Position:
    record = await store.run(ref)
    if record is None:
        raise NotFound("the thread has no such run", reason="RUN_NOT_FOUND")
    if not step:
        if not record.terminal_seq:
            raise Conflict("the run has not ended", reason="RUN_NOT_ENDED")
        return Position(record.terminal_seq)
    found: Event | None = None
    async with aclosing(log_of(store, ref, record.first_seq - 1, record.terminal_seq or last_seq)) as pages:
        async for page in pages:
            for event in page:
                if found is not None:
                    return await _settled(store, ref, found, event)
                if event.run_id == ref.run_id and event.type == "step_completed" and orjson.loads(event.data)["step"] == step:
                    found = event
    if found is None:
        raise NotFound("the run has no such step, or it has not ended", reason="STEP_NOT_FOUND", metadata={"step": str(step)})
    return await _settled(store, ref, found, None)


async def _last(store: RunStore, ref: RunRef, last_seq: int) -> Position:
    # From the newest run on, then from the one before: numbers may skip, so that counting back finds nothing.
    before, until = 0, last_seq
    while until > 0:
        members = await store.list_members("thread", ref.tenant, "", before, 1, ref.thread_id)
        start = members[0][1] - 1 if members else 0
        found: Event | None = None
        following: Event | None = None
        async with aclosing(log_of(store, ref, start, until)) as pages:
            async for page in pages:
                for event in page:
                    if event.type in BOUNDARIES:
                        found, following = event, None
                    elif following is None:
                        following = event
        if found is not None:
            return await _settled(store, ref, found, following)
        before, until = start + 1, start
    return Position()


async def _settled(store: RunStore, ref: RunRef, event: Event, following: Event | None) -> Position:
    """The last step of a run that answered, or that asks its client, ends with the run: nothing but that comes behind it."""
    if event.type != "step_completed":
        return Position(event.seq)
    if following is not None and following.run_id == event.run_id:
        if following.type == "run_finished":
            return Position(following.seq)
        if following.type == "interrupt_raised" and orjson.loads(following.data)["kind"] == CLIENT_TOOLS:
            record = await store.run(ref._replace(run_id=event.run_id))
            if record is not None and record.terminal_seq:
                return Position(record.terminal_seq)
    return Position(event.seq, event.run_id, orjson.loads(event.data)["step"])
