"""Threads as a whole, put together."""

from collections.abc import Awaitable, Callable

from services.common.identity import Minter, Principal
from services.orchestrator.accepting import Accepting
from services.orchestrator.agents import AgentCatalog
from services.orchestrator.hub import Hub
from services.orchestrator.records import RunRef, ThreadRecord
from services.orchestrator.run_store import RunStore
from services.orchestrator.segments import SegmentStore
from services.orchestrator.threads.changing import NOTED_S, Changing
from services.orchestrator.threads.conversation import Conversation
from services.orchestrator.threads.deleting import Deleting, ThreadBlobs
from services.orchestrator.threads.forking import Forking
from services.orchestrator.threads.ports import Sessions, ThreadStore
from services.orchestrator.threads.rolling_back import RollingBack
from services.orchestrator.threads.tending import Tending


class Threads:
    """What may be done with a thread as a whole; `tending` does it for whoever was lost. `ttl_ms` as of Tending, `tell` as
    of Deleting."""

    def __init__(
        self, store: RunStore, threads: ThreadStore, sessions: Sessions, accepting: Accepting, agents: AgentCatalog, minter: Minter,
        hub: Hub, segments: SegmentStore | None, ttl_ms: Callable[[str], int], tell: Callable[[RunRef], Awaitable[None]],
        blobs: ThreadBlobs | None = None,
    ) -> None:  # fmt: skip
        self.ttl_ms, self._threads = ttl_ms, threads
        changing, conversation = Changing(store, accepting, sessions, minter), Conversation(store, threads, agents)
        self.deleting = Deleting(store, threads, changing, conversation, hub, segments, tell, blobs)
        self.forking = Forking(store, threads, conversation, changing, self.deleting, accepting, blobs)
        self.rolling_back = RollingBack(store, threads, conversation, changing, hub)
        self.tending = Tending(store, threads, changing, self.forking, self.rolling_back, self.deleting, ttl_ms)

    async def live(self, principal: Principal, thread: ThreadRecord, ttl_ms: int) -> None:
        """Gives a thread that was just made a time to live. Raises Overloaded."""
        ref = RunRef(principal.tenant, thread.thread_id, "-")
        await self._threads.note(ref, ttl_ms / 1000)
        await self._threads.live(ref, ttl_ms, thread.created_ms)

    async def noticed(self, ref: RunRef) -> None:
        """A run is accepted that may make its thread; where its tier has a time to live, the thread gets it. Raises Overloaded."""
        await self._threads.note(ref, NOTED_S, once=True)
