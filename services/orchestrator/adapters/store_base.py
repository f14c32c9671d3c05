"""What every part of the store shares: its client, its Lua library, and what an error of Valkey means."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import structlog
from redis.exceptions import ResponseError

from services.common.valkey import UNAVAILABLE, Library, ping, store_unavailable
from services.common.valkey_replicas import Lasting, TooFewReplicas, refusal
from services.orchestrator.adapters.result_blobs import LOOK_AFTER_S, Item, LargeResults
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.store_keys import LIVE, RESULTS
from services.orchestrator.records import Fenced, RunRef

LUA = Path(__file__).with_name("lua")
# When the sweeper looks after a run that somebody has asked something of.
NOTED_MS = 1_000
log = structlog.get_logger("bulkhead.store")


class StoreBase:
    """Calls of the Lua library. `sealing` encrypts what is kept of runs, where there is an envelope; `results` has what was too large."""

    sealing = Sealing()
    results: LargeResults | None = None

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0, files: Sequence[str] = ()) -> None:
        """`instance` names this process; `replicas` must have a durable write on disk before it counts; `files` are the library's, where
        it is not that of runs and threads."""
        self._client = client
        self._instance = instance
        # One library for all: its files share what they define.
        # Alone, a store loses nothing that was shown, and what guards against that costs nothing.
        term = "replicated" if replicas else "single"
        of_runs = "tenant", term, "work", "thread", "control", "approval", "run", "outbox", "segments", "threads", "busy", "feedback"
        self._library = Library(client, *(LUA / f"{name}.lua" for name in files or of_runs))
        self._lasting = Lasting(self._library, replicas)

    async def load(self) -> None:
        """As RunStore.load."""
        await self._ask(self._library.load())

    async def ping(self) -> bool:
        """As RunStore.ping."""
        return await ping(self._client)

    async def _ask(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except UNAVAILABLE as error:
            log.warning("store_unavailable", error=type(error).__name__)
            raise store_unavailable() from error
        except ResponseError as error:
            message = str(error)
            if message.startswith("FENCED"):
                raise Fenced(message) from None
            if (refused := await refusal(self._client, error)) is not None:
                raise refused from error
            raise

    async def _noted(self, ref: RunRef, call: Coroutine[Any, Any, Any]) -> Any:
        """A call that may wake a parked run, of which the sweeper is told first: whoever makes it may be lost right behind it."""
        note = self._ask(self._library.batched("work_note_v1", [LIVE], [NOTED_MS, ref.encode(), "ASK"]))
        if self._lasting.replicas:
            # The call goes by a connection of its own, and could be there before what waits for the next pipeline.
            try:
                await note
            except BaseException:
                call.close()
                raise
            return await call
        _, answer = await asyncio.gather(note, call)
        return answer

    async def _aside(self, items: Sequence[Item], user: str | None = None) -> list[bytes]:
        """The data of events as it goes into the log, where a pointer stands for what is put aside. `user` as of Sealing.seal."""
        datas = [item.data for item in items]
        if self.results is None or not (large := self.results.to_put(items)):
            return datas
        # First: should this process die before anything points to what it puts aside, whoever looks finds it.
        await asyncio.gather(*(self._note_results(ref) for ref in dict.fromkeys(item.ref for item in large)))
        for at, item in enumerate(items):
            if item in large:
                datas[at] = await self.results.put(item, user)
        return datas

    async def _note_results(self, ref: RunRef) -> None:
        await self._durable("work_note_v1", [RESULTS], [int(LOOK_AFTER_S * 1000), ref.encode(), "NX"])

    async def _durable(
        self, name: str, keys: Sequence[str], args: Sequence[Any], undo: Callable[[Any], Awaitable[None]] | None = None
    ) -> Any:
        """A call that counts only when it is on disk, here and on as many replicas as are asked for; `undo` is given the answer of one that
        is there and does not count."""
        call = self._lasting.submit(name, keys, args)
        return await self._ask(call if undo is None else _undone(call, undo))


async def _undone(call: Awaitable[Any], undo: Callable[[Any], Awaitable[None]]) -> Any:
    try:
        return await call
    except TooFewReplicas as few:
        await undo(few.answer)
        raise
