"""Answers of similar questions: opt-in by call (`CacheTerms.semantic`), for text without tools in the answer.

A question is the text of the last message, asked by the user. Everything else of the request must be equal to the byte:
tenant, models, instructions, turns before, tools, parameters. Of the questions in that scope one is taken whose embedding
is at least 0.95 similar and whose wording says the same (`semantic_wording`). Kept are only questions that their caller
called important (> 0.8) and whose answer ended by itself, in plain text.

Embeddings come through the model calls themselves, so they are charged and cached like any others. Static embedders, whose
vectors do not see word order or negation, are refused unless forced.
"""

import asyncio
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
import structlog

from services.common.errors import BulkheadError
from services.common.tasks import end
from services.llm_gateway.cache_telemetry import counted
from services.llm_gateway.caching_records import Record
from services.llm_gateway.canonical_key import canonical, request_key
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.messages_shape import BLOCKS, OWN_FIELDS
from services.llm_gateway.results import EmbedCall, ModelCalls
from services.llm_gateway.semantic_wording import SYNONYMS, canon_of, wording

log = structlog.get_logger("bulkhead.llm")
# Of the kept questions; a change of the rules in `semantic_wording` is a new version.
SCHEMA_VERSION = 2
SIMILARITY = 0.95
IMPORTANCE = 0.8
# Longer questions are rarely asked twice, and cost more to compare than they save.
MAX_QUESTION_CHARS = 4_000
EMBED_TIMEOUT_S = 2.0
_STATIC_ADAPTERS = frozenset({"wordllama"})


@dataclass(frozen=True, slots=True)
class SemanticTerms:
    """The model that embeds questions, and how similar two of them must be. Without a model nothing is similar."""

    model: str
    similarity: float = SIMILARITY


@dataclass(slots=True)
class Question:
    """A question within its scope, by the terms that held when it was asked; `vector` once it is known."""

    tenant: str
    scope: str
    text: str
    words: tuple[str, ...]
    terms: SemanticTerms
    vector: array | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was kept: its wording, its vector, and the key of its answer in the exact cache."""

    words: tuple[str, ...]
    vector: array
    key: str
    owner: str

    def encode(self) -> bytes:
        """The question as bytes."""
        head = {"v": SCHEMA_VERSION, "words": self.words, "key": self.key, "owner": self.owner}
        return orjson.dumps(head) + b"\n" + self.vector.tobytes()

    @classmethod
    def decode(cls, raw: bytes) -> "Asked | None":
        """The inverse of `encode`; None for what is none of this version."""
        line, _, rest = raw.partition(b"\n")
        vector = array("f")
        try:
            head = orjson.loads(line)
            vector.frombytes(rest)
            return cls(tuple(head["words"]), vector, head["key"], head["owner"]) if head["v"] == SCHEMA_VERSION else None
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None


class Questions(Protocol):
    """Where questions are kept, bounded a tenant. It never raises but for `erase`; what is away is empty."""

    async def asked(self, tenant: str, scope: str) -> list[bytes]:
        """All questions of a scope."""
        ...

    def keep(self, tenant: str, scope: str, name: str, question: bytes, owner: str, keep_s: float) -> None:
        """Keeps a question under a name of its own. Does not wait."""
        ...

    def touch(self, tenant: str, scope: str, name: str) -> None:
        """Says that a question was of use. Does not wait."""
        ...

    async def erase_questions(self, tenant: str, owner: str) -> int:
        """Deletes the questions of an owner. Raises Overloaded when it cannot be done now."""
        ...


class SemanticCache:
    """Finds the answer of a similar question."""

    def __init__(
        self,
        calls: ModelCalls,
        questions: Questions,
        terms: Callable[[], SemanticTerms],
        *,
        importance: float = IMPORTANCE,
        force_static: bool = False,
        synonyms: Sequence[Sequence[str]] = SYNONYMS,
    ) -> None:
        """`terms` answers those that hold now. With `force_static` static embedders are taken too."""
        self._calls = calls
        self._questions = questions
        self._terms = terms
        self._importance = importance
        self._force_static = force_static
        self._synonyms = canon_of(synonyms)
        self._told = ""
        self._background: set[asyncio.Task[None]] = set()

    def usable(self, model: str) -> bool:
        """Whether an embedding model may be used for this: it exists, and sees more than a bag of words."""
        if not model:
            return False
        registry = self._calls.registry
        group = registry.groups.get(registry.aliases.get(model, model))
        static = group is None or any(d.adapter in _STATIC_ADAPTERS for d in group.deployments)
        if group is None or (static and not self._force_static):
            if self._told != model:
                reason = "no such model" if group is None else "a static embedder does not see negations; set force_static to use it"
                log.warning("semantic_cache_off", embedding_model=model, reason=reason)
                self._told = model
            return False
        return True

    def question(self, call: ChatCall, tenant: str, scope: tuple[str, ...]) -> Question | None:
        """The question of a call; None where it has none that can be compared."""
        messages, terms = call.body.get("messages"), self._terms()
        if not isinstance(messages, list) or not messages or call.body.get("n") not in (None, 1) or not self.usable(terms.model):
            return None
        last = messages[-1]
        text = _text_of(last)
        if text is None or not text or len(text) > MAX_QUESTION_CHARS:
            return None
        words = wording(text, self._synonyms)
        if not words:
            return None
        rest = {**call.body, "messages": [*messages[:-1], {key: value for key, value in last.items() if key != "content"}]}
        where = request_key(tenant, "semantic", self._calls.registry, call.model, canonical(rest), terms.model, *scope)
        return Question(tenant, where, text, words, terms)

    async def find(self, question: Question, call: ChatCall) -> str | None:
        """The key of the answer to a similar question. Embeds only where a kept question says the same."""
        # The words are compared first: that costs no model, and nothing can be found without it.
        stored = [asked for raw in await self._questions.asked(question.tenant, question.scope) if (asked := Asked.decode(raw))]
        same = [asked for asked in stored if asked.words == question.words]
        if not same or not await self._embedded(question, call):
            counted("semantic", "miss")
            return None
        scored = [(_cosine(question.vector, asked.vector), asked) for asked in same]
        best, asked = max(scored, key=lambda pair: pair[0])
        if best < question.terms.similarity:
            counted("semantic", "miss")
            return None
        self._questions.touch(question.tenant, question.scope, _name(asked.key))
        return asked.key

    def remember(self, question: Question, call: ChatCall, key: str, owner: str, record: Record, keep_s: float) -> None:
        """Keeps an important question whose answer is plain text. Does not wait."""
        if call.terms.cache.importance <= self._importance:
            return
        answer = record.answer()
        message: Mapping[str, Any] = {} if answer is None else answer.data["choices"][0]["message"]
        own = message.get(OWN_FIELDS)
        more = isinstance(own, Mapping) and own.get(BLOCKS)  # what a provider's own tools have done
        if not message.get("content") or message.get("tool_calls") or message.get("function_call") or more:
            counted("semantic", "refused")
            return
        task = asyncio.create_task(self._remember(question, call, key, owner, keep_s))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _remember(self, question: Question, call: ChatCall, key: str, owner: str, keep_s: float) -> None:
        if not await self._embedded(question, call) or question.vector is None:
            return
        asked = Asked(question.words, question.vector, key, owner)
        self._questions.keep(question.tenant, question.scope, _name(key), asked.encode(), owner, keep_s)
        counted("semantic", "stored")

    async def erase(self, tenant: str, owner: str) -> int:
        """Deletes the questions of an owner."""
        return await self._questions.erase_questions(tenant, owner)

    async def stop(self) -> None:
        """Ends what still runs in the background."""
        await end(self._background)

    async def _embedded(self, question: Question, call: ChatCall) -> bool:
        if question.vector is not None:
            return True
        try:
            async with asyncio.timeout(EMBED_TIMEOUT_S):
                embedded = await self._calls.embed(EmbedCall(question.terms.model, {"input": question.text}, call.run_id))
        except (BulkheadError, TimeoutError) as error:
            # A cache that cannot look is a miss; the call itself goes on.
            log.warning("semantic_embedding_failed", error=type(error).__name__)
            counted("semantic", "error")
            return False
        question.vector = embedded.vectors.vectors[0]
        return True


def _text_of(message: Any) -> str | None:
    if not isinstance(message, Mapping) or message.get("role") != "user":
        return None
    content = message.get("content")
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping) and set(content[0]) == {"type", "text"}:
        text = content[0]["text"]
        return text.strip() if isinstance(text, str) else None
    return None


def _name(key: str) -> str:
    return key[:24]


def _cosine(one: array | None, other: array) -> float:
    if one is None or len(one) != len(other) or not len(one):
        return -1.0
    dot = norm_one = norm_other = 0.0
    for a, b in zip(one, other, strict=True):
        dot += a * b
        norm_one += a * a
        norm_other += b * b
    return dot / (norm_one * norm_other) ** 0.5 if norm_one and norm_other else -1.0
