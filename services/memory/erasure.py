"""Erasing a subject: everything that this service holds of one user of a tenant."""

from collections.abc import Sequence

import structlog

from services.common.envelope import Envelope
from services.common.errors import Overloaded
from services.memory.documents import TenantDocuments
from services.memory.once import Once
from services.memory.ports import Embedder, Index, IndexUnavailable, Memories, Sessions, Work

log = structlog.get_logger("bulkhead.memory.erasure")


class Erasure:
    """The use case of EraseSubject. Each step can be done again, and whoever is cut short is asked again."""

    def __init__(
        self, sessions: Sessions, memories: Memories, documents: TenantDocuments, index: Index, work: Work, once: Once,
        envelope: Envelope | None, embedder: Embedder,
    ) -> None:  # fmt: skip
        self._sessions, self._memories, self._documents = sessions, memories, documents
        self._index, self._work, self._once, self._envelope, self._embedder = index, work, once, envelope, embedder

    async def __call__(self, tenant: str, user: str, sessions: Sequence[str]) -> list[tuple[str, int]]:
        """What was erased, as (kind, how many). Raises Overloaded where a store is away; it is then to be asked again."""
        counts = [("sessions", await self._sessions.erase(tenant, user, sessions)), ("memories", await self._memories.erase(tenant, user))]
        # What was to be indexed finds no record any more; what is indexed already goes with the rows.
        await self._work.drop(tenant, user)
        try:
            await self._index.delete_subject(tenant, user)
        except IndexUnavailable as error:
            raise Overloaded("the vector store cannot be reached", reason="STORE_UNAVAILABLE", retry_after_s=1.0) from error
        counts.append(("documents", await self._documents.erase(tenant, user)))
        counts.append(("replayable_answers", await self._once.erase(tenant, user)))
        self._embedder.forget_queries()
        if self._envelope is not None:
            await self._envelope.erase(tenant, user)
        log.info("subject_erased", **dict(counts))
        return counts
