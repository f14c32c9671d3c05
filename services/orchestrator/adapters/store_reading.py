"""The half of the store that reads: threads, runs, lists, the log; and what a caller asks of a run."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import orjson

from services.common.errors import Overloaded
from services.orchestrator.adapters.decode import run_record, text, thread_record
from services.orchestrator.adapters.result_blobs import not_told_where
from services.orchestrator.adapters.sealing import COMMAND, EVENT
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import (
    OWNER_CHANNEL,
    channel_of,
    counter_key,
    erasing_key,
    listed_key,
    lookup_key,
    segments_key,
    thread_keys,
)
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.records import Event, RunRecord, RunRef, ThreadRecord, Written
from services.orchestrator.results import COMPLETED, stored_in
from services.orchestrator.segments import Segment, SegmentStore, damaged, no_longer_kept, seq_of, unpack

TOMBSTONE_KEPT = timedelta(hours=1)
# Events that one read takes which looks for results.
RESULTS_READ = 256
# What a thread's record is made of. Beside it stands what only changes of the thread need, and that may be long.
THREAD = ("user", "of", "thread", "created_ms", "seq", "metadata", "parent", "forked_at", "expires_ms", "oldest_seq")


class ReadingStore(StoreBase):
    """Threads, runs and their log, and asking for a run's end."""

    # Where the front of a log may have gone; None where nothing is ever moved.
    segments: SegmentStore | None = None

    async def open_thread(self, tenant: str, user: str, thread_id: str, metadata: Mapping[str, str]) -> ThreadRecord | None:
        """As RunStore.open_thread."""
        keys = [listed_key(tenant, "threads", user), counter_key(tenant), erasing_key(tenant)]
        if int(await self._ask(self._library.batched("tenant_list_thread_v1", keys, [thread_id, user]))) < 0:
            raise being_erased()
        key = thread_keys(RunRef(tenant, thread_id, "-"))[0]
        args = [tenant, user, thread_id, orjson.dumps(dict(metadata)), *THREAD]
        answer = await self._durable("thread_open_v1", [key], args)
        return _thread(answer[1], user) if answer else None

    async def thread(self, tenant: str, user: str, thread_id: str) -> ThreadRecord | None:
        """As RunStore.thread."""
        return _thread(await self._ask(self._client.hmget(thread_keys(RunRef(tenant, thread_id, "-"))[0], THREAD)), user)

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
            pipeline.hmget(thread_keys(RunRef(tenant, thread_id, "-"))[0], THREAD)
        found = [_thread(values, user) for values in await self._ask(pipeline.execute())]
        return [record for record in found if record is not None]

    async def list_members(self, kind: str, tenant: str, user: str, before: int, size: int, thread_id: str = "") -> list[tuple[str, int]]:
        """As RunStore.list_members."""
        key = thread_keys(RunRef(tenant, thread_id, "-"))[6] if kind == "thread" else listed_key(tenant, kind, user)
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
        data, why = await self.sealing.seal(ref, [(EVENT, data), (COMMAND, reason.encode())])
        args = [ref.run_id, channel_of(ref), self._instance, trace_id, OWNER_CHANNEL, data, kept_ms, why, ref.encode()]
        answer = await self._noted(ref, self._durable("run_cancel_v1", thread_keys(ref), args))
        status, last, now, following, wrote = answer
        return text(status), Written(int(last) if int(wrote) else 0, int(last), int(now), text(following))

    async def read(self, ref: RunRef, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """As RunStore.read."""
        found = await self._read(ref, after_seq, most, from_run)
        if not await self._whole(ref, found[3], last_try=False):
            # Deleted between the two reads, with what pointed to it; or it is lost.
            found = await self._read(ref, after_seq, most, from_run)
            await self._whole(ref, found[3], last_try=True)
        return found

    async def whole(self, ref: RunRef, messages: Sequence[bytes]) -> Sequence[bytes]:
        """As RunStore.whole."""
        if not any(map(stored_in, messages)):
            return messages
        if self.results is None:
            raise not_told_where()
        return await self.results.messages(ref, messages)

    async def stored_results(self, ref: RunRef, first_seq: int, last_seq: int) -> set[str]:
        """As ResultArchive.stored_results."""
        found: set[str] = set()
        while first_seq <= last_seq:
            _, _, _, events = await self._read(ref, first_seq - 1, RESULTS_READ, False)
            if not events:
                break
            for event in events:
                if event.run_id == ref.run_id and event.type == COMPLETED and (stored := stored_in(event.data)) is not None:
                    found.add(stored.name(ref.run_id))
            first_seq = events[-1].seq + 1
        return found

    async def _whole(self, ref: RunRef, events: Sequence[Event], *, last_try: bool) -> bool:
        if not any(event.type == COMPLETED and stored_in(event.data) for event in events):
            return True
        if self.results is None:
            raise not_told_where()
        return await self.results.bring_back(ref, events, last_try=last_try)

    async def _read(self, ref: RunRef, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """As `read`, with what stands for results that were put aside."""
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
                raise no_longer_kept(int(oldest))
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


def _thread(values: Sequence[bytes | None], user: str) -> ThreadRecord | None:
    return thread_record({name.encode(): value for name, value in zip(THREAD, values, strict=True) if value is not None}, user)


def event_of(thread_id: str, entry: Sequence[Any]) -> Event:
    """An entry of the log or of a segment."""
    found = entry[1]
    values = {found[i]: found[i + 1] for i in range(0, len(found), 2)}
    return Event(
        seq=int(entry[0].split(b"-")[0]), at_ms=int(values[b"m"]), thread_id=thread_id, run_id=values[b"r"].decode(),
        attempt=int(values[b"a"]), type=values[b"y"].decode(), data=values[b"d"], provisional=values[b"p"] == b"1",
        trace_id=values[b"t"].decode(), schema_version=int(values[b"v"]),
    )  # fmt: skip
