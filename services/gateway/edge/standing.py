"""Whether whoever opened an answer may still have it: looked up again while it is open, once for all open answers of one credential."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from services.common.errors import BulkheadError, Unauthenticated

# With the ten seconds that accounts may be remembered for, an end is noticed in less than a minute.
LOOK_EVERY_S = 30.0
log = structlog.get_logger("bulkhead.standing")


@dataclass(slots=True)
class _Watched:
    ended: asyncio.Future[BulkheadError]
    looking: asyncio.Task[None]
    answers: int = 0


class Standing:
    """Looks credentials up for as long as somebody watches them. One that cannot be looked up is taken to be good: an answer that is open
    is no reason to read, and whoever asks for another is looked at then."""

    def __init__(self, look: Callable[[str], Awaitable[object]]) -> None:
        """`look` raises Unauthenticated for a credential that is good no longer."""
        self._look = look
        self._watched: dict[str, _Watched] = {}

    @contextmanager
    def watch(self, credential: str) -> Iterator[asyncio.Future[BulkheadError]]:
        """Watches over a credential. The future, which is shared and must not be cancelled, has the error once it is good no longer."""
        watched = self._watched.get(credential)
        if watched is None:
            ended: asyncio.Future[BulkheadError] = asyncio.get_running_loop().create_future()
            watched = _Watched(ended, asyncio.create_task(self._keep_looking(credential, ended), name="standing"))
            self._watched[credential] = watched
        watched.answers += 1
        try:
            yield watched.ended
        finally:
            watched.answers -= 1
            if not watched.answers:
                watched.looking.cancel()
                self._forget(credential, watched.ended)

    async def _keep_looking(self, credential: str, ended: asyncio.Future[BulkheadError]) -> None:
        while not ended.done():
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._look(credential)
            except Unauthenticated as error:
                # Who comes with it from now on, as it may be good again, is watched anew.
                self._forget(credential, ended)
                ended.set_result(error)
            except BulkheadError as error:
                log.info("standing_unknown", reason=error.reason)

    def _forget(self, credential: str, ended: asyncio.Future[BulkheadError]) -> None:
        watched = self._watched.get(credential)
        if watched is not None and watched.ended is ended:
            del self._watched[credential]


@contextmanager
def unwatched() -> Iterator[asyncio.Future[BulkheadError]]:
    """Of a request that needs no credential: a future that is never done."""
    yield asyncio.get_running_loop().create_future()
