"""What model calls answer, and the one interface that every surface calls and every layer around the attempt loop offers."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.llm_gateway.chat import Answer, ChatCall, Chunk
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import LimitState, Ranking, Vectors
from services.llm_gateway.registry import Deployment, Registry
from services.llm_gateway.terms import PLAIN, Terms


@dataclass(frozen=True, slots=True)
class Notice:
    """A degradation that the caller should hear of. `code` is model_retry, model_fallback, model_defaulted, event_skipped,
    request_adapted, answer_continued or stale_answer.
    """

    code: str
    message: str
    fallback: str = ""
    attributes: tuple[tuple[str, str | int], ...] = ()


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Timing:
    """Where the time of a call went, in seconds."""

    queue_s: float = 0.0
    reserve_s: float = 0.0
    upstream_s: float = 0.0
    retry_s: float = 0.0


NO_TIMING = Timing()


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Outcome:
    """How an answer came about. `cached` is "", exact, semantic, stale, shared (one upstream call for several callers) or replayed.

    `usage` is what this call was charged with. `routing` says why an `auto` model chose as it did.
    """

    deployment: Deployment
    usage: Usage
    finish_reason: str
    response_id: str
    provider_model: str
    attempts: int
    retries: int
    fallbacks: int
    cached: str = ""
    timing: Timing = NO_TIMING
    limits: tuple[LimitState, ...] = ()
    upstream_headers: Mapping[str, str] = field(default_factory=dict)
    routing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole completion."""

    answer: Answer
    outcome: Outcome
    notices: Sequence[Notice] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a streamed completion: the message of its first choice as a whole, tool calls as {id, name, arguments}."""

    text: str
    tool_calls: list[dict[str, str]]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """Embeddings that a caller asked for. `body` is the OpenAI request."""

    model: str
    body: Mapping[str, Any]
    run_id: str = ""
    terms: Terms = PLAIN


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings."""

    vectors: Vectors
    outcome: Outcome
    notices: Sequence[Notice] = ()


@dataclass(frozen=True, slots=True)
class RerankCall:
    """A ranking that a caller asked for. `body` is {query, documents: list of texts, top_n?}."""

    model: str
    body: Mapping[str, Any]
    run_id: str = ""
    terms: Terms = PLAIN


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking."""

    ranking: Ranking
    outcome: Outcome
    notices: Sequence[Notice] = ()


StreamEvent = Notice | list[Chunk] | Finished


class ModelCalls(Protocol):
    """Model calls as use cases. The attempt loop offers it, and so does each layer around it: caches, single-flight, replay.

    Whom a call is made for stands in `services.common.rpc.context`. All methods raise domain errors.
    """

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        ...

    async def complete(self, call: ChatCall) -> Completed:
        """One whole completion."""
        ...

    def stream(self, call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
        """One streamed completion: notices, lists of chunks, and one Finished at the end of a whole answer.

        Nothing but notices is yielded before the first token. Close the iterator to end the work upstream.
        """
        ...

    async def embed(self, call: EmbedCall) -> Embedded:
        """Embeds `body["input"]`, a text or a list of texts."""
        ...

    async def rerank(self, call: RerankCall) -> Ranked:
        """Ranks `body["documents"]` by `body["query"]`."""
        ...
