"""Feedback in Valkey: with the run that it is about, and a list of the tenant that leads to it."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import orjson

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import EVENT
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import channel_of, feedback_key, thread_keys
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
