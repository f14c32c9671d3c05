"""The event log: live as server-sent events, and replayed with its own timing."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import BulkheadError, InvalidInput
from services.gateway.edge.exchange import exchange
from services.gateway.edge.problems import problem, told
from services.gateway.edge.route import needs
from services.gateway.following import TERMINAL, Follower
from services.gateway.ports import Subject
from services.gateway.running import cancel_on_leaving
from services.gateway.streaming import EventStream
from services.gateway.surfaces.native import shapes
from services.gateway.surfaces.native.models import INT64_MAX, IdPath
from services.gateway.surfaces.native.outputs import ReplayOut
from services.gateway.surfaces.native.routing import EVENTS, answers, native_router, problem_answer
from services.gateway.surfaces.native.thread_snapshots import (
    ResumeGapProblem,
    SnapshotCalls,
    SnapshotOut,
    or_resume_gap,
    resume_gap,
    snapshot,
)
from services.gateway.surfaces.schemas.events import DATA
from services.gateway.surfaces.wiring import Wiring

AfterSeq = Annotated[int, Query(ge=0, le=INT64_MAX, description="Only events after this number.")]
Speed = Annotated[float, Query(gt=0, le=10_000, description="Pace of the original timing, 2 for twice as fast. Absent: at once.")]
OfTypes = Annotated[
    list[str] | None,
    Query(max_length=len(DATA), description="Only events of this type; may be there several times. A run's end and `log_gap` come anyway."),
]
OnDisconnect = Annotated[Literal["continue", "cancel"], Query(description="What becomes of the run when the client leaves.")]
# Of the routes that read the log of a thread: that of a run which is there is kept whole.
GAP: dict[int | str, Any] = {410: problem_answer("The log from there on is no longer kept.", ResumeGapProblem.__name__)}
CHUNK_BYTES = 64 * 1024


class Events:
    """/v1/runs/{run_id}/events, /v1/threads/{thread_id}/events and /snapshot, and /replay/{thread_id}"""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._threads = wiring.backends.threads
        self._runs = wiring.backends.runs

    def router(self) -> APIRouter:
        """Routes."""
        router = native_router("events")
        stream = answers(None, 200, "Server-sent events.", content=EVENTS)
        router.add_api_route("/v1/runs/{run_id}/events", self.of_run, methods=["GET"], responses=stream)
        router.add_api_route("/v1/threads/{thread_id}/events", self.of_thread, methods=["GET"], responses=stream | GAP)
        router.add_api_route("/v1/threads/{thread_id}/snapshot", self.snapshot, methods=["GET"], responses=answers(SnapshotOut))
        replayed = {200: {"description": "The log, as JSON or as server-sent events.", "model": ReplayOut, "content": EVENTS}}
        router.add_api_route("/replay/{thread_id}", self.replay, methods=["GET"], responses=replayed | GAP)
        return router

    @needs("runs:read")
    async def of_run(
        self, request: Request, run_id: IdPath, after: AfterSeq = 0, types: OfTypes = None, on_disconnect: OnDisconnect = "continue"
    ) -> Response:
        """Events of a run from a number on, then live, up to its end. `Last-Event-ID` wins over `after`."""
        cursor, chosen = _cursor(request, after), checked_types(types)
        run = (await self._runs.GetRun(pb.GetRunRequest(run_id=run_id))).run
        exchange(request).about(thread_id=run.thread_id, run_id=run_id)
        if cursor:
            await self._check(run.thread_id, cursor, of_run=True)
        leaving = None
        if on_disconnect == "cancel":
            leaving = cancel_on_leaving(self._runs, run_id)
        if run.terminal_seq and cursor >= run.terminal_seq:
            return event_stream(self._wiring, None, 0)
        return event_stream(self._wiring, Subject(run_id=run_id), max(cursor, run.first_seq - 1), types=chosen, on_gone=leaving)

    @needs("runs:read")
    async def of_thread(self, request: Request, thread_id: IdPath, after: AfterSeq = 0, types: OfTypes = None) -> Response:
        """Events of all runs of a thread from a number on, then live. `Last-Event-ID` wins over `after`."""
        exchange(request).about(thread_id=thread_id)
        cursor, chosen = _cursor(request, after), checked_types(types)
        await self._check(thread_id, cursor)
        return event_stream(self._wiring, Subject(thread_id=thread_id), cursor, types=chosen)

    @needs("runs:read")
    async def snapshot(self, request: Request, thread_id: IdPath) -> Response:
        """A thread as it stands without its log, and the number from which the log tells the rest. A 410 of the log carries the same."""
        exchange(request).about(thread_id=thread_id)
        return shapes.reply(await snapshot(self._threads, thread_id))

    @needs("runs:read")
    async def replay(
        self, request: Request, thread_id: IdPath, after: AfterSeq = 0, types: OfTypes = None, speed: Speed | None = None
    ) -> Response:
        """The whole ordered log of a thread as it is now: JSON, or server-sent events with `Accept: text/event-stream`.

        `speed` paces either by the log's own timing.
        """
        about = exchange(request)
        about.about(thread_id=thread_id)
        cursor, chosen = _cursor(request, after), checked_types(types)
        await self._check(thread_id, cursor)
        log = self._wiring.follower.follow(Subject(thread_id=thread_id), cursor, types=chosen, replay_only=True)
        events = or_resume_gap(self._threads, thread_id, log)
        if speed is not None:
            events = _paced(events, speed)
        if "text/event-stream" in about.headers.get("accept", ""):
            frames = (shapes.frame(event) async for event in events)
            return EventStream(_closing(frames, events), self._wiring.streams, failure=_failure_frame(request))
        # Between two events white space is JSON as well, so it can fill silences.
        return EventStream(
            _as_json(thread_id, events), self._wiring.streams, media_type="application/json", resumable=False, proven=True, filler=b"\n"
        )

    async def _check(self, thread_id: str, cursor: int, *, of_run: bool = False) -> None:
        """Raises NotFound for a thread that is not there, InvalidInput for a number that lies in its future, and ResumeGap for one that
        lies before what is kept; a run that is there is kept whole."""
        thread = (await self._threads.GetThread(pb.GetThreadRequest(thread_id=thread_id))).thread
        if cursor > thread.last_seq and not await self._wiring.follower.goes_on_above(Subject(thread_id=thread_id), cursor):
            raise InvalidInput.field("after", f"the last event is {thread.last_seq}")
        if cursor + 1 < thread.oldest_seq and not of_run:
            raise await resume_gap(self._threads, thread_id)


def event_stream(
    wiring: Wiring,
    subject: Subject | None,
    after: int,
    *,
    types: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    on_gone: Callable[[], Awaitable[None]] | None = None,
) -> EventStream:
    """The events of `subject` as an answer, those of `types` where some are named; None is a log that has ended."""
    frames = _frames(wiring.follower, subject, after, wiring.backends.threads, types)
    return EventStream(frames, wiring.streams, headers=dict(headers or {}), failure=_failure_frame(None), on_gone=on_gone)


def checked_types(types: Sequence[str] | None) -> list[str]:
    """The types that a client asks for, each once, with those that end a run, so that whoever follows one hears of it; none: all. Raises
    InvalidInput."""
    if not types:
        return []
    for name in types:
        if name not in DATA:
            raise InvalidInput.field("types", "must be types of events, as /schemas/events/v1.json lists them")
    return sorted({*types, *TERMINAL})


async def _frames(
    follower: Follower, subject: Subject | None, after: int, threads: SnapshotCalls, types: Sequence[str] = ()
) -> AsyncGenerator[bytes, None]:
    if subject is None:
        return
    log = follower.batches(subject, after, types=types)
    if subject.thread_id:
        log = or_resume_gap(threads, subject.thread_id, log)
    # What became visible together is sent together: one write to the socket for a batch, not for each event. A long log comes in
    # large batches, though, and a client on a slow line must be seen to take what it is sent.
    async with aclosing(log) as batches:
        async for batch in batches:
            chunk = bytearray()
            for event in batch:
                chunk += shapes.frame(event)
                if len(chunk) >= CHUNK_BYTES:
                    yield bytes(chunk)
                    chunk.clear()
            if chunk:
                yield bytes(chunk)


async def _closing(frames: AsyncGenerator[bytes, None], source: AsyncGenerator) -> AsyncGenerator[bytes, None]:
    try:
        async for frame in frames:
            yield frame
    finally:
        await source.aclose()


def _cursor(request: Request, after: int) -> int:
    """The number to go on from. Raises InvalidInput for a Last-Event-ID that is none."""
    raw = exchange(request).headers.get("last-event-id", "").strip()
    if not raw:
        return after
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 19 and int(raw) <= INT64_MAX):
        raise InvalidInput.field("Last-Event-ID", "must be the id of an event of this log")
    return int(raw)


def _failure_frame(request: Request | None) -> Callable[[BulkheadError], bytes]:
    def render(error: BulkheadError) -> bytes:
        body = told(error) if request is None else problem(error, exchange(request), request.url.path)
        return b"event: stream_error\ndata: %s\n\n" % orjson.dumps(body)

    return render


async def _paced(events: AsyncGenerator[pb.Event, None], speed: float) -> AsyncGenerator[pb.Event, None]:
    """The same events at `speed` times the pace at which the log took them."""
    started, first_ns = time.monotonic(), None
    try:
        async for event in events:
            at_ns = event.occurred_at.ToNanoseconds()
            first_ns = at_ns if first_ns is None else first_ns
            early_s = (at_ns - first_ns) / 1e9 / speed - (time.monotonic() - started)
            if early_s > 0:
                await asyncio.sleep(early_s)
            yield event
    finally:
        await events.aclose()


async def _as_json(thread_id: str, events: AsyncGenerator[pb.Event, None]) -> AsyncGenerator[bytes, None]:
    """One JSON object, in chunks, so that a long log is never held as a whole."""
    try:
        chunk = bytearray(b'{"thread_id":%s,"events":[' % orjson.dumps(thread_id))
        first = True
        async for event in events:
            chunk += shapes.envelope(event) if first else b"," + shapes.envelope(event)
            first = False
            if len(chunk) >= CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        chunk += b"]}"
        yield bytes(chunk)
    finally:
        await events.aclose()
