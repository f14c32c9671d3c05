"""Background work: what was promised and not finished, by this process or by one that died, and the store's own upkeep."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import MappingProxyType

import structlog

from services.common.errors import BulkheadError
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.memory.documents import TenantDocuments
from services.memory.memories import LongTermMemories
from services.memory.ports import DOCUMENT, IndexUnavailable, Work

EVERY_S = 1.0
CLAIM = 16
LEASE_S = 30.0
# Something that an item needs is away: it is tried again after this long.
AGAIN_S = 2.0
REINDEX = MappingProxyType({"kind": "reindex"})
log = structlog.get_logger("bulkhead.memory.upkeep")


class Upkeep:
    """A loop that claims due work. An item of a process that died, or that raises a defect, comes again after its lease."""

    def __init__(
        self,
        work: Work,
        memories: LongTermMemories,
        documents: TenantDocuments,
        minter: Minter,
        maintain: Callable[[], Awaitable[None]],
    ) -> None:
        self._work = work
        self._memories = memories
        self._documents = documents
        self._minter = minter
        self._maintain = maintain
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        """Starts the loop."""
        self._task = asyncio.create_task(self._run(), name="upkeep")

    async def stop(self) -> None:
        """Ends the loop; what it was doing is claimed again later."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                while await self.once() == CLAIM:
                    pass
                await self._maintain()
            except (BulkheadError, IndexUnavailable) as error:
                log.info("upkeep_postponed", reason=str(error))
            except Exception as error:  # the loop outlives a defect, which is reported each time
                log.error("upkeep_failed", exc_info=error)

    async def once(self) -> int:
        """Does what is due; answers how many items were done."""
        done = 0
        for ticket, item in await self._work.claim(CLAIM, LEASE_S):
            try:
                await self._do(item)
            except (BulkheadError, IndexUnavailable) as error:
                log.warning("work_failed", kind=item.get("kind"), reason=str(error))
                # It is there already, and takes no more room.
                await self._work.intend(item, AGAIN_S, removes=True)
                continue
            except Exception as error:  # one poisoned item must not keep the others from being done
                log.error("work_failed", kind=item.get("kind"), exc_info=error)
                continue
            await self._work.settle(ticket)
            done += 1
        return done

    async def _do(self, item: dict) -> None:
        if item["kind"] == DOCUMENT:
            await self._documents.converge(item["tenant"], item["document_id"], item["version"])
            return
        if item["kind"] == REINDEX["kind"]:
            log.info("memories_reindexed", planned=await self._memories.reindex())
            return
        principal = Principal.from_dict(item["principal"])
        deadline = time.monotonic() + LEASE_S / 2
        with call_context.bind(call_context.CallContext(principal=principal, token=self._minter.mint(principal), deadline=deadline)):
            await self._memories.converge(principal, item["memory_id"])
