"""What the domain needs from outside: upstreams that make one attempt."""

from array import array
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from opentelemetry.context import Context

from services.llm_gateway.chat import Answer, Chunk
from services.llm_gateway.registry import Deployment


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one attempt may take, in seconds; `ends_at` is on `time.monotonic()`.

    `first_token_s` bounds the silence before a stream's first token, `silent_s` the same before a whole answer.
    """

    connect_s: float
    first_token_s: float
    silent_s: float
    between_tokens_s: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one deployment. `body` is the request without `model`; `parent` is the trace context of the call."""

    deployment: Deployment
    body: Mapping[str, Any]
    limits: Limits
    number: int
    parent: Context
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings in the order of the texts. `raw` is the provider's body where one exists, so that it can be relayed."""

    vectors: list[array]  # of type "f"
    input_tokens: int | None
    model: str
    raw: bytes | None = None


class Upstream(Protocol):
    """Talks to one kind of provider. Every method raises UpstreamFault and nothing else when the provider fails.

    Cancelling the caller, or closing the iterator, ends the provider's work at once.
    """

    async def complete(self, attempt: Attempt) -> Answer:
        """A whole completion."""
        ...

    def stream(self, attempt: Attempt) -> AsyncGenerator[list[Chunk], None]:
        """The chunks of a completion, a list a network read; the first list holds the first token. Ends only when whole."""
        ...

    async def embed(self, attempt: Attempt) -> Vectors:
        """Embeddings of `body["input"]`."""
        ...
