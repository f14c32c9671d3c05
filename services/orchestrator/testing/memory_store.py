"""RunStore in memory, for unit tests: every answer is the one that Valkey gives, and the clock moves only when a test steps it.

The suite in tests/unit/orchestrator/conformance holds both to it, the one against the other.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import orjson

from services.orchestrator.adapters import store as valkey
from services.orchestrator.adapters.store_base import NOTED_MS
from services.orchestrator.adapters.store_queue import FORGET_AFTER_MS, LATE_LOOK_S
from services.orchestrator.adapters.store_reading import TOMBSTONE_KEPT
from services.orchestrator.records import (
    UNSCHEDULED,
    Accepted,
    Claim,
    Command,
    Draft,
    Event,
    Heard,
    Inspected,
    Park,
    Place,
    Posted,
    Reservation,
    RunRecord,
    RunRef,
    RunSpec,
    Schedule,
    Terminal,
    ThreadRecord,
    Written,
)  # fmt: skip
from services.orchestrator.testing.memory_store_approvals import MemoryApprovals
from services.orchestrator.testing.memory_store_queue import NOWHERE, IdempotencyKey, Lookup, rank_of, refs_of

TOMBSTONE_MS = int(TOMBSTONE_KEPT.total_seconds() * 1000)
IDEMPOTENCY_MS = int(valkey.IDEMPOTENCY_KEPT.total_seconds() * 1000)
# Waiting for a wake-up is the one thing that the store's clock does not rule: it is looked for this often, on the loop's clock.
LOOK_AGAIN_S = 0.005


class MemoryStore(MemoryApprovals):
    """One process's way to the store `state`. What shares a hash tag changes in one step; the loop runs between steps, as it does
    between round trips."""

    async def load(self) -> None:
        """As RunStore.load."""

    async def ping(self) -> bool:
        """As RunStore.ping."""
        return True

    # --- accepting ---

    async def reserve(
        self,
        ref: RunRef,
        user: str,
        slots: int,
        key: str,
        print_: str,
        *,
        queued: int = 0,
        delayed: int = 0,
        schedule: Schedule = UNSCHEDULED,
        of_run: bool = False,
    ) -> Reservation:
        """As RunStore.reserve."""
        await asyncio.sleep(0)
        tenant, now = self.state.tenant(ref.tenant), self.state.clock.now_ms
        look_at = now + valkey.LOOK_AFTER_MS
        self.state.live[ref.encode()] = min(look_at, self.state.live.get(ref.encode(), look_at))
        not_after, keyed, member = now + valkey.ACCEPT_WITHIN_MS, bool(key and print_), f"{ref.thread_id}/{ref.run_id}"
        if keyed and (existing := tenant.existing(user, key, print_, slots, not_after, now)) is not None:
            return existing
        known = tenant.lookup(ref.run_id, now)
        if known is not None and known.thread_id:
            return Reservation("taken", ref.run_id, known.thread_id, False, not_after)
        place = tenant.place_for(slots, queued, delayed, schedule, now)
        if place in ("quota", "full", "too_many_delayed"):
            full = (len(tenant.queue), tenant.pace_ms) if place == "full" else (0, 0)
            return Reservation("delayed" if place == "too_many_delayed" else place, "", "", False, not_after, False, *full)
        cancelled = known is not None and known.cancel and known.user == user
        tenant.lookups[ref.run_id] = Lookup(user, ref.thread_id, now, cancelled)
        promoted = []
        if place == "slot":
            tenant.slots[ref.run_id] = now
        elif place == "delayed":
            tenant.delayed.add(member)
        else:
            tenant.line_up(member, schedule, slots, now)
            promoted = tenant.promote(now)
        if keyed:
            tenant.keys[user, key] = IdempotencyKey(print_, ref.run_id, ref.thread_id, cancelled, now + IDEMPOTENCY_MS)
        tenant.counter += 1
        tenant.lists.setdefault(("runs", user), {})[member] = tenant.counter
        tenant.lists.setdefault(("threads", user), {}).setdefault(ref.thread_id, tenant.counter)
        self._admitted(ref.tenant, promoted)
        # A slot is a slot, also where somebody who was lost has left the run in the queue.
        standing = NOWHERE if place == "slot" else tenant.standing(member)
        return Reservation("new", ref.run_id, ref.thread_id, cancelled, not_after, *standing)

    async def accept(
        self,
        ref: RunRef,
        user: str,
        spec: RunSpec,
        track: str,
        reservation: Reservation,
        trace_id: str,
        events: tuple,
        own_for_s: float = 0.0,
        on_busy: str = "",
    ) -> Accepted:
        """As RunStore.accept."""
        steps, owner = await self._steps(ref), self._instance if own_for_s else ""
        accepted = partial(steps.accept, user, spec, track, reservation, trace_id, events, owner, int(own_for_s * 1000))
        if not on_busy:
            return accepted()
        refused = steps.not_asked(spec) if spec.answers else ""
        return steps.accept_busy(on_busy, user, reservation, trace_id, events[1], refused, accepted)

    async def save_definition(self, digest: str, definition: bytes) -> None:
        """As RunStore.save_definition."""
        self.state.definitions.setdefault(digest, definition)

    async def definition(self, digest: str) -> bytes | None:
        """As RunStore.definition."""
        return self.state.definitions.get(digest)

    # --- owning ---

    async def claim(self, ref: RunRef, lease_s: float, crash_budget: int, *, suspect: bool = True) -> Claim:
        """As RunStore.claim."""
        return (await self._steps(ref)).claim(self._instance, int(lease_s * 1000), crash_budget, suspect)

    async def write(
        self,
        ref: RunRef,
        epoch: int,
        number: int,
        trace_id: str,
        events: Sequence[Draft],
        *,
        mode: str = "e",
        state: bytes = b"",
        messages: Sequence[bytes] = (),
        terminal: Terminal | None = None,
        park: Park | None = None,
    ) -> Written:
        """As RunStore.write."""
        events, messages, schema = await self._parted(ref, events, messages)
        steps = await self._steps(ref)
        written = steps.write(epoch, number, trace_id, events, mode, state, messages, terminal, park)
        if schema and (run := steps.found) is not None:
            run.schema_version = max(run.schema_version, schema)
        return written

    async def beat(self, ref: RunRef, epoch: int, lease_s: float) -> Heard:
        """As RunStore.beat."""
        return (await self._steps(ref)).beat(epoch, int(lease_s * 1000))

    # --- asking something of it ---

    async def post(self, ref: RunRef, kind: str, data: bytes, *, key: str = "", trace_id: str = "", events: Sequence[Draft] = ()) -> Posted:
        """As ControlStore.post."""
        await self.note(ref, NOTED_MS / 1000, sooner=True)
        return (await self._steps(ref)).post(kind, data, key, trace_id, events)

    async def commands(self, ref: RunRef, after: int) -> list[Command]:
        """As ControlStore.commands."""
        run = (await self._steps(ref)).found
        return run.commands[after:] if run is not None else []

    async def posted(self, ref: RunRef, key: str) -> int:
        """As ControlStore.posted."""
        run = (await self._steps(ref)).found
        return run.posted.get(key, 0) if run is not None else 0

    async def made_with(self, tenant: str, user: str, key: str) -> bool:
        """As ControlStore.made_with."""
        return (user, key) in self.state.tenant(tenant).keys

    async def at_work(self, ref: RunRef, user: str) -> str:
        """As ControlStore.at_work."""
        return (await self._steps(ref)).at_work(user)

    async def cut_by(self, ref: RunRef) -> str:
        """As ControlStore.cut_by."""
        run = (await self._steps(ref)).found
        return run.cut if run is not None else ""

    async def unpark(self, ref: RunRef) -> bool:
        """As ControlStore.unpark."""
        return (await self._steps(ref)).unpark()

    # --- queue ---

    async def wake(self, ref: RunRef, track: str, since_ms: float, look_in_s: float = 1.0, *, schedule: Schedule = UNSCHEDULED) -> None:
        """As RunStore.wake."""
        await self.note(ref, look_in_s)
        self.state.track(track).wake(ref.encode(), rank_of(schedule, since_ms), schedule.weight)

    async def next_waiting(self, track: str) -> RunRef | None:
        """As RunStore.next_waiting."""
        await asyncio.sleep(0)
        reference = self.state.track(track).following()
        return RunRef.decode(reference) if reference else None

    async def next_ready(self, track: str, wait_s: float) -> RunRef | None:
        """As RunStore.next_ready."""
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        until = loop.time() + (wait_s or float("inf"))
        while (popped := self.state.track(track).pop()) is None:
            if self._leaving or loop.time() >= until:
                self._leaving = False
                return None
            await asyncio.sleep(min(LOOK_AGAIN_S, until - loop.time()))
        return RunRef.decode(popped[0])

    async def stop_waiting(self) -> None:
        """As RunStore.stop_waiting."""
        self._leaving = True

    async def depth(self, track: str) -> int:
        """As RunStore.depth."""
        return len(self.state.track(track).ready)

    async def due(self, most: int, again_in_s: float) -> list[RunRef]:
        """As RunStore.due."""
        await asyncio.sleep(0)
        live, now = self.state.live, self.state.clock.now_ms
        found = sorted((reference for reference, at in live.items() if at <= now), key=lambda reference: (live[reference], reference))[
            :most
        ]
        live.update(dict.fromkeys(found, now + int(again_in_s * 1000)))
        return [RunRef.decode(reference) for reference in found]

    async def ahead(self, most: int, within_s: float, share: float = 0.0) -> list[RunRef]:
        """As RunStore.ahead."""
        await asyncio.sleep(0)
        live, now = self.state.live, self.state.clock.now_ms
        found = sorted((at, reference) for reference, at in live.items() if now < at <= now + int(within_s * 1000))
        first = int(share * len(found)) if len(found) > most else 0
        return [RunRef.decode(reference) for _, reference in (found[first:] + found[:first])[:most]]

    def _admitted(self, tenant: str, members: Sequence[str]) -> None:
        if members:
            self.on_admitted(refs_of(tenant, members))

    async def release_slot(self, ref: RunRef, parked_in: int = 0) -> None:
        """As RunStore.release_slot."""
        await asyncio.sleep(0)
        self._admitted(ref.tenant, self.state.tenant(ref.tenant).release(ref, self.state.clock.now_ms, parked_in))

    async def settle(self, ref: RunRef) -> None:
        """As RunStore.settle."""
        await self.release_slot(ref)
        self.state.live.pop(ref.encode(), None)

    async def forget(self, ref: RunRef) -> bool:
        """As RunStore.forget."""
        await asyncio.sleep(0)
        tenant, now = self.state.tenant(ref.tenant), self.state.clock.now_ms
        known = tenant.lookup(ref.run_id, now)
        reserved = known if known is not None and known.thread_id else None
        if reserved is None or reserved.thread_id == ref.thread_id:
            if reserved is not None and now - reserved.at_ms < FORGET_AFTER_MS:
                return False
            self._admitted(ref.tenant, tenant.release(ref, now))
        self.state.live.pop(ref.encode(), None)
        return True

    async def admit(self, ref: RunRef, schedule: Schedule, parked_in: int = 0) -> bool:
        """As RunStore.admit."""
        await asyncio.sleep(0)
        got, others = self.state.tenant(ref.tenant).admit(ref, schedule, self.state.clock.now_ms, parked_in)
        await self.note(ref, LATE_LOOK_S, sooner=True)
        self._admitted(ref.tenant, others)
        return got

    async def enter(self, ref: RunRef) -> str:
        """As RunStore.enter."""
        return (await self._steps(ref)).enter()

    async def schedule(self, ref: RunRef) -> tuple[str, int, Schedule]:
        """As RunStore.schedule."""
        return (await self._steps(ref)).schedule()

    async def place(self, record: RunRecord, tenant: str) -> Place:
        """As RunStore.place."""
        ref = RunRef(tenant, record.spec.thread_id, record.run_id)
        before, length, head, status = (await self._steps(ref)).line()
        _, rank, pace_ms = self.state.tenant(tenant).standing(f"{ref.thread_id}/{ref.run_id}")
        offered, ahead = self.state.track(record.track).place(ref.encode(), rank_of(record.spec.schedule, record.since_ms))
        if before > 0 and status == "queued":
            first = ref._replace(run_id=head)
            track, since_ms, schedule = (await self._steps(first)).schedule()
            before += max(0, self.state.track(track).place(first.encode(), rank_of(schedule, since_ms))[1]) + 1
        if before > 0:
            return Place(before)
        return Place(offered + max(0, length - 1) + rank, rank * pace_ms) if rank else Place(ahead + 1)

    async def joining(self, ref: RunRef) -> int:
        """As RunStore.joining."""
        _, length, _, status = (await self._steps(ref)).line()
        return length + int(status == "queued")

    async def inspect(self, ref: RunRef) -> Inspected:
        """As RunStore.inspect."""
        return (await self._steps(ref)).inspect()

    async def outbox_claim(self, ref: RunRef, lease_s: float) -> tuple[bytes, int] | None:
        """As RunStore.outbox_claim."""
        return (await self._steps(ref)).outbox_claim(int(lease_s * 1000))

    async def outbox_done(self, ref: RunRef, delivered: bool) -> None:
        """As RunStore.outbox_done."""
        (await self._steps(ref)).outbox_done(delivered)

    async def outbox_attempts(self, ref: RunRef) -> int:
        """As RunStore.outbox_attempts."""
        run = self.state.thread(ref).runs.get(ref.run_id)
        return run.outbox_attempts if run is not None else 0

    # --- reading and asking ---

    async def open_thread(self, tenant: str, user: str, thread_id: str, metadata: Mapping[str, str]) -> ThreadRecord | None:
        """As RunStore.open_thread."""
        kept = self.state.tenant(tenant)
        threads = kept.lists.setdefault(("threads", user), {})
        if thread_id not in threads:
            kept.counter += 1
            threads[thread_id] = kept.counter
        (await self._steps(RunRef(tenant, thread_id, "-"))).open(user, orjson.dumps(dict(metadata)))
        return await self.thread(tenant, user, thread_id)

    async def thread(self, tenant: str, user: str, thread_id: str) -> ThreadRecord | None:
        """As RunStore.thread."""
        return self.state.thread(RunRef(tenant, thread_id, "-")).record(thread_id, user)

    async def locate(self, tenant: str, user: str, run_id: str) -> RunRef | None:
        """As RunStore.locate."""
        known = self.state.tenant(tenant).lookup(run_id, self.state.clock.now_ms)
        return RunRef(tenant, known.thread_id, run_id) if known is not None and known.thread_id and known.user == user else None

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        run = self.state.thread(ref).runs.get(ref.run_id)
        return run.record(ref.run_id) if run is not None else None

    async def runs(self, refs: Sequence[RunRef]) -> list[RunRecord]:
        """As RunStore.runs."""
        return [record for ref in refs if (record := await self.run(ref)) is not None]

    async def threads(self, tenant: str, user: str, thread_ids: Sequence[str]) -> list[ThreadRecord]:
        """As RunStore.threads."""
        return [record for thread_id in thread_ids if (record := await self.thread(tenant, user, thread_id)) is not None]

    async def list_members(self, kind: str, tenant: str, user: str, before: int, size: int, thread_id: str = "") -> list[tuple[str, int]]:
        """As RunStore.list_members."""
        if kind == "thread":
            runs = self.state.thread(RunRef(tenant, thread_id, "-")).runs
            members = {run_id: run.first_seq for run_id, run in runs.items()}
        else:
            members = self.state.tenant(tenant).lists.get((kind, user), {})
        below = [(member, position) for member, position in members.items() if not before or position < before]
        return sorted(below, key=lambda found: -found[1])[:size]

    async def request_cancel(self, tenant: str, user: str, run_id: str) -> str | None:
        """As RunStore.request_cancel."""
        await asyncio.sleep(0)
        known = self.state.tenant(tenant).lookup(run_id, self.state.clock.now_ms)
        if known is not None and known.user != user:
            return None
        if known is not None and known.thread_id:
            known.cancel = True
            return known.thread_id
        self.state.tenant(tenant).lookups[run_id] = Lookup(user, cancel=True, expires_ms=self.state.clock.now_ms + TOMBSTONE_MS)
        return ""

    async def cancel(self, ref: RunRef, trace_id: str, data: bytes, reason: str) -> tuple[str, Written]:
        """As RunStore.cancel."""
        await self.note(ref, NOTED_MS / 1000, sooner=True)
        return (await self._steps(ref)).cancel(trace_id, data, reason, TOMBSTONE_MS)

    async def read(self, ref: RunRef, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """As RunStore.read."""
        last, first, terminal, events = (await self._steps(ref)).read(after_seq, most, from_run)
        return last, first, terminal, await self._whole(ref, [replace(event) for event in events])

    async def last_seqs(self, refs: Sequence[RunRef]) -> list[int]:
        """As RunStore.last_seqs."""
        return [len(self.state.thread(ref).log) for ref in refs]
