"""Schedules in Valkey. Functions of a library of their own; one call is one atomic step under one hash tag."""

from collections.abc import Mapping
from typing import Any

import redis.asyncio as redis

from services.common.errors import Overloaded
from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.store_due import DueStore
from services.orchestrator.adapters.store_keys import counter_key, erasing_key, listed_key, tenant_prefix
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.records import RunRef
from services.orchestrator.schedules.records import Definition, Due, Outcome, ScheduleRecord, ScheduleRef

SCHEDULE = "schedule"
DUE = "schedules:{sd0}:due"
MOST_TICKS = 500
# Between the reminder of a schedule that is being made or changed and the record; whoever looks waits for longer.
WITHIN_MS = 5_000
LOOK_AFTER_MS = 7_000


class ValkeySchedules(DueStore):
    """ScheduleStore on Valkey."""

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0, sealing: Sealing | None = None) -> None:
        """As StoreBase; `sealing` as of Store."""
        super().__init__(client, instance, replicas, ("schedule", "due"))
        self.sealing = sealing or Sealing()

    async def add(self, ref: ScheduleRef, user: str, definition: Definition, next_ms: int, most: int) -> str:
        """As ScheduleStore.add."""
        now_ms = await self.now_ms()
        # First the reminder: a schedule that nothing leads to would never fire.
        await self._note(ref, now_ms + LOOK_AFTER_MS)
        keys = [_key(ref), listed_key(ref.tenant, "schedules", user), counter_key(ref.tenant), erasing_key(ref.tenant)]
        args = [ref.schedule_id, user, await self._packed(ref.tenant, user, definition), next_ms, most, now_ms + WITHIN_MS]
        verdict = text(await self._durable("schedule_add_v1", keys, args))
        if verdict == "erased":
            raise being_erased()
        if verdict == "late":
            raise Overloaded("making the schedule took too long", reason="ACCEPT_TIMED_OUT", retry_after_s=1.0)
        await self._note(ref, next_ms, sooner=True)
        return verdict

    async def get(self, ref: ScheduleRef) -> ScheduleRecord | None:
        """As ScheduleStore.get."""
        return await self._record(ref, await self._ask(self._client.hgetall(_key(ref))))

    async def of_user(self, tenant: str, user: str, before: int, size: int) -> list[tuple[ScheduleRecord | None, int]]:
        """As ScheduleStore.of_user."""
        key, top = listed_key(tenant, "schedules", user), f"({before}" if before else "+inf"
        found = await self._ask(self._client.zrevrangebyscore(key, top, "-inf", start=0, num=size, withscores=True))
        refs = [ScheduleRef(tenant, text(schedule_id)) for schedule_id, _ in found]
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hgetall(_key(ref))
        records = await self._ask(pipeline.execute()) if refs else []
        read = [await self._record(ref, fields) for ref, fields in zip(refs, records, strict=True)]
        for ref, fields, record in zip(refs, records, read, strict=True):
            if fields and record is None:
                # Its key is destroyed, as in a store that was restored: nobody reads it any more, and it fires no more.
                await self._remove(ref, user)
        return [(record, int(score)) for record, (_, score) in zip(read, found, strict=True)]

    async def change(self, record: ScheduleRecord, definition: Definition, state: str, next_ms: int) -> bool:
        """As ScheduleStore.change."""
        # Before and after: whoever is lost in between leaves a look that comes too early, and none that comes too late.
        await self._note(record.ref, await self.now_ms() + LOOK_AFTER_MS)
        following_ms = definition.timing.after(next_ms) if next_ms else 0
        args = [record.version, await self._packed(record.ref.tenant, record.user, definition), state, next_ms, following_ms]
        done = bool(await self._durable("schedule_change_v1", [_key(record.ref)], args))
        if done and state == "active":
            # No later than the look above: a run that is being made may wait for it.
            await self._note(record.ref, next_ms, sooner=True)
        return done

    async def remove(self, record: ScheduleRecord) -> None:
        """As ScheduleStore.remove."""
        await self._remove(record.ref, record.user)

    async def _remove(self, ref: ScheduleRef, user: str) -> None:
        keys = [_key(ref), listed_key(ref.tenant, "schedules", user), _log_key(ref)]
        await self._durable("schedule_remove_v1", keys, [ref.schedule_id])

    async def ticks(self, ref: ScheduleRef, before: int, size: int) -> list[tuple[Outcome, int]]:
        """As ScheduleStore.ticks."""
        found = await self._ask(self._client.xrevrange(_log_key(ref), f"({before}-0" if before else "+", "-", count=size))
        return [(Outcome.decode(fields[b"o"]), int(number.partition(b"-")[0])) for number, fields in found]

    async def due(self, most: int, again_in_s: float) -> list[Due]:
        """As ScheduleStore.due."""
        at_ms, found = await self._take_due(DUE, most, again_in_s)
        return [Due(ScheduleRef.decode(reference), at_ms) for reference in found]

    async def leave(self, due: Due, wait_s: float | None) -> None:
        """As ScheduleStore.leave."""
        await self._leave_due(DUE, due.ref.encode(), due.at_ms, wait_s)

    async def begin(self, record: ScheduleRecord) -> bool:
        """As ScheduleStore.begin."""
        return bool(await self._durable("schedule_begin_v1", [_key(record.ref)], [record.version, record.next_ms]))

    async def hold(self, record: ScheduleRecord) -> bool:
        """As ScheduleStore.hold."""
        return bool(await self._durable("schedule_hold_v1", [_key(record.ref)], [record.version, record.next_ms]))

    async def passed(self, record: ScheduleRecord, outcome: Outcome, next_ms: int) -> bool:
        """As ScheduleStore.passed."""
        args = [record.version, record.next_ms, outcome.encode(), next_ms, MOST_TICKS]
        return bool(await self._durable("schedule_passed_v1", [_key(record.ref), _log_key(record.ref)], args))

    async def fired(self, record: ScheduleRecord, outcome: Outcome, run: RunRef | None, next_ms: int) -> bool:
        """As ScheduleStore.fired."""
        made = [run.thread_id, run.run_id] if run else ["", ""]
        args: list[Any] = [record.version, record.firing_ms, outcome.encode(), next_ms, MOST_TICKS, *made]
        return bool(await self._durable("schedule_fired_v1", [_key(record.ref), _log_key(record.ref)], args))

    async def _note(self, ref: ScheduleRef, at_ms: int, *, sooner: bool = False) -> None:
        await self._durable("schedule_note_v1", [DUE], [ref.encode(), at_ms, "LT" if sooner else "CH"])

    async def _packed(self, tenant: str, user: str, definition: Definition) -> bytes:
        (packed,) = await self.sealing.seal(RunRef(tenant, "-", "-"), [(SCHEDULE, definition.encode())], user)
        return packed

    async def _record(self, ref: ScheduleRef, fields: Mapping[bytes, bytes]) -> ScheduleRecord | None:
        """A schedule as it was stored; None where there is none, or none that can be read any more."""
        found = dict(fields)
        for name in (b"definition", b"firing_definition"):
            if name in found:
                opened = await self.sealing.open(ref.tenant, SCHEDULE, found[name])
                if opened is None:
                    return None
                found[name] = opened
        return _record(ref, found)


def _key(ref: ScheduleRef) -> str:
    return f"{tenant_prefix(ref.tenant)}:schedule:{ref.schedule_id}"


def _log_key(ref: ScheduleRef) -> str:
    return f"{_key(ref)}:ticks"


def _record(ref: ScheduleRef, fields: Mapping[bytes, bytes]) -> ScheduleRecord | None:
    if not fields:
        return None
    found = {name.decode(): value for name, value in fields.items()}
    return ScheduleRecord(
        ref, found["user"].decode(), Definition.decode(found["definition"]), int(found["version"]), found["state"].decode(),
        int(found["next_ms"]), int(found["created_ms"]), int(found["updated_ms"]), int(found.get("firing", 0)),
        Definition.decode(found["firing_definition"]) if "firing_definition" in found else None, int(found.get("firing_at", 0)),
        int(found.get("waiting", 0)), Outcome.decode(found["last"]) if "last" in found else None,
        RunRef(ref.tenant, found["last_thread"].decode(), found["last_run"].decode()) if "last_run" in found else None,
    )  # fmt: skip
