"""BGREWRITEAOF at the primary of the state store and at its replicas, each of which has a file of its own."""

import asyncio
from collections.abc import Sequence

import redis.asyncio as redis
from redis.exceptions import ResponseError

from services.common.valkey import UNAVAILABLE, beside, store_unavailable
from services.orchestrator.erasure_files import Outcome, Rewritten

LOOK_EVERY_S = 0.2


class ValkeyFiles:
    """StoreFiles on Valkey."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    async def rewrite(self, watched_s: float) -> Sequence[Rewritten]:
        """As StoreFiles.rewrite."""
        try:
            _, _, replicas = await self._client.execute_command("ROLE")
        except UNAVAILABLE as error:
            raise store_unavailable() from error
        except (ResponseError, ValueError) as error:
            # The command is not allowed, or the server is no primary any more.
            return [Rewritten("replicas", Outcome.REFUSED, str(error)), await self._of("primary", self._client, watched_s)]
        copies = (self._of_replica(host.decode(), int(port), watched_s) for host, port, _ in replicas)
        return await asyncio.gather(self._of("primary", self._client, watched_s), *copies)

    async def _of_replica(self, host: str, port: int, watched_s: float) -> Rewritten:
        client = beside(self._client, host, port)
        try:
            return await self._of(f"replica {host}:{port}", client, watched_s)
        finally:
            await client.aclose()

    async def _of(self, server: str, client: redis.Redis, watched_s: float) -> Rewritten:
        # Once it has answered, as the primary has, it is lost and no address that leads nowhere: what it was asked for may not be done.
        away = Outcome.FAILED if client is self._client else Outcome.UNREACHABLE
        try:
            told = await client.info("persistence")
            away = Outcome.FAILED
            if not int(told["aof_enabled"]):
                return Rewritten(server, Outcome.NO_FILE)
            # Where a snapshot is being written, it is put off until that is done.
            await client.execute_command("BGREWRITEAOF")
            return Rewritten(server, await _watched(client, watched_s, int(told.get("aof_rewrites", -1))))
        except UNAVAILABLE as error:
            return Rewritten(server, away, type(error).__name__)
        except ResponseError as error:
            message = str(error)
            if "in progress" in message:
                return Rewritten(server, Outcome.BUSY, message)
            return Rewritten(server, Outcome.FAILED if "Can't execute" in message else Outcome.REFUSED, message)


async def _watched(client: redis.Redis, watched_s: float, before: int) -> Outcome:
    """`before`: how often it had begun to write its file anew. One that was started again meanwhile has not, and says that all is well."""
    try:
        async with asyncio.timeout(watched_s):
            while True:
                told = await client.info("persistence")
                if not int(told["aof_rewrite_in_progress"]) and not int(told["aof_rewrite_scheduled"]):
                    done = told["aof_last_bgrewrite_status"] == "ok" and int(told.get("aof_rewrites", 0)) > before
                    return Outcome.REWRITTEN if done else Outcome.FAILED
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        return Outcome.UNDER_WAY
