"""What batches need of a provider that executes them itself. One implementation for each API: OpenAI's, Anthropic's, Gemini's."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment


class ProviderFailed(Exception):
    """A provider's batch API refused, failed or could not be reached; `permanent` where asking again is no use.

    `refused` says that the provider has heard the request and has not done it; `missing` that there is no such thing.
    """

    def __init__(self, message: str, *, permanent: bool = False, missing: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.missing = missing
        self.refused = refused


class NotYetKnown(ProviderFailed):
    """The provider holds batches that may be the one that is looked for, and will tell once they have ended."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What is handed to a provider. `label` is the id of our batch; `content` opens the file of all lines, and may be called again."""

    label: str
    endpoint: str
    lines: int
    content: Callable[[], AbstractAsyncContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True)
class ProviderBatch:
    """A batch as its provider tells of it; `status` in OpenAI's words. `results` say where its results are. Without `counted` nobody knows
    yet how many lines it has done.
    """

    id: str
    status: str
    results: Sequence[str] = ()
    completed: int = 0
    failed: int = 0
    counted: bool = True


@dataclass(frozen=True, slots=True)
class LineResult:
    """What a provider has done with line `number`.

    `status` and `body` are the answer as the line's own route would give it; a status of 0 is no answer, and the line is executed here.
    `usage` is in OpenAI's shape. With `billed` the provider takes money for it, counted or not.
    """

    number: int
    status: int = 0
    body: bytes = b""
    request_id: str = ""
    usage: Mapping[str, Any] | None = None
    billed: bool = False


class Provider(Protocol):
    """The batch API of the provider of a deployment. All that waits raises ProviderFailed."""

    def serves(self, deployment: Deployment, endpoint: str) -> bool:
        """Whether requests of that endpoint can be executed there."""
        ...

    def prices(self, deployment: Deployment) -> Prices:
        """What a token of a batch costs there."""
        ...

    def line(self, deployment: Deployment, endpoint: str, label: str, number: int, body: Mapping[str, Any]) -> bytes | None:
        """The line to send for a whole request in OpenAI's shape; None for one that cannot be said to this API. Pure."""
        ...

    async def stage(self, deployment: Deployment, submission: Submission) -> str:
        """What comes before the batch is begun. The answer is recorded then: by it `find` knows the batch again."""
        ...

    async def begin(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch:
        """Begins the batch."""
        ...

    async def find(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch | None:
        """The batch, if it was begun. Raises NotYetKnown."""
        ...

    async def get(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """A batch as it stands."""
        ...

    async def cancel(self, deployment: Deployment, batch_id: str) -> None:
        """Asks for its end. What a provider refuses for good, as for one that has ended already, is permanent."""
        ...

    def results(self, deployment: Deployment, label: str, found: ProviderBatch) -> AsyncIterator[LineResult]:
        """What it has done, in any order. Lines of other batches and what cannot be read are left out."""
        ...

    def leftovers(self, staged: str, found: ProviderBatch | None) -> Sequence[str]:
        """What of the tenant's is left with the provider."""
        ...

    async def delete(self, deployment: Deployment, leftover: str) -> None:
        """Removes it."""
        ...
