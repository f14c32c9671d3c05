"""Feedback in Valkey: with the run that it is about, and a list of the tenant that leads to it."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import orjson

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import EVENT
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import channel_of, feedback_key, thread_keys
from services.orchestrator.feedback import Listed
from services.orchestrator.records import RunRef

FEEDBACK = "feedback"
# Of the tenant's list; a run's own feedback stays for as long as the run.
LISTED_FOR = timedelta(days=400)
MOST_LISTED = 1_000_000
_PREFIX = b"feedback:"


class FeedbackStore(StoreBase):
    """FeedbackStore on Valkey."""

    async def add_feedback(
        self, ref: RunRef, feedback_id: str, print_: str, record: bytes, data: bytes, most: int, trace_id: str
    ) -> tuple[str, int]:
        """As feedback.FeedbackStore.add_feedback."""
        record, data = await self.sealing.seal(ref, [(FEEDBACK, record), (EVENT, data)])
        # Listed first: what is listed and not there is passed over, what is there and not listed would never be counted.
        now_ms, key = int(time.time() * 1000), feedback_key(ref.tenant)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zadd(key, {f"{ref.thread_id}/{ref.run_id}/{feedback_id}": now_ms}, nx=True)
        pipeline.zremrangebyscore(key, "-inf", now_ms - LISTED_FOR.total_seconds() * 1000)
        pipeline.zremrangebyrank(key, 0, -MOST_LISTED - 1)
        await self._ask(pipeline.execute())
        args = [feedback_id, print_, record, most, trace_id, channel_of(ref), self._instance, data]
        verdict, seq, _ = await self._durable("run_feedback_v1", thread_keys(ref)[:3], args)
        return text(verdict), int(seq)

    async def feedback(self, ref: RunRef) -> list[Mapping[str, Any]]:
        """As feedback.FeedbackStore.feedback."""
        fields = await self._ask(self._client.hgetall(thread_keys(ref)[2]))
        entries = sorted((int(raw.split(b" ", 1)[0]), raw) for name, raw in fields.items() if name.startswith(_PREFIX))
        found = []
        for _, raw in entries:
            opened = await self.sealing.open(ref.tenant, FEEDBACK, raw.split(b" ", 2)[2])
            if opened is not None:
                found.append(orjson.loads(opened))
        return found

    async def listed_feedback(self, tenant: str, since_ms: int, before_ms: int, skip: int, most: int) -> list[Listed]:
        """As feedback.FeedbackStore.listed_feedback."""
        found = await self._ask(
            self._client.zrevrangebyscore(
                feedback_key(tenant), before_ms or "+inf", since_ms or "-inf", start=skip, num=most, withscores=True
            )
        )
        return [Listed(RunRef(tenant, *names[:2]), names[2], int(at)) for member, at in found if (names := text(member).split("/"))]

    async def feedback_of(self, ref: RunRef) -> list[Listed]:
        """As feedback.FeedbackStore.feedback_of."""
        names = await self._ask(self._client.hkeys(thread_keys(ref)[2]))
        ids = [text(name.removeprefix(_PREFIX)) for name in names if name.startswith(_PREFIX)]
        if not ids:
            return []
        at = await self._ask(self._client.zmscore(feedback_key(ref.tenant), [f"{ref.thread_id}/{ref.run_id}/{one}" for one in ids]))
        found = [Listed(ref, one, int(ms or 1)) for one, ms in zip(ids, at, strict=True)]
        return sorted(found, key=lambda listed: (listed.at_ms, listed.feedback_id), reverse=True)

    async def feedback_entries(self, listed: Sequence[Listed]) -> list[Mapping[str, Any] | None]:
        """As feedback.FeedbackStore.feedback_entries."""
        pipeline = self._client.pipeline(transaction=False)
        for one in listed:
            pipeline.hget(thread_keys(one.ref)[2], _PREFIX + one.feedback_id.encode())
        found: list[Mapping[str, Any] | None] = []
        for one, raw in zip(listed, await self._ask(pipeline.execute()) if listed else [], strict=True):
            opened = await self.sealing.open(one.ref.tenant, FEEDBACK, raw.split(b" ", 2)[2]) if raw else None
            found.append(orjson.loads(opened) if opened is not None else None)
        return found
