"""One run as a stream of server-sent AG-UI events: as it stands, then what comes, up to its end or to where it waits for people."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import BulkheadError, Cancelled, DeadlineExceeded, Overloaded
from services.gateway.edge.problems import ag_ui_error
from services.gateway.following import TERMINAL, Follower
from services.gateway.ports import Subject
from services.gateway.surfaces.ag_ui.projection import AgEvent, Projection, custom

CHUNK_BYTES = 64 * 1024
# How soon it is asked again whether a run rests that has asked people something: nothing in the log says so.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 1.0


class RunStream:
    """The frames of one answer. `fresh`: the run begins with this request, so its client has all that came before."""

    def __init__(
        self, follower: Follower, runs: Any, run: pb.Run, projection: Projection, *,
        fresh: bool, parent: str, warnings: Sequence[tuple[str, str, str]],
    ) -> None:  # fmt: skip
        self._follower, self._runs = follower, runs
        self._run, self._subject = run, Subject(run_id=run.run_id)
        self._projection = projection
        self._fresh = fresh
        self._parent = {"parentRunId": parent} if parent else {}
        self._warnings = [custom("warning", {"code": c, "capability_lost": what, "user_message": text}) for c, what, text in warnings]

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The frames. Raises the domain error of a log that cannot be reached."""
        projection = self._projection
        last: pb.Event | None = None
        if self._fresh:
            projection.at_ms = self._run.created_at.ToMilliseconds()
            opening = [projection.started(), projection.state_snapshot()]
        else:
            last = await catch_up(self._follower, self._run, projection)
            opening = projection.prelude()
        opening[0] = {**opening[0], **self._parent}
        yield self._encoded([*opening, *self._warnings])
        if last is not None:
            yield self._encoded(projection.take(last))
            return
        async with aclosing(self._batches()) as batches:
            async for batch in batches:
                chunk = bytearray()
                for event in batch:
                    chunk += self._encoded(await self._taken(event))
                    if len(chunk) >= CHUNK_BYTES:
                        yield bytes(chunk)
                        chunk.clear()
                if chunk:
                    yield bytes(chunk)
                if batch and batch[-1].type in TERMINAL:
                    return
        yield self._encoded(self._projection.paused())

    async def _batches(self) -> AsyncGenerator[Sequence[pb.Event], None]:
        """Events as they come together; ends behind the last one, or where the run rests until people have answered."""
        after = max(self._projection.seq, self._run.first_seq - 1)
        async with aclosing(self._follower.batches(self._subject, after)) as batches:
            coming = asyncio.ensure_future(anext(batches))
            look_s = FIRST_LOOK_S
            try:
                while True:
                    waits = bool(self._projection.open)
                    done, _ = await asyncio.wait({coming}, timeout=look_s if waits else None)
                    if done:
                        yield coming.result()
                        coming, look_s = asyncio.ensure_future(anext(batches)), FIRST_LOOK_S
                    elif await self._rests():
                        return
                    else:
                        look_s = min(look_s * 2, LONGEST_LOOK_S)
            except StopAsyncIteration:
                return
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _rests(self) -> bool:
        """Whether nobody works on the run, and all that it has told is told here."""
        # Whoever is asked may be going away; the question is asked again.
        with suppress(Overloaded, Cancelled, DeadlineExceeded):
            run = (await self._runs.GetRun(pb.GetRunRequest(run_id=self._run.run_id))).run
            # It went to rest with its last events, so these are in the log by now, if not here yet.
            return run.status == pb.RUN_STATUS_WAITING and not await self._told_more()
        return False

    async def _told_more(self) -> bool:
        log = self._follower.batches(self._subject, self._projection.seq, replay_only=True)
        async with aclosing(log) as more:
            async for _ in more:
                return True
        return False

    async def _taken(self, event: pb.Event) -> list[AgEvent]:
        if event.type != "log_gap":
            return self._projection.take(event)
        before = self._projection
        after = Projection(before.run_id, before.thread_id, before.name, before.base)
        after.usage_since = before.usage_since
        await catch_up(self._follower, self._run, after, until_seq=event.seq)
        after.take(event)
        self._projection = after
        return before.become(after)

    def _encoded(self, events: Iterable[AgEvent]) -> bytes:
        seq, at_ms = self._projection.seq, self._projection.at_ms
        mark = b"id: %d\n" % seq if seq else b""
        return b"".join(b"%sdata: %s\n\n" % (mark, orjson.dumps({**event, "timestamp": at_ms})) for event in events)


async def catch_up(follower: Follower, run: pb.Run, projection: Projection, *, until_seq: int = 0) -> pb.Event | None:
    """Has a projection take what the log of a run has now (up to `until_seq`). Answers the run's terminal event, which it does not take."""
    log = follower.follow(Subject(run_id=run.run_id), max(projection.seq, run.first_seq - 1), replay_only=True)
    async with aclosing(log) as events:
        async for event in events:
            if event.type in TERMINAL:
                return event
            if until_seq and event.seq >= until_seq:
                return None
            projection.take(event)
    return None


def error_frame(error: BulkheadError) -> bytes:
    """An error that is told after the headers. The run goes on, and the same runId leads back to it."""
    return b"data: %s\n\n" % orjson.dumps(ag_ui_error(error))
