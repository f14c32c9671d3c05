"""Writes that count only once replicas of the store have them on disk, and what a store refuses for a while.

lasting = Lasting(library, settings.state_replicas)               # 0: no replica is asked, and nothing costs more
answer = await lasting.call("idempotency_finish_v1", keys, args)  # Overloaded where too few replicas took it
async with lasting_transaction(client, replicas) as pipeline: …   # MULTI and EXEC alike
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, TypeVar

import redis.asyncio as redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from services.common.errors import Overloaded
from services.common.valkey import UNAVAILABLE, Library, look_again, store_unavailable
from services.common.valkey_pipelines import Batches

# A replica tells once a second how far its disk is, and at once whoever asks: but what it answers to a WAITAOF that comes with the
# write is from before its fsync. So a WAIT goes first; the replica has synced what it tells of there, and the WAITAOF behind it asks
# again. That takes milliseconds; alone, WAITAOF took most of a second. Its bound is longer than the second, should the WAIT fail.
REPLICA_WAIT_MS = 500
REPLICA_SYNC_MS = 1_200
# Both are about what their connection wrote last. This is written before them: replicas that have it have all that was there when it
# was written, also what somebody else wrote and a call only read. It has no subscriber and no key, and no store refuses it.
_MARK = ("PUBLISH", "bulkhead:waited", "")
# A refusal of the store is no defect of ours and goes away: memory full, disk full, too few replicas, a primary that is one no more.
_REFUSALS = frozenset(("OOM", "MISCONF", "NOREPLICAS", "READONLY", "UNBLOCKED", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY"))
_DEMOTED = "cannot be used with replica instances"
_ANNOTATED = "of pipeline caused error: "
T = TypeVar("T")


class TooFewReplicas(ResponseError):
    """A write that is at the primary, and that too few replicas have on disk: it may be lost, and is refused like one.

    `answer` is the primary's, None of a transaction.
    """

    def __init__(self, message: str, answer: Any = None) -> None:
        super().__init__(message)
        self.answer = answer


class _Wait(NamedTuple):
    """A tail of pipelines: calls count once `replicas` have on disk what was written before it, by whomever."""

    replicas: int
    commands: tuple[tuple, ...]

    def judged(self, answer: Any, last: Any) -> Any:
        return answer if last[1] >= self.replicas else TooFewReplicas("too few replicas have the write", answer)


def _wait(replicas: int) -> _Wait:
    return _Wait(replicas, (_MARK, ("WAIT", replicas, REPLICA_WAIT_MS), ("WAITAOF", 1, replicas, REPLICA_SYNC_MS)))


def longest_wait_s(replicas: int) -> float:
    """How much longer an answer may take for the sake of replicas, in seconds."""
    return (REPLICA_WAIT_MS + REPLICA_SYNC_MS) / 1000 if replicas else 0.0


class Lasting:
    """Calls of a library that count once `replicas` have on disk what they wrote and what they read."""

    def __init__(self, library: Library, replicas: int) -> None:
        self.library, self.replicas = library, replicas

    def submit(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> asyncio.Future:
        """As Library.submit; the redis error may be TooFewReplicas."""
        if not self.replicas:
            return self.library.submit(name, keys, args)
        batches = Batches.of(self.library.client).ending(_wait(self.replicas))
        return batches.add(self.library, self.library.command(name, keys, args))

    async def call(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """The answer of a function. Raises as `asked`."""
        return await asked(self.library.client, self.submit(name, keys, args))

    async def passing(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """As `call`, for what may be lost: no replica is waited for."""
        return await asked(self.library.client, self.library.batched(name, keys, args))


class _Lasting(Pipeline):
    """A transaction of which replicas must have on disk what it wrote and what it read."""

    replicas = 0

    async def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        answers = await super()._execute_transaction(connection, commands, raise_on_error)
        try:
            tail = _wait(self.replicas).commands
            await connection.send_packed_command(connection.pack_commands(tail))
            told = [await connection.read_response() for _ in tail]
        except BaseException:
            # What it has yet to answer is for nobody else.
            await connection.disconnect(nowait=True)
            raise
        if told[-1][1] < self.replicas:
            raise TooFewReplicas("too few replicas have the transaction")
        return answers


def lasting_transaction(client: redis.Redis, replicas: int) -> Pipeline:
    """A pipeline with MULTI and EXEC. Its `execute` raises TooFewReplicas as well; without `replicas` it is a plain one."""
    if not replicas:
        return client.pipeline(transaction=True)
    made = _Lasting(client.connection_pool, client.response_callbacks, True, None)
    made.replicas = replicas
    return made


class refusals:
    """Raises Overloaded (STORE_UNAVAILABLE) where the store is away within the block, refuses for now, or has too few replicas."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if error is not None and (refused := await refusal(self._client, error)) is not None:
            raise refused from error


async def asked(client: redis.Redis, call: Awaitable[T]) -> T:
    """As `refusals`, for one call."""
    async with refusals(client):
        return await call


async def refusal(client: redis.Redis, error: BaseException) -> Overloaded | None:
    """The domain error for a store that is away, and for what it refuses for now; None where `error` is a defect of ours."""
    if not refused(error):
        return None
    if lost_its_place(error):
        await look_again(client)
    if isinstance(error, TooFewReplicas):
        return Overloaded(
            "too few replicas of the state store took the write", reason="STORE_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "state"}
        )
    return store_unavailable()


def refused(error: BaseException | None) -> bool:
    """Whether the store could not be reached, or refused for now."""
    if isinstance(error, (*UNAVAILABLE, TooFewReplicas)):
        return True
    return isinstance(error, ResponseError) and (_code(error) in _REFUSALS or _DEMOTED in str(error))


def lost_its_place(error: BaseException | None) -> bool:
    """Whether another server may be the primary by now, which the one that refused does not know."""
    return isinstance(error, TooFewReplicas) or (
        isinstance(error, ResponseError) and (_code(error) in ("NOREPLICAS", "UNBLOCKED") or _DEMOTED in str(error))
    )


def _code(error: ResponseError) -> str:
    # redis-py takes it off the message of those that it has a class for, and puts words before that of a command in a transaction.
    return getattr(error, "status_code", None) or str(error).rpartition(_ANNOTATED)[2].lstrip("('\"").partition(" ")[0]
