"""What processes tell each other through the store: appends to a watched thread, cancels of an owned run, commands to it.

Valkey's publish/subscribe forgets what it cannot deliver, so nothing depends on it but speed: watchers are compared with
the log every two seconds and after each reconnect, owners look for cancels and commands at each heartbeat.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import redis.asyncio as redis
import structlog

from services.common.tasks import Whole
from services.common.valkey import UNAVAILABLE
from services.orchestrator.adapters.store_keys import INBOX_CHANNEL, OWNER_CHANNEL, channel_of
from services.orchestrator.records import RunRef

# A connection that is silent this long is asked for a sign of life, and given up when there is none.
PING_AFTER_S = 1.0
GIVE_UP_AFTER_S = 4.0
RECONNECT_AFTER_S = 0.2
CONFIRM_WITHIN_S = 0.5
log = structlog.get_logger("bulkhead.notices")


class Told(NamedTuple):
    """Who is told: of an append to a followed thread, of a cancel and of a command to a run that is owned here, and that anything may
    have been missed."""

    append: Callable[[RunRef, int], None]
    cancel: Callable[[RunRef], None]
    command: Callable[[RunRef], None]
    reset: Callable[[], None]


class Notices:
    """One subscribing connection a process."""

    def __init__(self, client: redis.Redis, instance: str) -> None:
        self._client = client
        self._instance = instance
        self._own, self._inbox = f"{OWNER_CHANNEL}{instance}", f"{INBOX_CHANNEL}{instance}"
        self._threads: dict[str, RunRef] = {}
        self._confirmed: dict[str, asyncio.Future] = {}
        self._pubsub: redis.client.PubSub | None = None
        # Whoever holds it may use the connection, which is not given up meanwhile: redis-py does not bear that.
        self._in_use = asyncio.Lock()
        # What is sent for one watcher others rely on: it is sent also where that one is gone before its turn.
        self._whole = Whole()
        self._task: asyncio.Task | None = None
        # From the start on.
        self._told: Told

    async def start(self, told: Told) -> None:
        """Begins to listen."""
        self._told = told
        self._task = asyncio.create_task(self._run(), name="notices")

    async def close(self) -> None:
        """Ends."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def follow(self, ref: RunRef) -> None:
        """Has appends to the thread told; from its return on, where the store can be reached."""
        channel = channel_of(ref)
        confirmed = self._confirmed.get(channel)
        if confirmed is None:
            self._threads[channel] = ref
            confirmed = self._confirmed[channel] = asyncio.get_running_loop().create_future()
            await self._whole(self._send("subscribe", channel))
        await asyncio.wait([confirmed], timeout=CONFIRM_WITHIN_S)

    async def unfollow(self, ref: RunRef) -> None:
        """The inverse of `follow`."""
        channel = channel_of(ref)
        self._threads.pop(channel, None)
        self._confirmed.pop(channel, None)
        await self._whole(self._send("unsubscribe", channel))

    async def _send(self, command: str, channel: str) -> None:
        async with self._in_use:
            if self._pubsub is not None:
                # A broken connection is found by whoever listens on it, and everything is subscribed to anew.
                with suppress(*UNAVAILABLE):
                    await getattr(self._pubsub, command)(channel)

    async def _run(self) -> None:
        while True:
            pubsub = self._client.pubsub()
            try:
                wanted = frozenset(self._threads)
                await pubsub.subscribe(self._own, self._inbox, *wanted)
                self._pubsub = pubsub
                # Those that were followed or left in between, when there was nothing to send it on.
                for channel in self._threads.keys() - wanted:
                    await self._send("subscribe", channel)
                for channel in wanted - self._threads.keys():
                    await self._send("unsubscribe", channel)
                self._told.reset()
                await self._listen(pubsub)
            except UNAVAILABLE as error:
                log.warning("notices_lost", error=type(error).__name__)
            finally:
                self._pubsub = None
                async with self._in_use:
                    with suppress(*UNAVAILABLE):
                        await pubsub.aclose()
            await asyncio.sleep(RECONNECT_AFTER_S)

    async def _listen(self, pubsub: "redis.client.PubSub") -> None:
        heard = time.monotonic()
        while True:
            message = await pubsub.get_message(timeout=PING_AFTER_S)
            if message is None:
                silent = time.monotonic() - heard
                if silent > GIVE_UP_AFTER_S:
                    return
                await pubsub.ping()
                continue
            heard = time.monotonic()
            if message["type"] == "subscribe":
                confirmed = self._confirmed.get(message["channel"].decode())
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)
            if message["type"] != "message":
                continue
            channel, data = message["channel"].decode(), message["data"].decode()
            word, _, rest = data.partition(" ")
            if channel == self._own:
                self._told.cancel(RunRef.decode(rest))
            elif channel == self._inbox:
                self._told.command(RunRef.decode(data))
            elif rest != self._instance and channel in self._threads:
                self._told.append(self._threads[channel], int(word))
