"""The half of the store that reads: threads, runs, lists, the log; and what a caller asks of a run."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import orjson

from services.common.errors import Gone, Overloaded
from services.orchestrator.adapters.decode import run_record, text, thread_record
from services.orchestrator.adapters.sealing import EVENT
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import OWNER_CHANNEL, channel_of, erasing_key, lookup_key, quoted, segments_key, thread_keys
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.records import Event, RunRecord, RunRef, ThreadRecord, Written
from services.orchestrator.segments import Segment, SegmentStore, damaged, seq_of, unpack

TOMBSTONE_KEPT = timedelta(hours=1)


class ReadingStore(StoreBase):
    """Threads, runs and their log, and asking for a run's end."""

    # Where the front of a log may have gone; None where nothing is ever moved.
    segments: SegmentStore | None = None

    async def open_thread(self, tenant: str, user: str, thread_id: str, metadata: Mapping[str, str]) -> ThreadRecord | None:
        """As RunStore.open_thread."""
        prefix = f"tn:{{{quoted(tenant)}}}"
        keys = [f"{prefix}:threads:{quoted(user)}", f"{prefix}:n", erasing_key(tenant)]
        if int(await self._ask(self._library.batched("tenant_list_thread_v1", keys, [thread_id, user]))) < 0:
            raise being_erased()
        key = thread_keys(RunRef(tenant, thread_id, "-"))[0]
        args = [tenant, user, thread_id, orjson.dumps(dict(metadata))]
        answer = await self._durable("thread_open_v1", [key], args)
        return thread_record(answer[1], user) if answer else None

    async def thread(self, tenant: str, user: str, thread_id: str) -> ThreadRecord | None:
        """As RunStore.thread."""
        fields = await self._ask(self._client.hgetall(thread_keys(RunRef(tenant, thread_id, "-"))[0]))
        return thread_record(fields, user)

    async def user_of(self, ref: RunRef) -> str:
        """Whose thread it is; '' where there is none."""
        user, while_changed = await self._ask(self._client.hmget(thread_keys(ref)[0], ["user", "of"]))
        # A thread that is being changed is named so in the place of its user.
        return text((while_changed if (user or b"").startswith(b"\0") else user) or "")

    async def locate(self, tenant: str, user: str, run_id: str) -> RunRef | None:
        """As RunStore.locate."""
        thread_id, owner = await self._ask(self._client.hmget(lookup_key(tenant, run_id), ["thread", "user"]))
        if thread_id is None or text(owner) != user:
            return None
        return RunRef(tenant, text(thread_id), run_id)

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        fields = await self._ask(self._client.hgetall(thread_keys(ref)[2]))
        return run_record(await self.sealing.fields(ref.tenant, fields))

    async def runs(self, refs: Sequence[RunRef]) -> list[RunRecord]:
        """As RunStore.runs."""
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hgetall(thread_keys(ref)[2])
        answers = zip(refs, await self._ask(pipeline.execute()), strict=True)
        found = [run_record(await self.sealing.fields(ref.tenant, fields)) for ref, fields in answers]
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
        kept_ms = int(TOMBSTONE_KEPT.total_seconds() * 1000)
        answer = await self._durable("tenant_cancel_v1", [lookup_key(tenant, run_id)], [user, kept_ms])
        return None if answer is None else text(answer)

    async def cancel(self, ref: RunRef, trace_id: str, data: bytes, reason: str) -> tuple[str, Written]:
        """As RunStore.cancel."""
        kept_ms = int(TOMBSTONE_KEPT.total_seconds() * 1000)
        (data,) = await self.sealing.seal(ref, [(EVENT, data)])
        args = [ref.run_id, channel_of(ref), self._instance, trace_id, OWNER_CHANNEL, data, kept_ms, reason, ref.encode()]
        answer = await self._noted(ref, self._durable("run_cancel_v1", thread_keys(ref), args))
        status, last, now, following, wrote = answer
        return text(status), Written(int(last) if int(wrote) else 0, int(last), int(now), text(following))

    async def read(self, ref: RunRef, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """As RunStore.read."""
        keys = [*thread_keys(ref)[:3], segments_key(ref)]
        events: list[Event] = []
        missing = ""
        while True:
            args = [after_seq, most - len(events), "1" if from_run else "0"]
            answer = await self._ask(self._library.batched("thread_read_v1", keys, args))
            last, first, terminal, entries, pointers, oldest, after_seq, ahead = answer
            if from_run and not first:
                return int(last), 0, 0, []
            if ahead:
                # The reader was shown what a promotion has lost; here it learns so, and not only with the next event.
                await self._ask(self._library.batched("thread_skip_v1", keys[:2], [channel_of(ref), ""]))
                continue
            if after_seq + 1 < oldest:
                raise Gone(
                    "events this old are no longer kept; begin after oldest_seq - 1", reason="RESUME_GAP",
                    metadata={"oldest_seq": str(int(oldest))},
                )  # fmt: skip
            had = len(events)
            for pointer in pointers:
                segment = Segment.decode(text(pointer))
                content = await self._segment(ref, segment)
                if content is None:
                    # Deleted between the two reads, with what pointed to it; or it is lost.
                    if missing == segment.digest:
                        raise damaged(segment)
                    missing = segment.digest
                    break
                packed = await asyncio.to_thread(unpack, segment, content)
                events += [event_of(ref.thread_id, entry) for entry in packed if seq_of(entry) > after_seq][: most - len(events)]
                after_seq = events[-1].seq
            else:
                events += [event_of(ref.thread_id, entry) for entry in entries]
                if len(events) >= most or len(events) == had or events[-1].seq >= last:
                    await self.sealing.events(ref.tenant, events)
                    return int(last), int(first), int(terminal), events
                after_seq = events[-1].seq

    async def _segment(self, ref: RunRef, segment: Segment) -> bytes | None:
        if self.segments is None:
            raise Overloaded("older events were moved away, and this process was not told where to", reason="SEGMENTS_UNAVAILABLE")
        return await self.segments.get(ref.tenant, ref.thread_id, segment)

    async def last_seqs(self, refs: Sequence[RunRef]) -> list[int]:
        """As RunStore.last_seqs."""
        pipeline = self._client.pipeline(transaction=False)
        for ref in refs:
            pipeline.hget(thread_keys(ref)[0], "seq")
        return [int(value or 0) for value in await self._ask(pipeline.execute())]


def event_of(thread_id: str, entry: list) -> Event:
    """An entry of the log or of a segment."""
    found = entry[1]
    values = {found[i]: found[i + 1] for i in range(0, len(found), 2)}
    return Event(
        seq=int(entry[0].split(b"-")[0]), at_ms=int(values[b"m"]), thread_id=thread_id, run_id=values[b"r"].decode(),
        attempt=int(values[b"a"]), type=values[b"y"].decode(), data=values[b"d"], provisional=values[b"p"] == b"1",
        trace_id=values[b"t"].decode(), schema_version=int(values[b"v"]),
    )  # fmt: skip
