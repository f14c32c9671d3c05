"""The half of the store that runs wait in: slots, wake-ups for claimers, and what the sweeper looks at."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import redis.asyncio as redis

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import ENDED, LIVE, SHARD, lookup_key, ready_keys, thread_keys, waiting_keys
from services.orchestrator.records import UNSCHEDULED, Inspected, Place, RunRecord, RunRef, Schedule

# How long a reservation may stay without a run before the sweeper gives it up; longer than accepting may take.
FORGET_AFTER_MS = 15_000

# When somebody looks at a run that was given a slot.
LATE_LOOK_S = 2.0
# No reference of a run has this form.
LEAVE, LEAVE_KEPT_S = "leave", 10


class QueueStore(StoreBase):
    """Slots, wake-ups and the sweeper's list."""

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0) -> None:
        """As StoreBase."""
        super().__init__(client, instance, replicas)
        self.on_admitted: Callable[[Sequence[RunRef]], None] = _nobody

    def _admitted(self, tenant: str, found: Iterable[Any]) -> None:
        names = [text(name) for name in found]
        if names:
            self.on_admitted([RunRef(tenant, *pair) for pair in zip(names[::2], names[1::2], strict=True)])

    async def wake(self, ref: RunRef, track: str, since_ms: float, look_in_s: float = 1.0, *, schedule: Schedule = UNSCHEDULED) -> None:
        """As RunStore.wake."""
        keys = [LIVE, *ready_keys(track)]
        args = [int(look_in_s * 1000), ref.encode(), _rank(schedule, since_ms), schedule.weight]
        await self._ask(self._library.batched("work_wake_v1", keys, args))

    async def next_waiting(self, track: str) -> RunRef | None:
        """As RunStore.next_waiting."""
        ready, order, _, clock = ready_keys(track)
        reference = await self._ask(self._library.batched("work_next_v1", [ready, order, clock], []))
        return RunRef.decode(text(reference)) if reference else None

    async def next_ready(self, track: str, wait_s: float) -> RunRef | None:
        """As RunStore.next_ready."""
        # Who waits here is served by the push itself, within the time that a message takes.
        answer = await self._ask(self._client.bzpopmin([ready_keys(track)[0], self._leaving], timeout=wait_s))
        return RunRef.decode(text(answer[1])) if answer and text(answer[1]) != LEAVE else None

    async def stop_waiting(self) -> None:
        """As RunStore.stop_waiting."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zadd(self._leaving, {LEAVE: 0})
        pipeline.expire(self._leaving, LEAVE_KEPT_S)
        await self._ask(pipeline.execute())

    @property
    def _leaving(self) -> str:
        """Key of the shard that ends this process's waiting; one connection at a time waits on it."""
        return f"work:{SHARD}:leave:{self._instance}"

    async def depth(self, track: str) -> int:
        """As RunStore.depth."""
        return int(await self._ask(self._client.zcard(ready_keys(track)[0])))

    async def note(self, ref: RunRef, look_in_s: float, *, sooner: bool = False) -> None:
        """As RunStore.note."""
        args = [int(look_in_s * 1000), ref.encode(), *(["ASK"] if sooner else [])]
        await self._ask(self._library.batched("work_note_v1", [LIVE], args))

    async def due(self, most: int, again_in_s: float) -> list[RunRef]:
        """As RunStore.due."""
        found = await self._ask(self._library.call("work_due_v1", [LIVE], [most, int(again_in_s * 1000), 0]))
        return [RunRef.decode(text(reference)) for reference in found]

    async def ahead(self, most: int, within_s: float, share: float = 0.0) -> list[RunRef]:
        """As RunStore.ahead."""
        found = await self._ask(self._library.batched("work_ahead_v1", [LIVE], [most, int(within_s * 1000), repr(share)]))
        return [RunRef.decode(text(reference)) for reference in found]

    async def settle(self, ref: RunRef) -> None:
        """As RunStore.settle."""
        keys = [LIVE, ENDED]
        forget = self._ask(self._library.batched("ended_settle_v1", keys, [ref.encode()]))
        await asyncio.gather(self.release_slot(ref), forget)

    async def release_slot(self, ref: RunRef, parked_in: int = 0) -> None:
        """As RunStore.release_slot."""
        args = [ref.run_id, ref.thread_id, parked_in]
        self._admitted(ref.tenant, await self._ask(self._library.batched("tenant_release_v1", waiting_keys(ref.tenant), args)))

    async def forget(self, ref: RunRef) -> bool:
        """As RunStore.forget."""
        keys = [*waiting_keys(ref.tenant), lookup_key(ref.tenant, ref.run_id)]
        done, *promoted = await self._ask(self._library.call("tenant_forget_v1", keys, [ref.run_id, ref.thread_id, FORGET_AFTER_MS]))
        self._admitted(ref.tenant, promoted)
        if not int(done):
            return False
        # What leads to the run that never came to be goes as that of a run that has ended: its id is free then.
        await self._ask(self._library.batched("ended_settle_v1", [LIVE, ENDED], [ref.encode()]))
        return True

    async def admit(self, ref: RunRef, schedule: Schedule, parked_in: int = 0) -> bool:
        """As RunStore.admit."""
        args = [ref.run_id, ref.thread_id, schedule.priority, schedule.slots, parked_in]
        admitted = self._library.submit("tenant_admit_v1", waiting_keys(ref.tenant), args)
        # What was on its way for long may come when another process has had the run admitted, worked on and settled. Nobody would look
        # at it any more, and its slot would be held for ever.
        looked = self._library.submit("work_note_v1", [LIVE], [int(LATE_LOOK_S * 1000), ref.encode(), "ASK"])
        (got, *others), _ = await self._ask(asyncio.gather(admitted, looked))
        self._admitted(ref.tenant, others)
        return int(got) == 1

    async def enter(self, ref: RunRef) -> str:
        """As RunStore.enter."""
        keys = thread_keys(ref)
        return text(await self._ask(self._library.batched("run_enter_v1", [keys[2], keys[3]], [ref.run_id])))

    async def schedule(self, ref: RunRef) -> tuple[str, int, Schedule]:
        """As RunStore.schedule."""
        track, since_ms, schedule = await self._ask(self._library.batched("run_schedule_v1", [thread_keys(ref)[2]], []))
        return text(track), int(since_ms), Schedule.decode(text(schedule))

    async def place(self, record: RunRecord, tenant: str) -> Place:
        """As RunStore.place."""
        ref = RunRef(tenant, record.spec.thread_id, record.run_id)
        _, queue, _, delayed, pace, _ = waiting_keys(tenant)
        ready = ready_keys(record.track)[:2]
        rank = _rank(record.spec.schedule, record.since_ms)
        of_tenant = self._ask(self._library.batched("tenant_place_v1", [queue, delayed, pace], [ref.run_id, ref.thread_id]))
        of_track = self._ask(self._library.batched("work_place_v1", ready, [ref.encode(), rank]))
        (_, queued, pace_ms), (offered, before), line = await asyncio.gather(of_tenant, of_track, self._line(ref))
        if line.before > 0:
            return Place(line.before + (await self._before_head(line) if line.head_waits else 0))
        if int(queued):
            return Place(int(offered) + line.behind_head + int(queued), int(queued) * int(pace_ms))
        return Place(int(before) + 1)

    async def joining(self, ref: RunRef) -> int:
        """As RunStore.joining."""
        line = await self._line(ref)
        return line.length + int(line.head_waits)

    async def _line(self, ref: RunRef) -> "_Line":
        keys = thread_keys(ref)
        before, length, head, status = await self._ask(self._library.batched("thread_line_v1", [keys[2], keys[3]], [ref.run_id]))
        return _Line(int(before), int(length), ref._replace(run_id=text(head)), text(status) == "queued")

    async def _before_head(self, line: "_Line") -> int:
        """Waiting runs of the tenant up to and including the first of the thread."""
        track, since_ms, schedule = await self.schedule(line.head)
        args = [line.head.encode(), _rank(schedule, since_ms)]
        _, before = await self._ask(self._library.batched("work_place_v1", ready_keys(track)[:2], args))
        return max(0, int(before)) + 1

    async def inspect(self, ref: RunRef) -> Inspected:
        """As RunStore.inspect."""
        keys = thread_keys(ref)
        answer = await self._ask(self._library.batched("run_inspect_v1", [keys[2], keys[3], keys[4]], [ref.run_id]))
        state, left, track, alone, schema, created, head, epoch = answer
        return Inspected(text(state), int(left), text(track), int(alone), int(schema), int(created), text(head), int(epoch))


class _Line(NamedTuple):
    """The runs of a thread that take turns: those `before` a run (-1: it is not one of them), all, and whether the first has not begun."""

    before: int
    length: int
    head: RunRef
    head_waits: bool

    @property
    def behind_head(self) -> int:
        """Runs that nobody has been offered."""
        return max(0, self.length - 1)


def _nobody(_admitted: Sequence[RunRef]) -> None:
    """The sweeper finds them."""


def _rank(schedule: Schedule, since_ms: float) -> str:
    """The order within a tenant, as text that sorts like it."""
    return f"{10 - schedule.priority:02d}/{int(since_ms):013d}"
