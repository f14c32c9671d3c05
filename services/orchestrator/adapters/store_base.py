"""What every part of the store shares: its client, its Lua library, and what an error of Valkey means."""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import structlog
from redis.exceptions import ResponseError

from services.common.errors import Overloaded
from services.common.valkey import UNAVAILABLE, Library, look_again, ping, store_unavailable
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.store_keys import LIVE
from services.orchestrator.records import Fenced, RunRef

LUA = Path(__file__).with_name("lua")
# A replica tells once a second how far its disk is, and at once whoever asks: but what it answers to a WAITAOF that comes with the
# write is from before its fsync. So a WAIT goes first; the replica has synced what it tells of there, and the WAITAOF behind it asks
# again. That takes milliseconds; alone, WAITAOF took most of a second. Its bound is longer than the second, should the WAIT fail.
REPLICA_WAIT_MS = 500
REPLICA_SYNC_MS = 1_200
# A refusal of the store is no defect of ours and goes away: memory full, disk full, too few replicas, a primary that is one no more.
_REFUSALS = ("OOM", "MISCONF", "NOREPLICAS", "READONLY", "UNBLOCKED", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN")
# When the sweeper looks after a run that somebody has asked something of.
NOTED_MS = 1_000
log = structlog.get_logger("bulkhead.store")


class StoreBase:
    """Calls of the Lua library. `sealing` encrypts what is kept of runs, where there is an envelope."""

    sealing = Sealing()

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0) -> None:
        """`instance` names this process; `replicas` must have a durable write on disk before it counts."""
        self._client = client
        self._instance = instance
        self._replicas = replicas
        # One library for all: its files share what they define.
        # Alone, a store loses nothing that was shown, and what guards against that costs nothing.
        term = "replicated" if replicas else "single"
        self._library = Library(
            client,
            *(
                LUA / f"{name}.lua"
                for name in (
                    *("tenant", term, "work", "thread", "control", "approval", "run", "outbox", "segments", "threads", "busy"),
                    "feedback",
                )
            ),
        )

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
            # redis-py takes the code off the message of those that it has a class for.
            if (getattr(error, "status_code", None) or message).startswith(_REFUSALS):
                if message.startswith("NOREPLICAS"):
                    await look_again(self._client)
                raise store_unavailable() from error
            raise

    async def _noted(self, ref: RunRef, call: Coroutine[Any, Any, Any]) -> Any:
        """A call that may wake a parked run, of which the sweeper is told first: whoever makes it may be lost right behind it."""
        note = self._ask(self._library.batched("work_note_v1", [LIVE], [NOTED_MS, ref.encode(), "LT"]))
        if self._replicas:
            # The call goes by a connection of its own, and could be there before what waits for the next pipeline.
            try:
                await note
            except BaseException:
                call.close()
                raise
            return await call
        _, answer = await asyncio.gather(note, call)
        return answer

    async def _durable(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """A call that counts only when it is on disk, here and on as many replicas as are asked for."""
        if not self._replicas:
            return await self._ask(self._library.batched(name, keys, args))

        async def with_replicas() -> Any:
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command(*self._library.command(name, keys, args))
                pipeline.execute_command("WAIT", self._replicas, REPLICA_WAIT_MS)
                pipeline.execute_command("WAITAOF", 1, self._replicas, REPLICA_SYNC_MS)
                answer, _, acknowledged = await pipeline.execute(raise_on_error=False)
            if isinstance(answer, ResponseError) and "Function not found" in str(answer):
                await self._library.load()
                return await with_replicas()
            for value in (answer, acknowledged):
                if isinstance(value, Exception):
                    raise value
            if int(acknowledged[1]) < self._replicas:
                await look_again(self._client)
                raise Overloaded("too few replicas of the state store took the write", reason="STORE_UNAVAILABLE", retry_after_s=1.0)
            return answer

        return await self._ask(with_replicas())
