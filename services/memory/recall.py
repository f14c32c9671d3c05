"""Recall: the context of one turn, out of recent turns, memories and passages, fitted to a token budget."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opentelemetry import trace
from opentelemetry.metrics import get_meter

from services.common.identity import Principal
from services.memory import degradation
from services.memory.degradation import Degradation
from services.memory.documents import ScoredPassage, TenantDocuments
from services.memory.memories import LongTermMemories, Scored
from services.memory.ports import Sessions, Turn
from services.memory.search import HybridSearch
from services.memory.tokens import estimate
from services.memory.window import fit, tokens_of

MEMORIES_SCOPE = "memories:read"
DOCUMENTS_SCOPE = "documents:read"
# What was just said matters most, but an endless answer of the last turn must not push out what was asked for.
TURNS_SHARE = 0.5
_parts = get_meter("bulkhead.memory").create_counter("bulkhead_memory_recalled_parts", description="Parts of recalled contexts, by kind.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one turn asks for."""

    session_id: str
    query: str
    token_budget: int
    memories: bool
    documents: bool


@dataclass(frozen=True, slots=True)
class Context:
    """Recent turns oldest first, then memories and passages by falling score."""

    turns: list[Turn]
    hits: list[Scored | ScoredPassage]
    lost: tuple[Degradation, ...]
    token_count: int


class Recall:
    """The use case behind SessionService.Recall."""

    def __init__(
        self, sessions: Sessions, memories: LongTermMemories, documents: TenantDocuments, search: HybridSearch, top_k: int
    ) -> None:
        self._sessions = sessions
        self._memories = memories
        self._documents = documents
        self._search = search
        self._top_k = top_k

    async def __call__(self, principal: Principal, wanted: Wanted) -> Context:
        """Raises Overloaded when the state store is away; whatever else is away is a degradation.

        A kind that the principal's scopes do not cover is left out with a degradation. Another user's session is an empty one.
        """
        memories = wanted.memories and not principal.missing([MEMORIES_SCOPE])
        documents = wanted.documents and not principal.missing([DOCUMENTS_SCOPE])
        lost = [degradation.MEMORIES_NOT_PERMITTED] if wanted.memories and not memories else []
        lost += [degradation.DOCUMENTS_NOT_PERMITTED] if wanted.documents and not documents else []
        window, memory_count, document_count = await asyncio.gather(
            self._sessions.window(principal.tenant, principal.user, wanted.session_id),
            self._memories.count(principal) if memories else _none(),
            self._documents.count(principal) if documents else _none(),
        )
        hits: list[Scored | ScoredPassage] = []
        # Who has nothing stored pays for no embedding and no search.
        if wanted.query.strip() and (memory_count or document_count):
            hits, degradations = await self._find(principal, wanted.query, bool(memory_count), bool(document_count))
            lost += degradations
        context = _fitted(window or [], hits, wanted.token_budget, tuple(dict.fromkeys(lost)))
        _observe(context)
        return context

    async def _find(
        self, principal: Principal, text: str, memories: bool, documents: bool
    ) -> tuple[list[Scored | ScoredPassage], list[Degradation]]:
        query = await self._search.prepare(text)
        found, passages = await asyncio.gather(
            self._memories.find(principal, text, query, self._top_k) if memories else _nothing(),
            self._documents.find(principal, query, self._top_k) if documents else _nothing(),
        )
        hits: list[Scored | ScoredPassage] = [*found[0], *passages[0]]
        hits.sort(key=lambda hit: -score_of(hit))
        return hits, [*found[1], *passages[1]]


async def _none() -> int:
    return 0


async def _nothing() -> tuple[list, tuple]:
    return [], ()


def score_of(hit: Scored | ScoredPassage) -> float:
    """The fused score of a hit."""
    return hit.score if isinstance(hit, Scored) else hit.fused.score


def text_of(hit: Scored | ScoredPassage) -> str:
    """The text of a hit."""
    return hit.record.text if isinstance(hit, Scored) else hit.hit.text


def _fitted(turns: Sequence[Turn], hits: Sequence[Scored | ScoredPassage], budget: int, lost: tuple[Degradation, ...]) -> Context:
    """Turns get what hits leave, at least their share; hits the rest by falling score, one that does not fit being skipped."""
    # The outputs of tools are no part of a recalled turn.
    turns = [replace(turn, tool_calls_json=b"") for turn in turns]
    asked = sum(estimate(text_of(hit)) for hit in hits)
    kept_turns = fit(turns, max(int(budget * TURNS_SHARE), budget - asked)) if turns else []
    total = sum(map(tokens_of, kept_turns))
    kept = []
    for hit in hits:
        tokens = estimate(text_of(hit))
        if total + tokens <= budget:
            kept.append(hit)
            total += tokens
    return Context(kept_turns, kept, lost, total)


def _observe(context: Context) -> None:
    memories = sum(isinstance(hit, Scored) for hit in context.hits)
    counts = {"recent_turn": len(context.turns), "memory": memories, "document": len(context.hits) - memories}
    span = trace.get_current_span()
    for kind, count in counts.items():
        _parts.add(count, {"kind": kind})
        span.set_attribute(f"bulkhead.memory.recalled.{kind}", count)
    span.set_attribute("bulkhead.memory.tokens", context.token_count)
    if context.lost:
        span.set_attribute("bulkhead.memory.degraded", [lost.code for lost in context.lost])
