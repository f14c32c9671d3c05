"""The store's side of forking, rolling back and deleting threads. All of it can be done again, and by two at once."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import orjson
import redis.asyncio as redis

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.result_blobs import Item, LargeResults
from services.orchestrator.adapters.sealing import EVENT, SPEC, STATE, Sealing
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import (
    ENDED,
    LIVE,
    THREADS,
    approvals_keys,
    channel_of,
    counter_key,
    erasing_key,
    feedback_key,
    interrupts_key,
    keys_of_run,
    keys_of_thread,
    listed_key,
    lookup_key,
    thread_keys,
)
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.records import SCHEMA_VERSION, Event, RunRecord, RunRef
from services.orchestrator.threads.conversation import encoded
from services.orchestrator.threads.ports import Begun, ThreadState

# Ids of deleted threads are not taken again for so long; longer than any idempotency key leads to one of their runs.
TOMBSTONE_KEPT = timedelta(days=7)
# A change begins within this time after it was noted, or never; the look that would end the note comes later.
BEGIN_WITHIN_MS = 5_000
MARK = "\0"
# Fields of a run's record that hold what somebody thinks of it.
FEEDBACK = "feedback:"


class ValkeyThreads(StoreBase):
    """ThreadStore on Valkey."""

    def __init__(
        self, client: redis.Redis, instance: str, replicas: int = 0, sealing: Sealing | None = None, results: LargeResults | None = None
    ) -> None:
        """As StoreBase; `sealing` and `results` as of Store."""
        super().__init__(client, instance, replicas)
        self._sealing, self.results = sealing or Sealing(), results

    async def note(self, ref: RunRef, look_in_s: float, *, once: bool = False) -> int:
        """As ThreadStore.note."""
        seconds, micros = await self._ask(self._client.time())
        await self._durable("work_note_v1", [THREADS], [int(look_in_s * 1000), _member(ref), "NX" if once else "LT"])
        return int(seconds) * 1000 + int(micros) // 1000 + BEGIN_WITHIN_MS

    async def due(self, most: int, again_in_s: float) -> list[RunRef]:
        """As ThreadStore.due."""
        found = await self._ask(self._library.call("work_due_v1", [THREADS], [most, int(again_in_s * 1000), 0]))
        return [RunRef.decode(text(member)) for member in found]

    async def look_again(self, ref: RunRef, look_in_s: float | None) -> None:
        """As ThreadStore.look_again."""
        if look_in_s is None:
            await self._ask(self._client.zrem(THREADS, _member(ref)))
        else:
            await self._ask(self._library.batched("work_note_v1", [THREADS], [int(look_in_s * 1000), _member(ref), "XX"]))

    async def state(self, ref: RunRef) -> ThreadState | None:
        """As ThreadStore.state."""
        names = ["user", "of", "job", "seq", "ttl_ms", "expires_ms", "carry", "carry_seq", "carry_open", "oldest_seq"]
        found = dict(zip(names, await self._ask(self._client.hmget(thread_keys(ref)[0], names)), strict=True))
        if found["user"] is None:
            return None
        user = text(found["user"])
        doing = user.removeprefix(MARK) if user.startswith(MARK) else ""
        carry = await self._sealing.open(ref.tenant, STATE, found["carry"]) if found["carry"] else None
        return ThreadState(
            text(found["of"] or b"") if doing else user, doing, found["job"], int(found["seq"] or 0), int(found["ttl_ms"] or 0),
            int(found["expires_ms"] or 0), orjson.loads(carry) if carry else {}, int(found["carry_seq"] or 0),
            bool(found["carry_open"]), int(found["oldest_seq"] or 1),
        )  # fmt: skip

    async def bases(self, ref: RunRef) -> Mapping[int, Mapping[str, Any]]:
        """As ThreadStore.bases."""
        stored = await self._ask(self._client.hget(thread_keys(ref)[0], "bases"))
        bases = await self._sealing.open(ref.tenant, STATE, stored) if stored else None
        return {int(seq): base for seq, base in orjson.loads(bases).items()} if bases else {}

    async def begin(
        self, ref: RunRef, user: str, doing: str, job: bytes, not_after_ms: int, key: str = "", *, expired: bool = False
    ) -> Begun:
        """As ThreadStore.begin."""
        args = [user, _digest(ref, user), MARK + doing, job, not_after_ms, key, "1" if expired else "0"]
        function = "thread_begin_deleting_v1" if doing == "gone" else "thread_begin_v1"
        verdict, found, seq = await self._durable(function, [thread_keys(ref)[0]], args)
        return Begun(text(verdict), found, int(seq))

    async def build(self, ref: RunRef, user: str, metadata: Mapping[str, str], job: bytes, print_: str, not_after_ms: int) -> Begun:
        """As ThreadStore.build."""
        # Listed before it is there: an erasure of its user must find what is copied meanwhile.
        keys = [listed_key(ref.tenant, "threads", user), counter_key(ref.tenant), erasing_key(ref.tenant)]
        if int(await self._ask(self._library.batched("tenant_list_thread_v1", keys, [ref.thread_id, user]))) < 0:
            raise being_erased()
        args = [ref.tenant, user, ref.thread_id, orjson.dumps(dict(metadata)), job, print_, not_after_ms]
        verdict, found = await self._durable("thread_build_v1", [thread_keys(ref)[0]], args)
        return Begun(text(verdict), found)

    async def copy(self, ref: RunRef, user: str, after_seq: int, events: Sequence[Event]) -> int:
        """As ThreadStore.copy."""
        args: list[Any] = [after_seq]
        # What the log that is copied has put aside goes with that log; a fork has its own.
        datas = await self._aside([Item(ref._replace(run_id=event.run_id), event.type, event.data) for event in events], user)
        sealed = await self._sealing.seal(ref, [(EVENT, data) for data in datas], user)
        for event, data in zip(events, sealed, strict=True):
            args += (
                event.seq, event.type, event.run_id, event.attempt, "1" if event.provisional else "0", event.at_ms, event.trace_id,
                event.schema_version, data,
            )  # fmt: skip
        return int(await self._ask(self._library.call("thread_copy_v1", thread_keys(ref)[:2], args)))

    async def copy_runs(self, parent: RunRef, ref: RunRef, user: str, records: Sequence[RunRecord]) -> None:
        """As ThreadStore.copy_runs."""
        for record in records:
            keys = thread_keys(ref._replace(run_id=record.run_id))
            args: list[Any] = [record.run_id, record.first_seq]
            fields = await self._fields(record, ref, user)
            cut = await self._ask(self._client.hget(thread_keys(parent._replace(run_id=record.run_id))[2], "cut"))
            if cut:
                fields["cut"] = cut
            for name, value in fields.items():
                args += (name, value)
            await self._ask(self._library.batched("thread_copy_run_v1", [keys[0], keys[6], keys[2]], args))

    async def built(
        self, ref: RunRef, user: str, data: bytes, carry: bytes, bases: bytes, parent: str, at_seq: int, ttl_ms: int, last_run: str,
        trace_id: str,
    ) -> int:  # fmt: skip
        """As ThreadStore.built."""
        data, carry, bases = await self._sealing.seal(ref, [(EVENT, data), (STATE, carry), (STATE, bases)], user)
        if last_run:
            # Its log moves, and its retention ends, like that of any run; the runs before it go first.
            note = [0, ref._replace(run_id=last_run).encode()]
            await self._ask(self._library.batched("work_note_v1", [ENDED], note))
        args = [data, carry, channel_of(ref), self._instance, trace_id, parent, at_seq, ttl_ms, bases]
        return int(await self._durable("thread_built_v1", thread_keys(ref)[:2], args))

    async def rolled(
        self, ref: RunRef, user: str, job: bytes, data: bytes, carry: bytes, run_ids: Sequence[str], key: str, trace_id: str
    ) -> tuple[str, int]:
        """As ThreadStore.rolled."""
        data, carry = await self._sealing.seal(ref, [(EVENT, data), (STATE, carry)], user)
        meta, log, _, pending, *_ = thread_keys(ref)
        keys = [meta, log, pending, *(thread_keys(ref._replace(run_id=run_id))[2] for run_id in run_ids)]
        args = [job, data, carry, channel_of(ref), self._instance, trace_id, key]
        verdict, seq = await self._durable("thread_rolled_v1", keys, args)
        return text(verdict), int(seq)

    async def run_ids(self, ref: RunRef) -> list[str]:
        """As ThreadStore.run_ids."""
        return [text(run_id) for run_id in await self._ask(self._client.zrange(thread_keys(ref)[6], 0, -1))]

    async def line(self, ref: RunRef) -> list[str]:
        """As ThreadStore.line."""
        return [text(run_id) for run_id in await self._ask(self._client.lrange(thread_keys(ref)[3], 0, -1))]

    async def unsettled(self, ref: RunRef, run_ids: Sequence[str]) -> list[str]:
        """As ThreadStore.unsettled."""
        if not run_ids:
            return []
        noted = await self._ask(self._client.zmscore(LIVE, [ref._replace(run_id=run_id).encode() for run_id in run_ids]))
        return [run_id for run_id, at_ms in zip(run_ids, noted, strict=True) if at_ms is not None]

    async def delist(self, ref: RunRef, user: str, run_ids: Sequence[str]) -> None:
        """As ThreadStore.delist."""
        listed = listed_key(ref.tenant, "runs", user)
        for run_id in run_ids:
            run = ref._replace(run_id=run_id)
            await self._ask(self._library.batched("tenant_delist_v1", [lookup_key(ref.tenant, run_id), listed], [run_id, ref.thread_id]))
            await self._ask(self._client.zrem(LIVE, run.encode()))
            # Whoever looks at ended runs may mean to come by only in a month.
            await self._ask(self._client.zrem(ENDED, run.encode()))
            names = [text(name) for name in await self._ask(self._client.hkeys(thread_keys(run)[2]))]
            judged = [f"{ref.thread_id}/{run_id}/{name.removeprefix(FEEDBACK)}" for name in names if name.startswith(FEEDBACK)]
            if judged:
                await self._ask(self._client.zrem(feedback_key(ref.tenant), *judged))
            asked = [f"{ref.thread_id} {text(number)}" for number in await self._ask(self._client.hkeys(interrupts_key(run)))]
            for key in approvals_keys(ref.tenant) if asked else ():
                await self._ask(self._client.zrem(key, *asked))

    async def delist_thread(self, ref: RunRef, user: str) -> None:
        """As ThreadStore.delist_thread."""
        await self._ask(self._client.zrem(listed_key(ref.tenant, "threads", user), ref.thread_id))

    async def purge_runs(self, ref: RunRef, run_ids: Sequence[str]) -> None:
        """As ThreadStore.purge_runs."""
        keys = thread_keys(ref)
        of_runs = [key for run_id in run_ids for key in keys_of_run(ref._replace(run_id=run_id))]
        await self._ask(self._library.call("thread_purge_runs_v1", [keys[0], keys[6], keys[4], *of_runs], list(run_ids)))

    async def purge(self, ref: RunRef, user: str) -> int:
        """As ThreadStore.purge."""
        args = [_digest(ref, user), channel_of(ref), self._instance, int(TOMBSTONE_KEPT.total_seconds() * 1000)]
        await self._durable("thread_purge_v1", keys_of_thread(ref), args)
        return int(await self._ask(self._client.hget(thread_keys(ref)[0], "seq")) or 0)

    async def ended(self, ref: RunRef) -> None:
        """As ThreadStore.ended."""
        await self._ask(self._library.batched("work_note_v1", [ENDED], [0, ref.encode()]))

    async def live(self, ref: RunRef, ttl_ms: int, active_ms: int) -> float:
        """As ThreadStore.live."""
        left = int(await self._durable("thread_live_v1", [thread_keys(ref)[0]], [ttl_ms, active_ms]))
        return left / 1000 if left >= 0 else -1.0

    async def _fields(self, record: RunRecord, ref: RunRef, user: str) -> dict[str, Any]:
        """An ended run as it is stored, in another thread."""
        items = [(SPEC, orjson.dumps({**record.spec.as_dict(), "thread_id": ref.thread_id})), (EVENT, orjson.dumps(record.result))]
        spec, result, carry = await self._sealing.seal(ref, [*items, (STATE, encoded(record.carry))], user)
        found: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION, "run": record.run_id, "spec": spec, "track": record.track,
            "append_only": "1" if record.spec.append_only else "0", "status": record.status, "epoch": record.epoch,
            "attempt": record.attempt, "crashes": 0, "owner": "", "lease_until": 0, "created_ms": record.created_ms,
            "queued_ms": record.created_ms, "started_ms": record.started_ms, "ended_ms": record.ended_ms, "first_seq": record.first_seq,
            "terminal_seq": record.terminal_seq, "cancel": "1" if record.cancel_requested else "0", "w": 0, "result": result,
        }  # fmt: skip
        if record.carry:
            found["carry"] = carry
        if record.rolled_back:
            found["rolled_back"] = record.rolled_back
        return found


def _member(ref: RunRef) -> str:
    return ref._replace(run_id="-").encode()


def _digest(ref: RunRef, user: str) -> str:
    """Who a tombstone belongs to, without their name."""
    return "sha256:" + hashlib.sha256(f"{ref.tenant}\0{ref.thread_id}\0{user}".encode()).hexdigest()
