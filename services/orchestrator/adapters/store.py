"""Threads and runs in Valkey. One Lua call is one atomic step; nothing across hash tags is assumed to be atomic."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import redis.asyncio as redis

from services.common.envelope import Envelope
from services.common.errors import Overloaded
from services.orchestrator.adapters.blobs import Blobs
from services.orchestrator.adapters.decode import run_record, text
from services.orchestrator.adapters.result_blobs import Item, LargeResults
from services.orchestrator.adapters.sealing import EVENT, OUTBOX, SPEC, Sealing
from services.orchestrator.adapters.segment_log import SegmentLogStore
from services.orchestrator.adapters.store_approvals import ApprovalsStore
from services.orchestrator.adapters.store_control import ControllingStore
from services.orchestrator.adapters.store_feedback import FeedbackStore
from services.orchestrator.adapters.store_keys import LIVE, OWNER_CHANNEL, channel_of, erasing_key, tenant_keys, thread_keys, waiting_keys
from services.orchestrator.adapters.store_queue import QueueStore
from services.orchestrator.adapters.store_reading import ReadingStore
from services.orchestrator.records import (
    SCHEMA_VERSION,
    UNSCHEDULED,
    Accepted,
    Claim,
    Cut,
    Draft,
    Fenced,
    Heard,
    Park,
    Reservation,
    RunRecord,
    RunRef,
    RunSpec,
    Schedule,
    Terminal,
    Written,
)  # fmt: skip
from services.orchestrator.results import COMPLETED, INLINE_BYTES, parted
from services.orchestrator.segments import SegmentStore

IDEMPOTENCY_KEPT = timedelta(hours=48)
# How long accepting may take between the reservation and the run record; the sweeper waits longer before it gives one up.
ACCEPT_WITHIN_MS = 5_000
LOOK_AFTER_MS = 1_000


class Store(ApprovalsStore, FeedbackStore, ReadingStore, QueueStore, ControllingStore, SegmentLogStore):
    """RunStore on Valkey."""

    def __init__(
        self,
        client: redis.Redis,
        instance: str,
        replicas: int = 0,
        *,
        segments: SegmentStore | None = None,
        envelope: Envelope | None = None,
        blobs: Blobs | None = None,
        inline_bytes: int = INLINE_BYTES,
    ) -> None:
        """As StoreBase; `segments` hold what of the logs has moved, `envelope` encrypts what is kept of users, `blobs` take results of more
        than `inline_bytes`."""
        super().__init__(client, instance, replicas)
        self.segments = segments
        if envelope is not None:
            self.sealing = Sealing(envelope, self.user_of)
        if blobs is not None:
            self.results = LargeResults(blobs, self.sealing, inline_bytes)

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
        keys = [*tenant_keys(ref.tenant, ref.run_id, user, key), *waiting_keys(ref.tenant)[1:5], erasing_key(ref.tenant)]
        kept_ms = int(IDEMPOTENCY_KEPT.total_seconds() * 1000)
        args = [ref.run_id, ref.thread_id, user, slots, print_ if key else "", kept_ms, queued, delayed]
        args += [schedule.priority, schedule.start_ms]
        # The sweeper knows of the run before anything else does: whatever is left half-done is found.
        note = self._ask(self._library.batched("work_note_v1", [LIVE], [LOOK_AFTER_MS, ref.encode(), "LT"]))
        function = "tenant_reserve_of_run_v1" if of_run else "tenant_reserve_v1"
        _, answer = await asyncio.gather(note, self._ask(self._library.batched(function, keys, args)))
        verdict, run_id, thread_id, cancelled, now, (held, place, pace_ms), promoted = answer
        self._admitted(ref.tenant, promoted)
        return Reservation(
            text(verdict), text(run_id), text(thread_id), text(cancelled) == "1", int(now) + ACCEPT_WITHIN_MS,
            held=text(held) == "1", place=int(place), pace_ms=int(pace_ms),
        )  # fmt: skip

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
        queued, cancelled = events
        self.sealing.known(ref, user)
        items = [(SPEC, orjson.dumps(spec.as_dict())), (EVENT, queued), (EVENT, cancelled)]
        sealed_spec, queued, sealed_cancelled = await self.sealing.seal(ref, items, user)
        args = [
            ref.tenant, user, ref.thread_id, ref.run_id, sealed_spec, track, "1" if spec.append_only else "0",
            "1" if reservation.cancelled else "0", reservation.not_after_ms, trace_id, channel_of(ref), self._instance, queued,
            sealed_cancelled, self._instance if own_for_s else "", int(own_for_s * 1000), spec.schedule.encode(),
            "1" if reservation.held else "0", spec.schema, spec.answers or "",
        ]  # fmt: skip

        async def undo(answer: Any) -> None:
            await self._give_back_accepted(ref, answer[0] if on_busy else answer)

        cut: list = []
        if on_busy:
            busy = [on_busy, OWNER_CHANNEL, ref._replace(run_id="").encode(), *args]
            answer, cut = await self._durable("thread_accept_busy_v1", thread_keys(ref), busy, undo)
            if text(answer[0]) == "busy":
                return Accepted("busy", at_work=text(answer[1]))
        else:
            function = "thread_accept_of_run_v1" if spec.child_of else "thread_accept_v1"
            answer = await self._durable(function, thread_keys(ref), args, undo)
        verdict, *rest = answer
        if not rest:
            return Accepted(text(verdict))
        fields, first, last, now, status, undelivered = rest
        written = Written(int(first), int(last), int(now), "")
        stored = await self.sealing.fields(ref.tenant, fields)
        record = run_record(stored) if stored else _accepted(ref, spec, track, text(status), written, cancelled)
        ends = [Cut(text(run_id), text(status), int(last)) for run_id, status, last in cut]
        return Accepted(text(verdict), record, written, [text(u) for u in undelivered], cut=ends)

    async def save_definition(self, digest: str, definition: bytes) -> None:
        """As RunStore.save_definition."""
        await self._ask(self._library.batched("definition_keep_v1", [f"agent:{{{digest}}}"], [definition]))

    async def definition(self, digest: str) -> bytes | None:
        """As RunStore.definition."""
        return await self._ask(self._client.get(f"agent:{{{digest}}}"))

    # --- owning ---

    async def claim(self, ref: RunRef, lease_s: float, crash_budget: int, *, suspect: bool = True) -> Claim:
        """As RunStore.claim."""
        args = [ref.run_id, self._instance, int(lease_s * 1000), crash_budget, channel_of(ref), self._instance, SCHEMA_VERSION]
        args.append("1" if suspect else "0")
        verdict, *rest = await self._durable("run_claim_v1", thread_keys(ref), args, partial(self._give_back, ref))
        verdict = text(verdict)
        if not rest:
            return Claim(verdict)
        fields, messages, undelivered, first, last, now, following = rest
        record = run_record(await self.sealing.fields(ref.tenant, fields)) if fields else None
        messages = await self.sealing.messages(ref.tenant, messages)
        if messages is None or (fields and record is None):
            # Its key is destroyed, as in a store that was restored: nobody can work on it, and its crashes end it.
            return Claim("gone")
        if record is not None:
            self.sealing.known(ref, record.spec.principal["user"])
        return Claim(verdict, record, messages, [text(u) for u in undelivered], Written(int(first), int(last), int(now), text(following)))

    async def _give_back(self, ref: RunRef, answer: Sequence) -> None:
        """Gives a claim back that does not count: its owner is not lost, and the run must not lose it as one that was."""
        verdict, *rest = answer
        if text(verdict) != "claimed":
            return
        fields = dict(zip(rest[0][::2], rest[0][1::2], strict=True))
        await self._unowned(ref, int(fields[b"epoch"]))

    async def _give_back_accepted(self, ref: RunRef, answer: Sequence) -> None:
        """The same for a run that was accepted and owned in one step."""
        verdict, *rest = answer
        if text(verdict) == "new" and text(rest[4]) == "running":
            await self._unowned(ref, 1)

    async def _unowned(self, ref: RunRef, epoch: int) -> None:
        args = [epoch, 1, ref.run_id, "", channel_of(ref), self._instance, "r", b"", 0, 0]
        with suppress(Overloaded, Fenced):
            await self._ask(self._library.batched("run_write_v1", thread_keys(ref), args))

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
        events, state, messages, terminal = await self.sealing.written(ref, events, state, messages, terminal)
        carry = terminal.carry if terminal is not None else b""
        args: list[Any] = [epoch, number, ref.run_id, trace_id, channel_of(ref), self._instance, mode, state, len(messages), *messages]
        if terminal is not None:
            args += [terminal.status, terminal.result, terminal.outbox, terminal.event, terminal.data]
        if park is not None:
            args += [park.until_ms, park.absorbed]
        args.append(len(events))
        for event in events:
            args += (event.type, "1" if event.provisional else "0", event.data)
        if schema or carry:
            args.append(schema or 1)
        if carry:
            args.append(carry)
        try:
            if mode == "e":
                answer = await self._ask(self._library.batched("run_write_v1", thread_keys(ref), args))
            else:
                answer = await self._durable("run_write_v1", thread_keys(ref), args)
        except Fenced:
            if self.results is not None and any(event.type == COMPLETED for event in events):
                # What was put aside for it may be there after whoever looks has looked.
                await self._note_results(ref)
            raise
        first, last, now, following, cancel = answer
        return Written(int(first), int(last), int(now), text(following), bool(cancel))

    async def _parted(
        self, ref: RunRef, events: Sequence[Draft], messages: Sequence[bytes]
    ) -> tuple[Sequence[Draft], Sequence[bytes], int]:
        """Events and messages with what is large put aside; the schema that it takes to read these messages, 0: that of the run."""
        if self.results is None or not any(self.results.is_large(event.data) for event in events):
            return events, messages, 0
        datas = await self._aside([Item(ref, event.type, event.data) for event in events])
        messages, schema = parted(messages, events, datas, self.results.is_large)
        return [event._replace(data=data) for event, data in zip(events, datas, strict=True)], messages, schema

    async def beat(self, ref: RunRef, epoch: int, lease_s: float) -> Heard:
        """As RunStore.beat."""
        answer = await self._ask(self._library.batched("run_beat_v1", [thread_keys(ref)[2]], [epoch, int(lease_s * 1000)]))
        if not isinstance(answer, list):
            raise Fenced("the run has another owner")
        return Heard(int(answer[0]) == 1, int(answer[1]))

    async def outbox_leave(self, ref: RunRef, entry: bytes) -> bool:
        """As RunStore.outbox_leave."""
        keys = thread_keys(ref)
        (sealed,) = await self.sealing.seal(ref, [(OUTBOX, entry)])
        return bool(await self._durable("run_outbox_leave_v1", [keys[2], keys[4]], [ref.run_id, sealed]))

    async def outbox_claim(self, ref: RunRef, lease_s: float) -> tuple[bytes, int] | None:
        """As RunStore.outbox_claim."""
        keys = thread_keys(ref)
        answer = await self._ask(self._library.batched("run_outbox_claim_v1", [keys[2], keys[4]], [ref.run_id, int(lease_s * 1000)]))
        if not answer:
            return None
        entry = await self.sealing.open(ref.tenant, OUTBOX, answer[0])
        if entry is None:
            # Nobody can read it any more, so nobody will send it.
            await self.outbox_done(ref, True)
            return None
        return entry, int(answer[1])

    async def outbox_done(self, ref: RunRef, delivered: bool) -> None:
        """As RunStore.outbox_done."""
        keys = thread_keys(ref)
        await self._ask(self._library.batched("run_outbox_done_v1", [keys[2], keys[4]], [ref.run_id, "1" if delivered else "0"]))

    async def outbox_waiting(self, ref: RunRef) -> list[str]:
        """As RunStore.outbox_waiting."""
        return [text(run_id) for run_id in await self._ask(self._client.hkeys(thread_keys(ref)[4]))]

    async def outbox_attempts(self, ref: RunRef) -> int:
        """As RunStore.outbox_attempts."""
        return int(await self._ask(self._client.hget(thread_keys(ref)[2], "outbox_attempts")) or 0)


def _accepted(ref: RunRef, spec: RunSpec, track: str, status: str, written: Written, cancelled: bytes) -> RunRecord:
    """The record that was just written; reading it back would tell nothing new."""
    ended, owned, at = status == "cancelled", status == "running", written.at_ms
    return RunRecord(
        ref.run_id, spec, status, epoch=int(owned), attempt=int(owned), cancel_requested=ended, created_ms=at,
        started_ms=at if owned else 0, ended_ms=at if ended else 0, first_seq=written.first_seq,
        terminal_seq=written.last_seq if ended else 0, track=track, result=orjson.loads(cancelled) if ended else {}, state={},
        provisional_from=0,
    )  # fmt: skip
