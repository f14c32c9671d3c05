"""Large results of tools as blobs: a place for each thread, beside that of its segments."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Collection, Sequence
from typing import NamedTuple, TypeVar

import orjson
import structlog

from services.common.errors import Overloaded
from services.orchestrator.adapters.blobs import Blobs, BlobsUnavailable, place_of
from services.orchestrator.adapters.sealing import RESULT, Sealing
from services.orchestrator.records import Event, RunRef
from services.orchestrator.results import COMPLETED, INLINE_BYTES, Stored, lost, lost_event, prefix_of, stored_in, whole_message

# A run waits for no longer, and is not held up again so soon: what is not put aside stands in the log, as all results did.
PUT_WITHIN_S = 5.0
AWAY_S = 5.0
# Nor does a reader, or whoever looks for what is left: for them it is away until they ask again.
ASK_WITHIN_S = 5.0
READ_AT_ONCE = 4
# Whoever writes a result, reads it back soon: for another watcher, for the model.
MOST_KEPT_BYTES = 4 * 1024 * 1024
# Of a run with results somebody looks at what it left, this long after the first of them.
LOOK_AFTER_S = 60.0
RESULTS = "-results"
_Answer = TypeVar("_Answer")
log = structlog.get_logger("bulkhead.results")


class Item(NamedTuple):
    """An event that is to be written: of which run, its type and its data."""

    ref: RunRef
    type: str
    data: bytes


class LargeResults:
    """Puts results aside that are larger than `inline_bytes`, and brings them back."""

    def __init__(self, blobs: Blobs, sealing: Sealing, inline_bytes: int = INLINE_BYTES) -> None:
        self._blobs, self._sealing, self._inline_bytes = blobs, sealing, inline_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._kept_bytes = 0
        self._away_until = 0.0

    def is_large(self, data: bytes) -> bool:
        """Whether something of this size is put aside."""
        return len(data) > self._inline_bytes

    def to_put(self, items: Sequence[Item]) -> list[Item]:
        """Those that are to be put aside; none while the blobs are away."""
        if self._away():
            return []
        return [item for item in items if item.type == COMPLETED and self.is_large(item.data)]

    def _away(self) -> bool:
        return time.monotonic() < self._away_until

    async def put(self, item: Item, user: str | None = None) -> bytes:
        """Puts one aside; answers what stands for it in the log once it survives a power failure, or its data where that failed. `user` as
        of Sealing.seal. Raises Overloaded where the state store, which has the keys, is away."""
        ref = item.ref
        if self._away():
            # Since one before this of the same write was not answered in time, or one of another run.
            return item.data
        try:
            orjson.loads(item.data)
        except orjson.JSONDecodeError:
            # A tool's output that is no JSON stands in its event as it is.
            return item.data
        (content,) = await self._sealing.seal(ref, [(RESULT, item.data)], user)
        stored = Stored.of(ref.thread_id, content)
        place, name = place_of(ref.tenant, ref.thread_id, RESULTS), stored.name(ref.run_id)
        try:
            async with asyncio.timeout(PUT_WITHIN_S):
                await self._blobs.put(place, name, content)
                if await self._blobs.get(place, name) != content:
                    # The log would keep nothing else of it.
                    raise BlobsUnavailable("what was read back is not what was written")
        except (BlobsUnavailable, TimeoutError) as error:
            log.warning("result_kept_inline", run_id=ref.run_id, error=str(error) or "no answer in time")
            self._away_until = time.monotonic() + AWAY_S
            return item.data
        self._keep((place, name), item.data)
        return stored.event(item.data)

    async def bring_back(self, ref: RunRef, events: Sequence[Event], *, last_try: bool) -> bool:
        """Puts whole results into events, in place; False where one is missing, which is told in its event with the `last_try`.

        Raises Overloaded (RESULTS_UNAVAILABLE)."""
        found = [(event, stored) for event in events if event.type == COMPLETED and (stored := stored_in(event.data)) is not None]
        places = asyncio.Semaphore(READ_AT_ONCE)

        async def one(event: Event, stored: Stored) -> bool:
            async with places:
                data = await self._get(ref.tenant, event.run_id, stored)
            if data is not None:
                event.data = data
            elif last_try:
                log.error("result_damaged", thread_id=ref.thread_id, run_id=event.run_id, seq=event.seq)
                event.data = lost_event(event.data)
            return data is not None

        return all(await asyncio.gather(*(one(*each) for each in found)))

    async def messages(self, ref: RunRef, messages: Sequence[bytes]) -> list[bytes]:
        """Checkpointed messages of a run, whole. Raises Overloaded (RESULTS_UNAVAILABLE), Internal (RESULT_DAMAGED)."""
        whole = []
        for raw in messages:
            if (stored := stored_in(raw)) is not None:
                data = await self._get(ref.tenant, ref.run_id, stored)
                if data is None:
                    log.error("result_damaged", thread_id=ref.thread_id, run_id=ref.run_id)
                    raise lost()
                raw = whole_message(raw, data)
            whole.append(raw)
        return whole

    async def drop(self, ref: RunRef, but: Collection[str] = ()) -> None:
        """Removes the results of a run, all `but` some, also what a put that was broken off has left. Raises Overloaded."""
        place, prefix = place_of(ref.tenant, ref.thread_id, RESULTS), prefix_of(ref.run_id)
        names = await _asked(_in_time(self._blobs.names(place)))
        if gone := [name for name in names if name.startswith(prefix) and name not in but]:
            await _asked(self._blobs.delete(place, gone))

    async def _get(self, tenant: str, run_id: str, stored: Stored) -> bytes | None:
        key = place_of(tenant, stored.thread_id, RESULTS), stored.name(run_id)
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        content = await _asked(_in_time(self._blobs.get(*key)))
        if content is None or not stored.is_of(content):
            return None
        data = await self._sealing.open(tenant, RESULT, content)
        if data is not None:
            self._keep(key, data)
        return data

    def _keep(self, key: tuple[str, str], data: bytes) -> None:
        if key not in self._kept:
            self._kept[key] = data
            self._kept_bytes += len(data)
        while self._kept_bytes > MOST_KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def not_told_where() -> Overloaded:
    """The error of a process that finds a pointer and knows of no blobs."""
    return Overloaded("a large result is kept elsewhere, and this process was not told where", reason="RESULTS_UNAVAILABLE")


async def _in_time(call: Awaitable[_Answer]) -> _Answer:
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            return await call
    except TimeoutError as error:
        raise BlobsUnavailable(f"no answer in {ASK_WITHIN_S:g} s") from error


async def _asked(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except BlobsUnavailable as error:
        log.warning("results_unavailable", error=str(error))
        raise Overloaded(
            "the store of large results cannot be used", reason="RESULTS_UNAVAILABLE", retry_after_s=1.0, metadata={"store": "results"}
        ) from error
