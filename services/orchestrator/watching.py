"""Watching: the event log of a thread or a run from a cursor on, then live; and waiting for a run's end."""

import time
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

import orjson

from services.common.errors import InvalidInput, NotFound, Overloaded
from services.common.identity import Principal
from services.common.rpc import context as call_context
from services.orchestrator.hub import PAGE, RESULTS_AWAY, THREAD_DELETED, Hub, Watch
from services.orchestrator.records import LOG_GAP, TERMINAL_EVENTS, Event, RunRecord, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.settings import Settings
from services.orchestrator.worker import Worker

# A waiting caller is answered this much before its deadline, so that it hears of the run and not of a timeout.
ANSWER_BEFORE_S = 0.25


class Watching:
    """Reads for watchers."""

    def __init__(self, settings: Settings, store: RunStore, hub: Hub, worker: Worker) -> None:
        self._settings, self._store, self._hub, self._worker = settings, store, hub, worker

    async def locate(self, principal: Principal, run_id: str) -> RunRef:
        """Where a run of the caller is. Raises NotFound."""
        ref = self._worker.find(principal, run_id) or await self._store.locate(principal.tenant, principal.user, run_id)
        if ref is None:
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        return ref

    async def record(self, ref: RunRef) -> RunRecord:
        """A run record. Raises NotFound."""
        record = await self._store.run(ref)
        if record is None:
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        return record

    async def wait(self, principal: Principal, run_id: str) -> RunRecord:
        """The run when it has ended, or as it is shortly before the call's deadline or when this replica goes away."""
        ref = await self.locate(principal, run_id)
        record = await self.record(ref)
        if record.ended:
            return record
        context = call_context.current()
        left = context.remaining_s() if context is not None else None
        until = time.monotonic() + (self._settings.watch_max_age_s if left is None else left - ANSWER_BEFORE_S)
        watch = await self._hub.open(ref, self._worker.owns(ref))
        try:
            # It may have ended before the watch began.
            _, _, terminal, _ = await self._store.read(ref, 0, 1, True)
            cursor = 0
            while not terminal and (rest := until - time.monotonic()) > 0:
                try:
                    await watch.wait(min(rest, self._settings.watch_heartbeat_s))
                except Overloaded as error:
                    if error.reason != RESULTS_AWAY:
                        raise
                    # What the run was given is not what is waited for, and its end is looked for below.
                    watch.error = None
                if watch.events:
                    while watch.events:
                        event = watch.events.popleft()
                        ends = event.run_id == ref.run_id and event.type in TERMINAL_EVENTS
                        terminal = terminal or ends or event.type == THREAD_DELETED
                else:
                    _, _, terminal, _ = await self._store.read(ref, cursor, 1, True)
        except Overloaded as error:
            if error.reason not in ("DRAINING", "WATCHER_TOO_SLOW"):
                raise
        finally:
            await self._hub.close(ref, watch)
        return await self.record(ref)

    async def events(
        self, ref: RunRef, *, of_run: bool, after_seq: int, types: Collection[str], replay_only: bool
    ) -> AsyncGenerator[list[Event] | int]:
        """Events after `after_seq`, those that are there together in one list; an integer is the thread's last number, as a
        sign of life. Ends after a run's terminal event.

        Raises InvalidInput for a cursor from the future, Overloaded (resumable) when this replica goes away.
        """
        watch = await self._hub.open(ref, of_run and self._worker.owns(ref)) if not replay_only else Watch()
        try:
            async with aclosing(self._follow(ref, watch, of_run, after_seq, replay_only)) as events:
                async for batch in events:
                    if isinstance(batch, int):
                        yield batch
                        continue
                    deleted = any(event.type == THREAD_DELETED for event in batch)
                    if of_run:
                        batch = _of_run(batch, ref.run_id)
                    # Whoever was shown something hears that it is void, whatever was asked for.
                    if chosen := [event for event in batch if not types or event.type in types or event.type == LOG_GAP]:
                        yield chosen
                    if deleted or (of_run and batch and batch[-1].type in TERMINAL_EVENTS):
                        return
        finally:
            await self._hub.close(ref, watch)

    async def _follow(self, ref: RunRef, watch: Watch, of_run: bool, cursor: int, replay_only: bool) -> AsyncGenerator[list[Event] | int]:
        """The log after `cursor` without gap or repetition."""
        began = time.monotonic()
        last, first, terminal, events = await self._store.read(ref, cursor, PAGE, of_run)
        if of_run and not first:
            # Reserved and never accepted: the thread may be another user's, of which not even the length is told.
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        if cursor > last:
            raise InvalidInput("after_seq lies beyond the last event", reason="CURSOR_FROM_THE_FUTURE", metadata={"last_seq": str(last)})
        if of_run:
            if terminal and cursor >= terminal:
                return
            cursor = max(cursor, first - 1)
        end = last
        while True:
            shown = [event for event in events if event.seq <= end] if replay_only else events
            if shown:
                cursor = shown[-1].seq
                yield shown
            if replay_only and (cursor >= end or len(shown) < len(events)):
                return
            if len(events) < PAGE:
                break
            _, _, _, events = await self._store.read(ref, cursor, PAGE, False)
        self._hub.at_least(ref, cursor)
        heard = time.monotonic()
        while True:
            now = time.monotonic()
            if now - began > self._settings.watch_max_age_s:
                raise Overloaded("the watch has reached its age; resume after the last event", reason="WATCH_EXPIRED", retry_after_s=0.0)
            if not await watch.wait(max(0.01, heard + self._settings.watch_heartbeat_s - now)):
                heard = time.monotonic()
                yield cursor
                continue
            heard = time.monotonic()
            batch: list[Event] = []
            while watch.events:
                event = watch.events.popleft()
                while event.seq > cursor + 1:
                    missed = (await self._store.read(ref, cursor, min(PAGE, event.seq - 1 - cursor), False))[3]
                    if not missed:
                        if _skips(event, cursor):
                            break
                        # It was read from a primary that is being replaced, which has not what it was told of: to go on here would leave
                        # that out for good.
                        raise Overloaded("the log is behind what was told of it; resume", reason="LOG_BEHIND", retry_after_s=0.1)
                    batch += missed
                    cursor = missed[-1].seq
                if event.seq > cursor:
                    cursor = event.seq
                    batch.append(event)
            if batch:
                yield batch


def _skips(event: Event, cursor: int) -> bool:
    """Whether nothing stands between `cursor` and the event, though numbers do: a promotion skips some, and a deleted log has none."""
    return event.type == THREAD_DELETED or (event.type == LOG_GAP and int(orjson.loads(event.data)["from_seq"]) <= cursor + 1)


def _of_run(batch: list[Event], run_id: str) -> list[Event]:
    """What a watcher of the run is shown of it: a promotion after the run's end is nothing of the run's."""
    shown = []
    for event in batch:
        if event.run_id == run_id or event.type == LOG_GAP:
            shown.append(event)
        if event.run_id == run_id and event.type in TERMINAL_EVENTS:
            break
    return shown
