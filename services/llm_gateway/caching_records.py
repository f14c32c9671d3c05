"""What is kept of an answer, as bytes: a line of JSON about it, then the body as it went to the first caller.

Caches and replay share it. A reader that meets a version it does not know takes the record for missing.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from services.llm_gateway.answer_forms import answer_of, chunks_in, chunks_of, events_of
from services.llm_gateway.chat import Answer, Chunk
from services.llm_gateway.money import NOTHING
from services.llm_gateway.ports import Ranking, Vectors
from services.llm_gateway.registry import Deployment, Registry
from services.llm_gateway.results import NO_TIMING, Outcome

SCHEMA_VERSION = 1
Form = Literal["answer", "stream", "vectors", "ranking"]


@dataclass(frozen=True, slots=True)
class Record:
    """An answer that was kept. `at` and `fresh_until` are in seconds of the epoch; `owner` is a digest of the user it was made for."""

    form: Form
    body: bytes
    at: float
    fresh_until: float
    owner: str
    deployment: str
    group: str
    finish_reason: str = ""
    response_id: str = ""
    provider_model: str = ""
    input_tokens: int | None = None
    # Lengths of the vectors of `body`.
    sizes: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """About what it takes in memory, in bytes."""
        return len(self.body) + 512

    def encode(self) -> bytes:
        """The record as bytes."""
        head = {
            "v": SCHEMA_VERSION, "form": self.form, "at": self.at, "until": self.fresh_until, "owner": self.owner,
            "deployment": self.deployment, "group": self.group, "finish": self.finish_reason, "id": self.response_id,
            "model": self.provider_model, "tokens": self.input_tokens, "sizes": self.sizes,
        }  # fmt: skip
        return orjson.dumps(head) + b"\n" + self.body

    def chunks(self) -> list[Chunk]:
        """The answer as a stream: the same chunks where it was one."""
        return chunks_in(self.body) if self.form == "stream" else chunks_of(orjson.loads(self.body))

    def answer(self) -> Answer | None:
        """The answer as a whole: the same bytes where it was one; None where a stream cannot be put together."""
        return answer_of(chunks_in(self.body)) if self.form == "stream" else Answer(self.body, orjson.loads(self.body))

    def vectors(self) -> Vectors:
        """Embeddings."""
        found, start = [], 0
        for size in self.sizes:
            vector = array("f")
            vector.frombytes(self.body[start : start + 4 * size])
            found.append(vector)
            start += 4 * size
        return Vectors(found, self.input_tokens, self.provider_model)

    def ranking(self) -> Ranking:
        """A ranking."""
        ranked = [(int(index), float(score)) for index, score in orjson.loads(self.body)]
        return Ranking(ranked, self.input_tokens, self.provider_model)

    def outcome(self, registry: Registry, cached: str) -> Outcome | None:
        """How the answer came about: without cost. None when nothing is left of the models that gave it."""
        deployment = _deployment(registry, self.deployment, self.group)
        if deployment is None:
            return None
        return Outcome(
            deployment=deployment,
            usage=NOTHING,
            finish_reason=self.finish_reason,
            response_id=self.response_id,
            provider_model=self.provider_model,
            attempts=0,
            retries=0,
            fallbacks=0,
            cached=cached,
        )


def decode(raw: bytes) -> Record | None:
    """The inverse of `encode`; None for what is no record of this version."""
    line, found, body = raw.partition(b"\n")
    try:
        head: dict[str, Any] = orjson.loads(line)
        if not found or head["v"] != SCHEMA_VERSION:
            return None
        return Record(
            head["form"], body, head["at"], head["until"], head["owner"], head["deployment"], head["group"], head["finish"], head["id"],
            head["model"], head["tokens"], tuple(head["sizes"]),
        )  # fmt: skip
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def record_of_answer(answer: Answer, outcome: Outcome, owner: str, at: float, fresh_until: float) -> Record:
    """A whole completion."""
    return _record("answer", answer.raw, outcome, owner, at, fresh_until)


def record_of_stream(chunks: Sequence[Chunk], outcome: Outcome, owner: str, at: float, fresh_until: float) -> Record:
    """A streamed completion that has come to its end."""
    return record_of_events(events_of(chunks), outcome, owner, at, fresh_until)


def record_of_events(events: bytes, outcome: Outcome, owner: str, at: float, fresh_until: float) -> Record:
    """The same from the body of its event stream."""
    return _record("stream", events, outcome, owner, at, fresh_until)


def record_of_vectors(vectors: Vectors, outcome: Outcome, owner: str, at: float, fresh_until: float) -> Record:
    """Embeddings, without the provider's body around them."""
    sizes = tuple(len(vector) for vector in vectors.vectors)
    record = _record("vectors", b"".join(vector.tobytes() for vector in vectors.vectors), outcome, owner, at, fresh_until)
    return replace(record, input_tokens=vectors.input_tokens, sizes=sizes)


def record_of_ranking(ranking: Ranking, outcome: Outcome, owner: str, at: float, fresh_until: float) -> Record:
    """A ranking."""
    return replace(_record("ranking", orjson.dumps(ranking.ranked), outcome, owner, at, fresh_until), input_tokens=ranking.input_tokens)


def _record(form: Form, body: bytes, outcome: Outcome, owner: str, at: float, fresh_until: float) -> Record:
    served = outcome.deployment
    return Record(
        form, body, at, fresh_until, owner, served.id, served.group, outcome.finish_reason, outcome.response_id, outcome.provider_model
    )


def _deployment(registry: Registry, deployment_id: str, group_name: str) -> Deployment | None:
    group = registry.find(group_name)
    if group is None:
        return None
    for deployment in group.deployments:
        if deployment.id == deployment_id:
            return deployment
    return group.deployments[0]


def for_free(outcome: Outcome, cached: str) -> Outcome:
    """The outcome of a caller who got an answer that somebody else has paid for."""
    return replace(outcome, usage=NOTHING, cached=cached, timing=NO_TIMING, limits=())
