"""The half of the store that reads: threads, runs, lists, the log; and what a caller asks of a run."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import orjson

from services.orchestrator.adapters.decode import run_record, text, thread_record
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import OWNER_CHANNEL, channel_of, lookup_key, quoted, thread_keys
from services.orchestrator.records import Event, RunRecord, RunRef, ThreadRecord, Written

TOMBSTONE_KEPT = timedelta(hours=1)


class ReadingStore(StoreBase):
    """Threads, runs and their log, and asking for a run's end."""

    async def open_thread(self, tenant: str, user: str, thread_id: str, metadata: Mapping[str, str]) -> ThreadRecord | None:
        """As RunStore.open_thread."""
        prefix = f"tn:{{{quoted(tenant)}}}"
        await self._ask(self._library.batched("tenant_list_thread_v1", [f"{prefix}:threads:{quoted(user)}", f"{prefix}:n"], [thread_id]))
        key = thread_keys(RunRef(tenant, thread_id, "-"))[0]
        args = [tenant, user, thread_id, orjson.dumps(dict(metadata))]
        answer = await self._durable("thread_open_v1", [key], args)
        return thread_record(answer[1], user) if answer else None

    async def thread(self, tenant: str, user: str, thread_id: str) -> ThreadRecord | None:
        """As RunStore.thread."""
        fields = await self._ask(self._client.hgetall(thread_keys(RunRef(tenant, thread_id, "-"))[0]))
        return thread_record(fields, user)

    async def locate(self, tenant: str, user: str, run_id: str) -> RunRef | None:
        """As RunStore.locate."""
        thread_id, owner = await self._ask(self._client.hmget(lookup_key(tenant, run_id), ["thread", "user"]))
        if thread_id is None or text(owner) != user:
            return None
        return RunRef(tenant, text(thread_id), run_id)

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        fields = await self._ask(self._client.hgetall(thread_keys(ref)[2]))
        return run_record(fields)

    async def runs(self, refs: Sequence[RunRef]) -> list[RunRecord]:
        """As RunStore.runs."""
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hgetall(thread_keys(ref)[2])
        found = [run_record(fields) for fields in await self._ask(pipeline.execute())]
        return [record for record in found if record is not None]

    async def threads(self, tenant: str, user: str, thread_ids: Sequence[str]) -> list[ThreadRecord]:
        """As RunStore.threads."""
        pipeline = self._client.pipeline(transaction=False)
        for thread_id in thread_ids:
            pipeline.hgetall(thread_keys(RunRef(tenant, thread_id, "-"))[0])
        found = [thread_record(fields, user) for fields in await self._ask(pipeline.execute())]
        return [record for record in found if record is not None]

    async def list_members(self, kind: str, tenant: str, user: str, before: int, size: int, thread_id: str = "") -> list[tuple[str, int]]:
        """As RunStore.list_members."""
        user_list = f"tn:{{{quoted(tenant)}}}:{kind}:{quoted(user)}"
        key = thread_keys(RunRef(tenant, thread_id, "-"))[6] if kind == "thread" else user_list
        top = f"({before}" if before else "+inf"
        found = await self._ask(self._client.zrevrangebyscore(key, top, "-inf", start=0, num=size, withscores=True))
        return [(text(member), int(score)) for member, score in found]

    async def request_cancel(self, tenant: str, user: str, run_id: str) -> str | None:
        """As RunStore.request_cancel."""
        answer = await self._ask(
            self._library.call("tenant_cancel_v1", [lookup_key(tenant, run_id)], [user, int(TOMBSTONE_KEPT.total_seconds() * 1000)])
        )
        return None if answer is None else text(answer)

    async def cancel(self, ref: RunRef, trace_id: str, data: bytes, reason: str) -> tuple[str, Written]:
        """As RunStore.cancel."""
        kept_ms = int(TOMBSTONE_KEPT.total_seconds() * 1000)
        args = [ref.run_id, channel_of(ref), self._instance, trace_id, OWNER_CHANNEL, data, kept_ms, reason, ref.encode()]
        answer = await self._durable("run_cancel_v1", thread_keys(ref), args)
        status, last, now, following, wrote = answer
        return text(status), Written(int(last) if int(wrote) else 0, int(last), int(now), text(following))

    async def read(self, ref: RunRef, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """As RunStore.read."""
        keys = thread_keys(ref)
        args = [after_seq, most, "1" if from_run else "0"]
        last, first, terminal, entries = await self._ask(self._library.batched("thread_read_v1", keys[:3], args))
        return int(last), int(first), int(terminal), [_event(ref.thread_id, entry) for entry in entries]

    async def last_seqs(self, refs: Sequence[RunRef]) -> list[int]:
        """As RunStore.last_seqs."""
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hget(thread_keys(ref)[0], "seq")
        return [int(value or 0) for value in await self._ask(pipeline.execute())]


def _event(thread_id: str, entry: list) -> Event:
    found = entry[1]
    values = {found[i]: found[i + 1] for i in range(0, len(found), 2)}
    return Event(
        seq=int(entry[0].split(b"-")[0]), at_ms=int(values[b"m"]), thread_id=thread_id, run_id=values[b"r"].decode(),
        attempt=int(values[b"a"]), type=values[b"y"].decode(), data=values[b"d"], provisional=values[b"p"] == b"1",
        trace_id=values[b"t"].decode(), schema_version=int(values[b"v"]),
    )  # fmt: skip
