"""Runs and threads that one connection follows, each by the route of its events."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from services.gateway.streaming import CLOSING
from services.gateway.surfaces.websocket.asking import Ask

_END = b"\n\n"
_DATA = b"\ndata: "
Say = Callable[[bytes], Awaitable[None]]


class Watch:
    """One of them. `after` is the number of the last event that was sent, which a later watch goes on from."""

    def __init__(self, watch_id: str, subject: dict[str, str], after: int, say: Say) -> None:
        self.watch_id, self.subject, self.after = watch_id, subject, after
        self._label = orjson.dumps(watch_id)
        self._say = say
        # Set when the client knows of the watch, so that its events may come.
        self.acknowledged = asyncio.Event()
        self._error = b""
        self._interrupted = False
        self.ask: Ask

    async def take(self, frames: bytes) -> None:
        """Sends on whole frames of the route: the envelope of an event as it is."""
        if frames == CLOSING:
            self._interrupted = True
            return
        for frame in frames.split(_END):
            head, _, data = frame.partition(_DATA)
            if head.startswith(b"id: "):
                # Not before: the route sends a comment at first, and listens to its client from then on.
                await self.acknowledged.wait()
                await self._say(b'{"type":"event","watch":%b,"event":%b}' % (self._label, data))
                self.after = int(head[4 : head.index(b"\n")])
            elif head == b"event: stream_error":
                self._error = data

    def cursor(self) -> dict[str, Any]:
        """What a later watch goes on with."""
        return {"watch": self.watch_id, **self.subject, "after": self.after}

    def ended(self) -> bytes:
        """The message of its end."""
        reason = "failed" if self._error else "interrupted" if self._interrupted or not self.ask.whole else "finished"
        told = {"type": "watch_ended", **self.cursor(), "reason": reason}
        if self._error:
            told["error"] = orjson.Fragment(self._error)
        return orjson.dumps(told)


class Watches:
    """Those of one connection, by their ids."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._open: dict[str, Watch] = {}
        self._tending: set[asyncio.Task] = set()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, watch_id: str) -> bool:
        return watch_id in self._open

    def add(self, watch: Watch) -> None:
        """A watch whose stream has begun. Nothing of it is told before it is `acknowledged`, its end neither."""
        self._open[watch.watch_id] = watch
        task = asyncio.create_task(self._tend(watch))
        self._tending.add(task)
        task.add_done_callback(self._tending.discard)

    async def remove(self, watch_id: str) -> Watch | None:
        """Ends a watch, which is no client's leaving; None where there is none."""
        watch = self._open.pop(watch_id, None)
        if watch is not None:
            await watch.ask.end()
        return watch

    def cursors(self) -> list[dict[str, Any]]:
        """Of those whose end the client was not told."""
        return [watch.cursor() for watch in self._open.values()]

    async def end(self) -> None:
        """Ends all."""
        await self._over(lambda watch: watch.ask.task.cancel())

    async def leave(self) -> None:
        """The client has left: runs that were to end with that are cancelled."""
        await self._over(lambda watch: watch.ask.leave())

    async def _over(self, close: Callable[[Watch], Any]) -> None:
        watches, self._open = list(self._open.values()), {}
        for watch in watches:
            close(watch)
        for task in self._tending:
            task.cancel()
        waited = {watch.ask.task for watch in watches} | self._tending
        if waited:
            await asyncio.wait(waited)

    async def _tend(self, watch: Watch) -> None:
        await watch.acknowledged.wait()
        await asyncio.wait({watch.ask.task})
        if self._open.get(watch.watch_id) is watch:
            # A client that does not take this is told of the watch in the last words.
            await self._say(watch.ended())
            # While it was told, the client may have ended it.
            if self._open.get(watch.watch_id) is watch:
                del self._open[watch.watch_id]
