"""What the domain needs from outside, and what its layers offer each other."""

import math
from array import array
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from opentelemetry.context import Context

from services.common.identity import Principal
from services.llm_gateway.accounting.states import BudgetStates
from services.llm_gateway.chat import Answer, Chunk
from services.llm_gateway.failures import Failure
from services.llm_gateway.money import Usage
from services.llm_gateway.registry import Deployment


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Limits:
    """How long one attempt may take, in seconds; `ends_at` is on `time.monotonic()`.

    `first_token_s` bounds the silence before a stream's first token, `silent_s` the same before a whole answer.
    """

    connect_s: float
    first_token_s: float
    silent_s: float
    between_tokens_s: float
    ends_at: float


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Attempt:
    """One attempt at one deployment. `body` is the OpenAI request with the deployment's model; `parent` is the trace context.

    With `continues` the last message is the beginning of the answer, which the provider is to go on from without repeating it.
    `large` says that it takes long to translate. `unread` gets the chunks of a stream that had come when its reader left: nobody sees
    them, and they are billed. `sent` is False as long as an upstream that can tell has sent nothing: such an attempt costs nothing.
    """

    deployment: Deployment
    body: Mapping[str, Any]
    limits: Limits
    number: int
    parent: Context
    run_id: str = ""
    idempotency_key: str = ""
    continues: bool = False
    large: bool = False
    unread: list[Chunk] = field(default_factory=list)
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings in the order of the texts. `raw` is the provider's body where one exists, so that it can be relayed."""

    vectors: list[array]  # of type "f"
    input_tokens: int | None
    model: str
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents by relevance, best first, as (index in the request, score from 0 to 1). `input_tokens` None where none are told."""

    ranked: list[tuple[int, float]]
    input_tokens: int | None
    model: str
    search_units: int = 0


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

    async def rerank(self, attempt: Attempt) -> Ranking:
        """Ranks `body["documents"]` by `body["query"]`."""
        ...


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class WireRequest:
    """What goes to a provider: a POST of `body` to `url`. `headers` hold what the dialect needs, credentials included."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class StreamReader(Protocol):
    """Turns the bytes of one stream into chunks of OpenAI's shape. Pure: no input or output.

    `feed` and `end` raise UpstreamFault for an error event and for what is no stream.
    """

    @property
    def done(self) -> bool:
        """Whether the provider has said that nothing follows."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the answer is whole."""
        ...

    def feed(self, read: bytes) -> list[Chunk]:
        """The chunks that end within `read`, which may be cut anywhere."""
        ...

    def end(self) -> list[Chunk]:
        """What the end of the stream completes."""
        ...


class Dialect(Protocol):
    """One provider API as pure translation from and to OpenAI's shape: no input or output, no state between calls.

    Requests raise InvalidInput for what cannot be said in this API, and UpstreamFault (UNFIT) where another target could take it;
    the readers raise UpstreamFault.
    """

    def chat(self, attempt: Attempt, *, stream: bool) -> WireRequest:
        """A completion."""
        ...

    def read_answer(self, raw: bytes) -> Answer:
        """A body of status 200."""
        ...

    def reader(self) -> StreamReader:
        """A reader for one stream."""
        ...

    def embed(self, attempt: Attempt) -> WireRequest:
        """Embeddings."""
        ...

    def read_vectors(self, raw: bytes) -> Vectors:
        """A body of status 200."""
        ...

    def rerank(self, attempt: Attempt) -> WireRequest:
        """A ranking."""
        ...

    def read_ranking(self, raw: bytes) -> Ranking:
        """A body of status 200."""
        ...

    def failure(self, status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
        """What an answer of another status means; header names are in lower case. Status 200 is an error inside a success."""
        ...


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Ask:
    """The most that one attempt can cost, and who pays for it.

    `tokens` are input and output together, `cost_nanousd` is their price; `requests` is 1 for the first attempt of a call and 0
    for the others, which the caller did not ask for. After `expires_s` seconds without an end the attempt counts as lost.
    """

    call_id: str
    number: int
    principal: Principal
    group: str
    deployment_id: str
    provider: str
    operation: str
    tokens: int
    cost_nanousd: int
    expires_s: float
    requests: int = 1
    run_id: str = ""
    run_budget_microusd: int | None = None


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class LimitState:
    """A rate limit after a reserve, for headers: `kind` is requests or tokens, `reset_s` the time until it is full again."""

    kind: str
    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Ticket:
    """A reservation that stands until it is settled or released."""

    id: str
    ask: Ask
    limits: tuple[LimitState, ...] = ()


class Purse(Protocol):
    """Money and limits of tenants, users, teams, keys, models and runs. Each ticket ends exactly once."""

    async def reserve(self, ask: Ask) -> Ticket:
        """Takes the upper bound from every bucket, or from none.

        Raises BudgetExceeded, QuotaExceeded (with retry_after_s), or Overloaded when the store is away.
        """
        ...

    def settle(self, ticket: Ticket, usage: Usage, *, status: str, latency_s: float, metadata: Mapping[str, Any] | None = None) -> None:
        """Ends the ticket with what the attempt cost, and writes its line into the ledger. Does not wait.

        `status` is ok, or the failure class of an attempt that was billed all the same.
        """
        ...

    def release(self, ticket: Ticket) -> None:
        """Ends the ticket of an attempt that cost nothing. Does not wait."""
        ...

    async def budgets(self, principal: Principal, run_id: str = "") -> BudgetStates:
        """What limits the caller, and how it stands. Raises Overloaded when the store is away."""
        ...

    async def budget_left(self, principal: Principal) -> float:
        """The smallest share (0 to 1) that is left of the caller's money budgets; 1 without any. May be a few seconds old."""
        ...


@dataclass(slots=True)
class Permit:
    """Leave to ask one deployment; given back by `Gate.leave`."""

    deployment: Deployment
    probe: bool = False
    queued_s: float = 0.0
    token: Any = None


@dataclass(slots=True)
class Load:
    """What a gate must know of a call. `deadline` is on `time.monotonic()`.

    So is `queue_until`, until when a place is worth waiting for: the course of the call moves it from attempt to attempt.
    """

    tenant: str
    tier: str
    tokens: int
    cost_nanousd: int
    deadline: float
    low_priority: bool = False
    affinity: str = ""  # calls of one conversation or prompt prefix, so that they meet the same provider cache
    queue_until: float = math.inf


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """How one deployment does, as this process sees it. `breaker` is closed, open or half_open."""

    group: str
    deployment_id: str
    breaker: str
    retry_in_s: float
    in_flight: int
    queued: int
    latency_s: float
    failure_rate: float


class Gate(Protocol):
    """Decides which deployment is asked, and when: breakers, deployments' own limits, fair queues."""

    def pick(self, candidates: Sequence[Deployment], strategy: str, load: Load) -> Deployment | None:
        """The next to ask; None when every candidate's breaker is open."""
        ...

    def retry_after_s(self, candidates: Sequence[Deployment]) -> float:
        """Seconds until one of the candidates may be asked again."""
        ...

    async def enter(self, deployment: Deployment, load: Load) -> Permit:
        """Waits for a place. Raises UpstreamFault (BREAKER_OPEN, SATURATED) to try elsewhere, Overloaded when the queue is full."""
        ...

    def state(self, deployments: Iterable[Deployment]) -> list[DeploymentState]:
        """How these deployments do."""
        ...

    def leave(self, permit: Permit, failure: Failure | None, *, latency_s: float = 0.0, tokens: int = 0, cancelled: bool = False) -> None:
        """The attempt is over; called exactly once for each permit. `latency_s` is the time to the first token, or to the answer.

        A `cancelled` attempt says nothing about the deployment.
        """
        ...
