"""Fan-out of a thread's events to the watchers in this process.

Every append is published here by its writer, or told by another process through the store and then read. Watchers take
what they get as a hint: each keeps its own cursor, drops what it has and reads what it misses, so the order in which
batches arrive does not matter and what it hands on is the log, without gap or repetition.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import Gone, Overloaded
from services.orchestrator.records import Event, RunRef
from services.orchestrator.run_store import RunStore

# A watcher that falls this many events behind is sent away with its cursor.
MOST_BUFFERED = 4096
PAGE = 512
# Stands in no log: how a watcher hears of the end of its thread.
THREAD_DELETED = "thread_deleted"
# What a log points to is out of reach; the log is not.
RESULTS_AWAY = "RESULTS_UNAVAILABLE"
log = structlog.get_logger("bulkhead.hub")
_meter = get_meter("bulkhead.orchestrator")
_watchers = _meter.create_up_down_counter("bulkhead_watchers", description="Watchers of threads and runs in this process.")


class Watch:
    """The buffer of one watcher."""

    __slots__ = ("_arrived", "closed", "error", "events", "overflown")

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.overflown = False
        self.closed = False
        self.error: Overloaded | None = None
        self._arrived: asyncio.Future | None = None

    def push(self, events: Sequence[Event]) -> None:
        """Adds events and wakes the watcher."""
        if len(self.events) + len(events) > MOST_BUFFERED:
            self.overflown = True
            self.events.clear()
        else:
            self.events.extend(events)
        self._wake()

    def close(self) -> None:
        """Ends the watch from this side."""
        self.closed = True
        self._wake()

    def fail(self, error: Overloaded) -> None:
        """Ends the watch with that, once what is here was taken."""
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """True when something arrived.

        Raises Overloaded where the watcher was too slow, the process is on its way out, or what comes next cannot be read.
        """
        if not self.events and not self.overflown and not self.closed and self.error is None:
            loop = asyncio.get_running_loop()
            self._arrived = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._arrived
            finally:
                timer.cancel()
                self._arrived = None
        if self.overflown:
            raise Overloaded("the watcher is too slow; resume after the last event it has", reason="WATCHER_TOO_SLOW", retry_after_s=0.1)
        if self.closed:
            raise Overloaded("this replica is going away; resume elsewhere", reason="DRAINING", retry_after_s=0.1)
        if self.error is not None and not self.events:
            # A new one for each watcher: whoever raises an error writes to it.
            raise Overloaded(
                self.error.message, reason=self.error.reason, retry_after_s=self.error.retry_after_s, metadata=self.error.metadata
            )
        return bool(self.events)


class _Feed:
    __slots__ = ("catching_up", "followed", "last_seq", "ref", "told_seq", "watches")

    def __init__(self, ref: RunRef) -> None:
        self.ref = ref
        self.last_seq = 0
        # The highest number that another process told of.
        self.told_seq = 0
        self.watches: set[Watch] = set()
        self.followed = False
        self.catching_up: asyncio.Task | None = None


class Hub:
    """The feeds of all threads that are watched here."""

    def __init__(
        self, reader: RunStore, follow: Callable[[RunRef], Awaitable[None]], unfollow: Callable[[RunRef], Awaitable[None]]
    ) -> None:
        """`follow` and `unfollow` begin and end the notices of other processes' appends to a thread."""
        self._reader = reader
        self._follow = follow
        self._unfollow = unfollow
        self._feeds: dict[tuple[str, str], _Feed] = {}
        self._following: set[asyncio.Future] = set()
        self._closed = False

    async def open(self, ref: RunRef, here: bool) -> Watch:
        """A watch of the thread of `ref`: from its return on it gets every append.

        `here`: all that it is about is written by this process, until `left` says otherwise. Then others need not be heard.
        """
        watch = Watch()
        if self._closed:
            watch.close()
            return watch
        feed = self._feeds.get(ref[:2])
        if feed is None:
            feed = self._feeds[ref[:2]] = _Feed(ref)
        feed.watches.add(watch)
        _watchers.add(1)
        if not here:
            try:
                await self._follow_once(feed)
            except BaseException:
                await self.close(ref, watch)
                raise
        return watch

    async def _follow_once(self, feed: "_Feed") -> None:
        feed.followed = True
        await self._follow(feed.ref)

    def left(self, ref: RunRef) -> None:
        """A run of the thread is worked on here no more, unfinished: what others append must be heard from now on."""
        feed = self._feeds.get(ref[:2])
        if feed is not None:
            task = asyncio.ensure_future(self._hear(feed))
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _hear(self, feed: "_Feed") -> None:
        if self._feeds.get(feed.ref[:2]) is not feed:
            # Its last watcher left before this began: nobody would come to end what is begun here.
            return
        await self._follow_once(feed)
        try:
            last = (await self._reader.last_seqs([feed.ref]))[0]
        except Overloaded:
            return
        self.noticed(feed.ref, last)

    async def close(self, ref: RunRef, watch: Watch) -> None:
        """Ends a watch."""
        feed = self._feeds.get(ref[:2])
        if feed is None or watch not in feed.watches:
            return
        feed.watches.discard(watch)
        _watchers.add(-1)
        if not feed.watches:
            del self._feeds[ref[:2]]
            if feed.catching_up is not None:
                feed.catching_up.cancel()
            if feed.followed:
                await self._unfollow(ref)

    def watched(self, ref: RunRef) -> bool:
        """Whether anybody here watches the thread."""
        return ref[:2] in self._feeds

    def publish(self, ref: RunRef, events: Sequence[Event]) -> None:
        """Hands on events that this process has just written or read."""
        feed = self._feeds.get(ref[:2])
        if feed is None or not events:
            return
        feed.last_seq = max(feed.last_seq, events[-1].seq)
        for watch in list(feed.watches):
            watch.push(events)

    def noticed(self, ref: RunRef, last_seq: int) -> None:
        """Another process has appended up to `last_seq`."""
        feed = self._feeds.get(ref[:2])
        if feed is None or feed.last_seq >= last_seq:
            return
        feed.told_seq = max(feed.told_seq, last_seq)
        if feed.catching_up is not None:
            return
        feed.catching_up = asyncio.create_task(self._catch_up(feed, last_seq), name="hub-catch-up")

    def at_least(self, ref: RunRef, seq: int) -> None:
        """A watcher has replayed up to `seq` itself."""
        feed = self._feeds.get(ref[:2])
        if feed is not None:
            feed.last_seq = max(feed.last_seq, seq)

    async def _catch_up(self, feed: _Feed, until: int) -> None:
        try:
            # What came before a feed's first notice is read by each watcher for itself, from its own cursor.
            feed.last_seq = feed.last_seq or until - 1
            while True:
                told = feed.told_seq
                last, _, _, events = await self._reader.read(feed.ref, feed.last_seq, PAGE, False)
                self.publish(feed.ref, events)
                if not events and last > feed.last_seq:
                    # Nothing stands behind the last number: the thread was deleted with its log.
                    self.publish(feed.ref, [Event(last, 0, feed.ref.thread_id, "", 0, THREAD_DELETED, b"{}", False, "")])
                # What is told of while the answer is on its way may stand behind what it was read from.
                if (not events or feed.last_seq >= last) and feed.told_seq == told:
                    return
        except Overloaded as error:
            # The store is away: the round of `resync` finds out again what is missing.
            log.debug("catch_up_postponed", thread_id=feed.ref.thread_id, until=until)
            if error.reason == RESULTS_AWAY:
                # That one is there, and would be asked in vain while its watchers see signs of life: they resume, and hear of it.
                for watch in feed.watches:
                    watch.fail(error)
        except Gone:
            # Behind by more than is kept: each watcher is told so when it reads what it misses.
            feed.last_seq = until - 1
        finally:
            feed.catching_up = None

    async def resync(self) -> None:
        """Compares every watched thread with the store: a notice may have been lost. Raises Overloaded."""
        feeds = list(self._feeds.values())
        if feeds:
            for feed, last in zip(feeds, await self._reader.last_seqs([f.ref for f in feeds]), strict=True):
                self.noticed(feed.ref, last)

    def shut(self) -> None:
        """Sends every watcher away, now and from now on."""
        self._closed = True
        for feed in self._feeds.values():
            for watch in feed.watches:
                watch.close()
