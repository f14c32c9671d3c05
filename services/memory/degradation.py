"""What an answer lacks when something that memory needs is away: typed, so that a user can see it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Degradation:
    """See `bulkhead.common.v1.Warning`."""

    code: str
    capability_lost: str
    fallback: str
    user_message: str


EMBEDDINGS_UNAVAILABLE = Degradation(
    "embeddings_unavailable", "semantic_search", "keyword_search", "Search went by keywords only, so some results may be missing."
)
SEMANTIC_ROUTE_FAILED = Degradation(
    "memory_store_degraded", "semantic_search", "keyword_search", "Search went by keywords only, so some results may be missing."
)
KEYWORD_ROUTE_FAILED = Degradation(
    "memory_store_degraded", "keyword_search", "semantic_search", "Search went by meaning only, so some results may be missing."
)
MEMORIES_UNAVAILABLE = Degradation(
    "memory_store_unavailable", "long_term_memory", "recent_memories", "Older memories could not be searched for this answer."
)
DOCUMENTS_UNAVAILABLE = Degradation("memory_store_unavailable", "documents", "", "Documents could not be searched for this answer.")
MEMORIES_NOT_PERMITTED = Degradation("scope_missing", "long_term_memory", "", "This key may not read memories.")
DOCUMENTS_NOT_PERMITTED = Degradation("scope_missing", "documents", "", "This key may not read documents.")
