"""What an erasure keeps of itself, and what it asks of store and services."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from services.common.errors import Conflict
from services.orchestrator.records import RunRef, decode_ref, encode_ref

ORCHESTRATOR = "orchestrator"
# In this order in every receipt.
SERVICES = ("llm_gateway", "tool_executor", "memory")
PARTS = (ORCHESTRATOR, *SERVICES)


def being_erased() -> Conflict:
    """The error for what is begun by a user whom the orchestrator is erasing."""
    return Conflict(
        "what is held of this user is being erased; try again when that is done", reason="SUBJECT_BEING_ERASED", retry_after_s=5.0
    )


class ErasureRef(NamedTuple):
    """Where an erasure is."""

    tenant: str
    erasure_id: str

    def encode(self) -> str:
        """As encode_ref."""
        return encode_ref(*self)

    @classmethod
    def decode(cls, text: str) -> "ErasureRef":
        """The inverse of `encode`. Raises ValueError."""
        return cls(*decode_ref(text, 1))


@dataclass(frozen=True, slots=True)
class Part:
    """What one service has done: how often it was tried, why the last try was not the end, what was erased; `done_ms` 0: not done."""

    attempts: int = 0
    reason: str = ""
    erased: Mapping[str, int] = field(default_factory=dict)
    done_ms: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.done_ms > 0


@dataclass(frozen=True, slots=True)
class ErasureRecord:
    """An erasure. `user` is empty once it is done; `digest` stands for the subject then."""

    ref: ErasureRef
    user: str
    digest: str
    created_ms: int
    done_ms: int
    parts: Mapping[str, Part]

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return self.done_ms > 0


class ErasureStore(Protocol):
    """The state store's side. Raises Overloaded while it is away."""

    async def begin(self, ref: ErasureRef, user: str, digest: str, print_: str) -> tuple[str, str]:
        """Makes an erasure durable and marks the user; (new, known, joined or mismatch; id of the one that stands)."""
        ...

    async def record(self, ref: ErasureRef) -> ErasureRecord | None:
        """An erasure."""
        ...

    async def tell(self, ref: ErasureRef, name: str, part: Part, *, done: bool) -> None:
        """Keeps how far a part has come. One that is done stays so."""
        ...

    async def finish(self, ref: ErasureRef, user: str) -> None:
        """Ends an erasure: the lists of the user's runs and threads, the mark, and the user's name in the record are gone."""
        ...

    async def note(self, ref: ErasureRef, wait_s: float) -> None:
        """Has an erasure looked at in `wait_s`, durably."""
        ...

    async def settle(self, ref: ErasureRef) -> None:
        """Nothing is left to look at."""
        ...

    async def due(self, most: int, again_in_s: float) -> list[ErasureRef]:
        """Erasures to look at now; they are due again in `again_in_s`."""
        ...

    async def want_files(self, settled_s: float) -> None:
        """Has the store's files written anew, not before `settled_s` from now."""
        ...

    async def runs(self, tenant: str, user: str) -> list[RunRef]:
        """All runs that are listed for the user."""
        ...

    async def threads(self, tenant: str, user: str) -> list[str]:
        """All threads that are listed for the user."""
        ...

    async def unquiet(self, refs: Sequence[RunRef]) -> tuple[list[RunRef], int]:
        """(runs that have not ended, how many others still have something on its way). What has ended sends nothing after this."""
        ...

    async def delete_runs(self, refs: Sequence[RunRef]) -> None:
        """Deletes what the tenant keeps of runs: where they are, messages to webhooks, feedback."""
        ...

    async def delete_messages(self, tenant: str, user: str) -> None:
        """Deletes messages to webhooks about the user's runs, also of runs that were deleted before."""
        ...

    async def delete_threads(self, tenant: str, threads: Sequence[str]) -> bool:
        """Deletes all that stands under the threads' names; False where a run of one is in line again."""
        ...


class SubjectEraser(Protocol):
    """EraseSubject of another service."""

    async def erase(self, service: str, user: str, key: str, sessions: Sequence[str]) -> Mapping[str, int]:
        """What was erased, by kind. Raises BulkheadError; doing it again is harmless. Called under a context with a token."""
        ...
