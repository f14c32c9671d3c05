"""Threads and runs in Valkey. One Lua call is one atomic step; nothing across hash tags is assumed to be atomic."""

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import redis.asyncio as redis
import structlog
from redis.exceptions import ResponseError

from services.common.errors import Overloaded
from services.common.valkey import UNAVAILABLE, Library, ping, store_unavailable
from services.orchestrator.adapters.decode import run_record, text, thread_record
from services.orchestrator.records import (
    Accepted,
    Claim,
    Draft,
    Event,
    Fenced,
    Reservation,
    RunRecord,
    RunRef,
    RunSpec,
    Terminal,
    ThreadRecord,
    Written,
)  # fmt: skip

LUA = Path(__file__).with_name("lua")
IDEMPOTENCY_KEPT = timedelta(hours=48)
TOMBSTONE_KEPT = timedelta(hours=1)
# How long accepting may take between the reservation and the run record; the sweeper waits longer before it gives one up.
ACCEPT_WITHIN_MS = 5_000
FORGET_AFTER_MS = 15_000
LOOK_AFTER_MS = 1_000
# A replica tells once a second how far its disk is, and at once whoever asks: but what it answers to a WAITAOF that comes with the
# write is from before its fsync. So a WAIT goes first; the replica has synced what it tells of there, and the WAITAOF behind it asks
# again. That takes milliseconds; alone, WAITAOF took most of a second. Its bound is longer than the second, should the WAIT fail.
REPLICA_WAIT_MS = 500
REPLICA_SYNC_MS = 1_200
# A refusal of the store to write is no defect of ours and goes away: memory full, disk full, too few replicas.
_REFUSALS = ("OOM", "MISCONF", "NOREPLICAS", "READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN")
SHARD = "{w0}"
log = structlog.get_logger("bulkhead.store")


class Store:
    """RunStore on Valkey."""

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0) -> None:
        """`instance` names this process; `replicas` must have a durable write on disk before it counts."""
        self._client = client
        self._instance = instance
        self._replicas = replicas
        # One library for all, so that one pipeline a loop tick carries everything.
        self._library = Library(client, *(LUA / f"{name}.lua" for name in ("tenant", "work", "thread", "run", "outbox")))

    async def load(self) -> None:
        """As RunStore.load."""
        await self._library.load()

    async def ping(self) -> bool:
        """As RunStore.ping."""
        return await ping(self._client)

    async def _ask(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except UNAVAILABLE as error:
            log.warning("store_unavailable", error=type(error).__name__)
            raise store_unavailable() from error
        except ResponseError as error:
            message = str(error)
            if message.startswith("FENCED"):
                raise Fenced(message) from None
            if message.startswith(_REFUSALS):
                raise store_unavailable() from error
            raise

    async def _durable(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """A call that counts only when it is on disk, here and on as many replicas as are asked for."""
        if not self._replicas:
            return await self._ask(self._library.batched(name, keys, args))

        async def with_replicas() -> Any:
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command(*self._library.command(name, keys, args))
                pipeline.execute_command("WAIT", self._replicas, REPLICA_WAIT_MS)
                pipeline.execute_command("WAITAOF", 1, self._replicas, REPLICA_SYNC_MS)
                answer, _, acknowledged = await pipeline.execute(raise_on_error=False)
            if isinstance(answer, ResponseError) and "Function not found" in str(answer):
                await self._library.load()
                return await with_replicas()
            for value in (answer, acknowledged):
                if isinstance(value, Exception):
                    raise value
            if int(acknowledged[1]) < self._replicas:
                raise Overloaded("too few replicas of the state store took the write", reason="STORE_UNAVAILABLE", retry_after_s=1.0)
            return answer

        return await self._ask(with_replicas())

    # --- accepting ---

    async def reserve(self, ref: RunRef, user: str, slots: int, key: str, print_: str) -> Reservation:
        """As RunStore.reserve."""
        keys = _tenant_keys(ref.tenant, ref.run_id, user, key)
        args = [ref.run_id, ref.thread_id, user, slots, print_ if key else "", int(IDEMPOTENCY_KEPT.total_seconds() * 1000)]
        # The sweeper knows of the run before anything else does: whatever is left half-done is found.
        note = self._ask(self._library.batched("work_note_v1", [f"work:{SHARD}:live"], [LOOK_AFTER_MS, ref.encode(), "LT"]))
        _, answer = await asyncio.gather(note, self._ask(self._library.batched("tenant_reserve_v1", keys, args)))
        verdict, run_id, thread_id, cancelled, now = answer
        return Reservation(text(verdict), text(run_id), text(thread_id), text(cancelled) == "1", int(now) + ACCEPT_WITHIN_MS)

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
    ) -> Accepted:
        """As RunStore.accept."""
        queued, cancelled = events
        args = [
            ref.tenant, user, ref.thread_id, ref.run_id, orjson.dumps(spec.as_dict()), track, "1" if spec.append_only else "0",
            "1" if reservation.cancelled else "0", reservation.not_after_ms, trace_id, channel_of(ref), self._instance, queued,
            cancelled, self._instance if own_for_s else "", int(own_for_s * 1000),
        ]  # fmt: skip
        verdict, *rest = await self._durable("thread_accept_v1", _thread_keys(ref), args)
        if not rest:
            return Accepted(text(verdict))
        fields, first, last, now, status, undelivered = rest
        written = Written(int(first), int(last), int(now), "")
        record = run_record(fields) if fields else _accepted(ref, spec, track, text(status), written, cancelled)
        return Accepted(text(verdict), record, written, [text(u) for u in undelivered])

    async def save_definition(self, digest: str, definition: bytes) -> None:
        """As RunStore.save_definition."""
        await self._ask(self._client.set(f"agent:{{{digest}}}", definition, nx=True))

    async def definition(self, digest: str) -> bytes | None:
        """As RunStore.definition."""
        return await self._ask(self._client.get(f"agent:{{{digest}}}"))

    # --- owning ---

    async def claim(self, ref: RunRef, lease_s: float, crash_budget: int) -> Claim:
        """As RunStore.claim."""
        args = [ref.run_id, self._instance, int(lease_s * 1000), crash_budget, channel_of(ref), self._instance]
        verdict, *rest = await self._durable("run_claim_v1", _thread_keys(ref), args)
        verdict = text(verdict)
        if not rest:
            return Claim(verdict)
        fields, messages, undelivered, first, last, now, following = rest
        record = run_record(fields) if fields else None
        return Claim(verdict, record, messages, [text(u) for u in undelivered], Written(int(first), int(last), int(now), text(following)))

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
    ) -> Written:
        """As RunStore.write."""
        args: list[Any] = [epoch, number, ref.run_id, trace_id, channel_of(ref), self._instance, mode, state, len(messages), *messages]
        if terminal is not None:
            args += [terminal.status, terminal.result, terminal.outbox, terminal.event, terminal.data]
        args.append(len(events))
        for event in events:
            args += (event.type, "1" if event.provisional else "0", event.data)
        if mode == "e":
            answer = await self._ask(self._library.batched("run_write_v1", _thread_keys(ref), args))
        else:
            answer = await self._durable("run_write_v1", _thread_keys(ref), args)
        first, last, now, following = answer
        return Written(int(first), int(last), int(now), text(following))

    async def beat(self, ref: RunRef, epoch: int, lease_s: float) -> bool:
        """As RunStore.beat."""
        answer = await self._ask(self._library.batched("run_beat_v1", [_thread_keys(ref)[2]], [epoch, int(lease_s * 1000)]))
        if int(answer) < 0:
            raise Fenced("the run has another owner")
        return int(answer) == 1

    # --- queue ---

    async def wake(self, ref: RunRef, track: str, priority: float, look_in_s: float = 1.0) -> None:
        """As RunStore.wake."""
        keys = [f"work:{SHARD}:live", f"work:{SHARD}:ready:{track}"]
        await self._ask(self._library.batched("work_wake_v1", keys, [int(look_in_s * 1000), ref.encode(), priority]))

    async def next_ready(self, track: str, wait_s: float) -> RunRef | None:
        """As RunStore.next_ready."""
        answer = await self._ask(self._client.bzpopmin([f"work:{SHARD}:ready:{track}"], timeout=wait_s))
        return RunRef.decode(text(answer[1])) if answer else None

    async def note(self, ref: RunRef, look_in_s: float, *, sooner: bool = False) -> None:
        """As RunStore.note."""
        args = [int(look_in_s * 1000), ref.encode(), *(["LT"] if sooner else [])]
        await self._ask(self._library.batched("work_note_v1", [f"work:{SHARD}:live"], args))

    async def due(self, most: int, again_in_s: float) -> list[RunRef]:
        """As RunStore.due."""
        found = await self._ask(self._library.call("work_due_v1", [f"work:{SHARD}:live"], [most, int(again_in_s * 1000)]))
        return [RunRef.decode(text(reference)) for reference in found]

    async def settle(self, ref: RunRef) -> None:
        """As RunStore.settle."""
        forget = self._ask(self._library.batched("work_settle_v1", [f"work:{SHARD}:live"], [ref.encode()]))
        await asyncio.gather(self.release_slot(ref), forget)

    async def release_slot(self, ref: RunRef) -> None:
        """As RunStore.release_slot."""
        await self._ask(self._library.batched("tenant_release_v1", [f"tn:{{{_quoted(ref.tenant)}}}:slots"], [ref.run_id]))

    async def forget(self, ref: RunRef) -> bool:
        """As RunStore.forget."""
        keys = [_lookup_key(ref.tenant, ref.run_id), f"tn:{{{_quoted(ref.tenant)}}}:slots"]
        if not int(await self._ask(self._library.call("tenant_forget_v1", keys, [ref.run_id, FORGET_AFTER_MS, ref.thread_id]))):
            return False
        await self._ask(self._client.zrem(f"work:{SHARD}:live", ref.encode()))
        return True

    async def inspect(self, ref: RunRef) -> tuple[str, int, str, int, int, int, str]:
        """As RunStore.inspect."""
        keys = _thread_keys(ref)
        answer = await self._ask(self._library.batched("run_inspect_v1", [keys[2], keys[3], keys[4]], [ref.run_id]))
        state, left, track, queued, schema, created, head = answer
        return text(state), int(left), text(track), int(queued), int(schema), int(created), text(head)

    async def outbox_claim(self, ref: RunRef, lease_s: float) -> tuple[bytes, int] | None:
        """As RunStore.outbox_claim."""
        keys = _thread_keys(ref)
        answer = await self._ask(self._library.batched("run_outbox_claim_v1", [keys[2], keys[4]], [ref.run_id, int(lease_s * 1000)]))
        return (answer[0], int(answer[1])) if answer else None

    async def outbox_done(self, ref: RunRef, delivered: bool) -> None:
        """As RunStore.outbox_done."""
        keys = _thread_keys(ref)
        await self._ask(self._library.batched("run_outbox_done_v1", [keys[2], keys[4]], [ref.run_id, "1" if delivered else "0"]))

    async def outbox_waiting(self, ref: RunRef) -> list[str]:
        """As RunStore.outbox_waiting."""
        return [text(run_id) for run_id in await self._ask(self._client.hkeys(_thread_keys(ref)[4]))]

    async def outbox_attempts(self, ref: RunRef) -> int:
        """As RunStore.outbox_attempts."""
        return int(await self._ask(self._client.hget(_thread_keys(ref)[2], "outbox_attempts")) or 0)

    # --- reading and asking ---

    async def open_thread(self, tenant: str, user: str, thread_id: str, metadata: Mapping[str, str]) -> ThreadRecord | None:
        """As RunStore.open_thread."""
        prefix = f"tn:{{{_quoted(tenant)}}}"
        await self._ask(self._library.batched("tenant_list_thread_v1", [f"{prefix}:threads:{_quoted(user)}", f"{prefix}:n"], [thread_id]))
        key = _thread_keys(RunRef(tenant, thread_id, "-"))[0]
        args = [tenant, user, thread_id, orjson.dumps(dict(metadata))]
        answer = await self._durable("thread_open_v1", [key], args)
        return thread_record(answer[1], user) if answer else None

    async def thread(self, tenant: str, user: str, thread_id: str) -> ThreadRecord | None:
        """As RunStore.thread."""
        fields = await self._ask(self._client.hgetall(_thread_keys(RunRef(tenant, thread_id, "-"))[0]))
        return thread_record(fields, user)

    async def locate(self, tenant: str, user: str, run_id: str) -> RunRef | None:
        """As RunStore.locate."""
        thread_id, owner = await self._ask(self._client.hmget(_lookup_key(tenant, run_id), ["thread", "user"]))
        if thread_id is None or text(owner) != user:
            return None
        return RunRef(tenant, text(thread_id), run_id)

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        fields = await self._ask(self._client.hgetall(_thread_keys(ref)[2]))
        return run_record(fields)

    async def runs(self, refs: Sequence[RunRef]) -> list[RunRecord]:
        """As RunStore.runs."""
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hgetall(_thread_keys(ref)[2])
        found = [run_record(fields) for fields in await self._ask(pipeline.execute())]
        return [record for record in found if record is not None]

    async def threads(self, tenant: str, user: str, thread_ids: Sequence[str]) -> list[ThreadRecord]:
        """As RunStore.threads."""
        pipeline = self._client.pipeline(transaction=False)
        for thread_id in thread_ids:
            pipeline.hgetall(_thread_keys(RunRef(tenant, thread_id, "-"))[0])
        found = [thread_record(fields, user) for fields in await self._ask(pipeline.execute())]
        return [record for record in found if record is not None]

    async def list_members(self, kind: str, tenant: str, user: str, before: int, size: int, thread_id: str = "") -> list[tuple[str, int]]:
        """As RunStore.list_members."""
        user_list = f"tn:{{{_quoted(tenant)}}}:{kind}:{_quoted(user)}"
        key = _thread_keys(RunRef(tenant, thread_id, "-"))[6] if kind == "thread" else user_list
        top = f"({before}" if before else "+inf"
        found = await self._ask(self._client.zrevrangebyscore(key, top, "-inf", start=0, num=size, withscores=True))
        return [(text(member), int(score)) for member, score in found]

    async def request_cancel(self, tenant: str, user: str, run_id: str) -> str | None:
        """As RunStore.request_cancel."""
        answer = await self._ask(
            self._library.call("tenant_cancel_v1", [_lookup_key(tenant, run_id)], [user, int(TOMBSTONE_KEPT.total_seconds() * 1000)])
        )
        return None if answer is None else text(answer)

    async def cancel(self, ref: RunRef, trace_id: str, data: bytes, reason: str) -> tuple[str, Written]:
        """As RunStore.cancel."""
        kept_ms = int(TOMBSTONE_KEPT.total_seconds() * 1000)
        args = [ref.run_id, channel_of(ref), self._instance, trace_id, OWNER_CHANNEL, data, kept_ms, reason, ref.encode()]
        answer = await self._durable("run_cancel_v1", _thread_keys(ref), args)
        status, last, now, following, wrote = answer
        return text(status), Written(int(last) if int(wrote) else 0, int(last), int(now), text(following))

    async def read(self, ref: RunRef, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """As RunStore.read."""
        keys = _thread_keys(ref)
        args = [after_seq, most, "1" if from_run else "0"]
        last, first, terminal, entries = await self._ask(self._library.batched("thread_read_v1", keys[:3], args))
        return int(last), int(first), int(terminal), [_event(ref.thread_id, entry) for entry in entries]

    async def last_seqs(self, refs: Sequence[RunRef]) -> list[int]:
        """As RunStore.last_seqs."""
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hget(_thread_keys(ref)[0], "seq")
        return [int(value or 0) for value in await self._ask(pipeline.execute())]


OWNER_CHANNEL = "owner:"


def channel_of(ref: RunRef) -> str:
    """Channel on which appends to the thread are told."""
    return f"thread:{_quoted(ref.tenant)}/{ref.thread_id}"


@lru_cache(maxsize=1024)
def _quoted(text_: str) -> str:
    return quote(text_, safe="")


def _lookup_key(tenant: str, run_id: str) -> str:
    return f"tn:{{{_quoted(tenant)}}}:run:{run_id}"


def _tenant_keys(tenant: str, run_id: str, user: str, key: str) -> list[str]:
    prefix, user = f"tn:{{{_quoted(tenant)}}}", _quoted(user)
    # Of each user their own: the same words with the same simple key must not lead one to another's run.
    idem = hashlib.sha256(f"{user}/{key}".encode()).hexdigest() if key else "-"
    return [f"{prefix}:run:{run_id}", f"{prefix}:slots", f"{prefix}:idem:CreateRun:{idem}", f"{prefix}:runs:{user}",
            f"{prefix}:threads:{user}", f"{prefix}:n"]  # fmt: skip


def _thread_keys(ref: RunRef) -> list[str]:
    prefix = f"t:{{{_quoted(ref.tenant)}/{ref.thread_id}}}"
    run = f"{prefix}:run:{ref.run_id}"
    return [f"{prefix}:meta", f"{prefix}:log", run, f"{prefix}:pending", f"{prefix}:outbox", f"{run}:messages", f"{prefix}:runs"]


def _accepted(ref: RunRef, spec: RunSpec, track: str, status: str, written: Written, cancelled: bytes) -> RunRecord:
    """The record that was just written; reading it back would tell nothing new."""
    ended, owned, at = status == "cancelled", status == "running", written.at_ms
    return RunRecord(
        ref.run_id, spec, status, epoch=int(owned), attempt=int(owned), cancel_requested=ended, created_ms=at,
        started_ms=at if owned else 0, ended_ms=at if ended else 0, first_seq=written.first_seq,
        terminal_seq=written.last_seq if ended else 0, track=track, result=orjson.loads(cancelled) if ended else {}, state={},
        provisional_from=0,
    )  # fmt: skip


def _event(thread_id: str, entry: list) -> Event:
    found = entry[1]
    values = {found[i]: found[i + 1] for i in range(0, len(found), 2)}
    return Event(
        seq=int(entry[0].split(b"-")[0]), at_ms=int(values[b"m"]), thread_id=thread_id, run_id=values[b"r"].decode(),
        attempt=int(values[b"a"]), type=values[b"y"].decode(), data=values[b"d"], provisional=values[b"p"] == b"1",
        trace_id=values[b"t"].decode(), schema_version=int(values[b"v"]),
    )  # fmt: skip
