"""Going back to a checkpoint. The log only grows: an event tells what is no longer part of the conversation, and memory follows before
that event is written, while the thread takes no runs: so no run is ever given what was rolled back."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from services.common.errors import Conflict, Gone, NotFound, Overloaded
from services.common.identity import Principal
from services.orchestrator.hub import Hub
from services.orchestrator.records import RunRecord, RunRef, ThreadRecord
from services.orchestrator.run_store import RunStore
from services.orchestrator.threads.changing import AGAIN_S, NOTED_S, POLL_S, Changing, changing, settled
from services.orchestrator.threads.checkpoints import Asked, Position, log_of, resolve
from services.orchestrator.threads.conversation import LATEST, Conversation, encoded
from services.orchestrator.threads.ports import ThreadStore

END_WITHIN_S = 15.0
# As many as memory takes; what is older left its window long ago.
MOST_FORGOTTEN = 1_000
Turns = Sequence[Mapping[str, Any]]


class RollingBack:
    """Rolls threads back."""

    def __init__(self, store: RunStore, threads: ThreadStore, conversation: Conversation, changing: Changing, hub: Hub) -> None:
        self._store, self._threads, self._conversation, self._changing, self._hub = store, threads, conversation, changing, hub

    async def roll_back(self, principal: Principal, thread_id: str, to: Asked, key: str) -> tuple[ThreadRecord, int]:
        """Goes back; answers the thread and the number of its event `thread_rolled_back`.

        Raises NotFound, InvalidInput and Gone as `resolve`, Conflict (CHECKPOINT_ROLLED_BACK, THREAD_CHANGING), Overloaded; where runs
        take long to end, or memory is away, it is gone on with by the sweeper.
        """
        ref = RunRef(principal.tenant, thread_id, "-")
        record = await self._thread(principal, thread_id)
        at = await resolve(self._store, ref, record.last_seq, to)
        await self._check(ref, at, record.last_seq)
        # Where some of it is no longer kept, or damaged, that refuses here: once begun, the thread would take no run until it is whole.
        left = await self._left(ref, at)
        # Without a key of the caller's one of this call: two that work on it at once must know it for the same rollback.
        rolled_key = _key(principal, key or uuid.uuid4().hex, to)
        not_after_ms = await self._threads.note(ref, NOTED_S)
        job = orjson.dumps({"kind": "rollback", "at": list(at), "principal": principal.as_dict(), "key": rolled_key, "as_of": not_after_ms})
        begun = await self._threads.begin(ref, principal.user, "busy", job, not_after_ms, rolled_key)
        if begun.verdict in ("none", "gone"):
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        if begun.verdict == "late":
            raise Overloaded("rolling the thread back took too long", reason="ROLLBACK_TIMED_OUT", retry_after_s=1.0)
        if begun.verdict == "changing" and orjson.loads(begun.job).get("key") != rolled_key:
            raise changing()
        # The job of an earlier try under this key, where there is one: its checkpoint counts.
        seq = begun.seq if begun.verdict == "done" else await self.work(ref, begun.job, left if begun.verdict == "begun" else None)
        return await self._thread(principal, thread_id), seq

    async def _thread(self, principal: Principal, thread_id: str) -> ThreadRecord:
        record = await self._store.thread(principal.tenant, principal.user, thread_id)
        if record is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        return record

    async def _check(self, ref: RunRef, at: Position, last_seq: int) -> None:
        """Raises Conflict where the checkpoint is no part of the conversation any more: where somebody went back behind it since."""
        if not at.seq:
            return
        async with aclosing(log_of(self._store, ref, at.seq, last_seq)) as pages:
            async for page in pages:
                if any(event.type == "thread_rolled_back" and orjson.loads(event.data)["to_seq"] < at.seq for event in page):
                    raise Conflict("the checkpoint was rolled back before; fork the thread there", reason="CHECKPOINT_ROLLED_BACK")

    async def _left(self, ref: RunRef, at: Position) -> tuple[Turns, Mapping[str, Any]]:
        """The turns and the carry of the conversation at a checkpoint: both are the same whatever comes behind it."""
        state = await self._threads.state(ref)
        if state is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        return await self._conversation.turns(ref, at), await self._conversation.carry(ref, at, state)

    async def work(self, ref: RunRef, raw: bytes, left: tuple[Turns, Mapping[str, Any]] | None = None) -> int:
        """Rolls back, from wherever it was left; answers the event's number. `left` is what it leaves, where that is known already.
        Raises BulkheadError."""
        await self._threads.note(ref, AGAIN_S)
        job = orjson.loads(raw)
        principal, at, as_of = Principal.from_dict(job["principal"]), Position(*job["at"]), job.get("as_of", 0)
        give_up = time.monotonic() + END_WITHIN_S
        while True:
            later = [record for record in await self._end_runs(ref, principal, at) if _after(record, at)]
            turns, carry = left or await self._left(ref, at)
            if turns or later:
                await self._changing.replace_session(ref, principal, turns, [record.run_id for record in later][-MOST_FORGOTTEN:], as_of)
            names = [record.run_id for record in later]
            data = orjson.dumps({"to_seq": at.seq, "run_ids": names[-MOST_FORGOTTEN:], "run_id": at.run_id, "step": at.step})
            verdict, seq = await self._threads.rolled(ref, principal.user, raw, data, encoded(carry), names, job["key"], "")
            if verdict == "done":
                self._hub.noticed(ref, seq)
                state = await self._threads.state(ref)
                left_s = await self._threads.live(ref, 0, 0) if state is not None and state.ttl_ms else -1
                await settled(self._threads, ref, left_s if left_s >= 0 else None)
                return seq
            if verdict == "lost":
                raise changing()
            if time.monotonic() > give_up:
                raise changing()
            # Once more, and with what is different by now.
            left = None
            await asyncio.sleep(POLL_S)
            as_of += 1 if as_of else 0

    async def _behind(self, ref: RunRef, at: Position) -> Sequence[str]:
        """The runs that anything has happened to since the checkpoint, and those that wait for their turn: not the thread's whole past."""
        if not at.seq:
            return await self._threads.run_ids(ref)
        # One that waits for its time or a slot, and of which nothing was heard since, is left alone.
        found = dict.fromkeys(await self._threads.line(ref))
        try:
            async with aclosing(log_of(self._store, ref, at.seq, LATEST)) as pages:
                async for page in pages:
                    found.update(dict.fromkeys(event.run_id for event in page if event.run_id))
        except Gone:
            # Its retention has ended since this began.
            return await self._threads.run_ids(ref)
        return list(found)

    async def _end_runs(self, ref: RunRef, principal: Principal, at: Position) -> list[RunRecord]:
        """Ends all runs but those that were to start later when the checkpoint was passed; answers the records of all that may have
        ended behind it, oldest first."""
        found = await self._changing.records(ref, await self._behind(ref, at))
        records = sorted(found, key=lambda record: record.first_seq)
        waiting, left = set(), []
        for record in records:
            if record.ended:
                continue
            left.append(record.run_id)
            if record.first_seq <= at.seq and await self._changing.held(ref, record):
                waiting.add(record.run_id)
        if not left:
            return records
        if await self._changing.end(
            ref, principal, left, "the thread was rolled back", END_WITHIN_S, lambda record: record.run_id in waiting
        ):
            raise changing()
        by_id = {record.run_id: record for record in await self._changing.records(ref, left)}
        return [by_id.get(record.run_id, record) for record in records]


def _after(record: RunRecord, at: Position) -> bool:
    return record.terminal_seq > at.seq and not record.rolled_back


def _key(principal: Principal, key: str, to: Asked) -> str:
    body = orjson.dumps([principal.user, key, to.seq, to.run_id, to.step, to.beginning])
    return hashlib.sha256(body).hexdigest()
