"""What the domain needs from outside, and the plain types that cross these borders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.identity import Principal

# "Never" as a time, so that one filter `expires_at > now` serves every row: the end of year 9999, in ms.
NEVER_MS = 253_402_300_799_000
DOCUMENT = "document"


class IndexUnavailable(Exception):
    """The vector store cannot be reached or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a session. `ended_ms` is Unix time; `tool_calls_json` a JSON array of {name, arguments, output}."""

    run_id: str
    user_text: str
    assistant_text: str
    ended_ms: int
    tool_calls_json: bytes = b""


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A long-term memory of one user of one tenant. Times are Unix ms; `expires_ms` is NEVER_MS for none."""

    memory_id: str
    text: str
    importance: float
    kind: str
    session_id: str
    created_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """The live version of a document. `collection` names where its rows are; `created_ms` is Unix time."""

    document_id: str
    version: int
    title: str
    content_type: str
    chunk_count: int
    size_bytes: int
    content_hash: str
    created_ms: int
    collection: str
    # Digest of who brought it; "" where that is not known.
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the index: a memory or a passage of a document."""

    pk: str
    tenant: str
    subject: str
    kind: str
    text: str
    terms: str
    dense: Sequence[float]
    expires_ms: int = NEVER_MS
    document_id: str = ""
    document_version: int = 0
    chunk_no: int = 0
    char_start: int = 0
    char_end: int = 0
    heading: str = ""
    content_hash: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """One row as a search found it; `similarity` is the route's own measure (cosine or BM25)."""

    pk: str
    similarity: float
    text: str
    document_id: str
    document_version: int
    char_start: int
    char_end: int
    heading: str
    content_hash: str


@dataclass(frozen=True, slots=True)
class Among:
    """Which rows a search may see: one tenant's documents, or the memories of one subject of it."""

    tenant: str
    subject: str = ""
    documents: bool = False
    document_ids: tuple[str, ...] = ()


class Sessions(Protocol):
    """Windows of sessions. Every method raises Overloaded when the state store is away."""

    async def append(self, tenant: str, user: str, session: str, turns: Sequence[Turn], key: str, print_: str) -> int:
        """Stores turns once per run; answers the turns in the window. Raises NotFound for another user's session."""

    async def window(self, tenant: str, user: str, session: str) -> list[Turn] | None:
        """Turns oldest first; None for a session that is not there or not the user's."""

    async def replace(self, tenant: str, user: str, session: str, turns: Sequence[Turn], forgotten: Sequence[str], as_of: int = 0) -> int:
        """Makes `turns` the window, and keeps those of the runs `forgotten` away; answers the turns in the window. Where it was replaced
        as of the number `as_of` (0: none) or a higher one, it stays.

        Raises NotFound for another user's session, and for one that was deleted."""

    async def delete(self, tenant: str, user: str, session: str) -> int | None:
        """Deletes the session; answers how many turns, None for another user's. What arrives late is dropped."""

    async def reset(self, tenant: str, user: str, session: str, ended_before_ms: int = 0) -> int | None:
        """Forgets the window, or of it what ended before that time, late arrivals included; answers how many turns, None as `window`."""

    async def erase(self, tenant: str, user: str, sessions: Sequence[str]) -> int:
        """Deletes all sessions of the user, and those of `sessions` that are the user's; answers how many."""


class Memories(Protocol):
    """Records of memories: the truth that the index follows. Every method raises Overloaded when the state store is away."""

    async def add(self, principal: Principal, record: MemoryRecord) -> MemoryRecord:
        """Stores a record for the principal's user, or answers the living one with the same text."""

    async def find(self, tenant: str, user: str, memory_ids: Sequence[str]) -> dict[str, MemoryRecord]:
        """The living records among these ids."""

    async def page(self, tenant: str, user: str, size: int, after: tuple[int, str] | None) -> tuple[list[MemoryRecord], bool]:
        """Newest first, after (created_ms, id); and whether there are more."""

    async def count(self, tenant: str, user: str) -> int:
        """How many there are, expired ones that are not yet purged included."""

    async def owners(self, cursor: int) -> tuple[int, list[Principal]]:
        """Some of the users who have memories, as the principal that wrote last, and the next cursor; 0 begins and ends."""

    async def remove(self, tenant: str, user: str, memory_id: str) -> bool:
        """Deletes a record; False when it was not there."""

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes all records of the user; answers how many."""


class Documents(Protocol):
    """Records of documents: they name the live version. Every method raises Overloaded when the state store is away."""

    async def reserve(self, tenant: str, document_id: str) -> int:
        """A version that nobody had before."""

    async def publish(self, tenant: str, record: DocumentRecord) -> bool:
        """Makes the record's version the live one; False when a later one is live already."""

    async def retitle(self, tenant: str, record: DocumentRecord) -> None:
        """Replaces the record if its version is still the live one."""

    async def find(self, tenant: str, document_ids: Sequence[str]) -> tuple[int, dict[str, DocumentRecord]]:
        """The tenant's epoch, which each publish and removal raises, and the records among these ids."""

    async def page(self, tenant: str, size: int, after: tuple[int, str] | None) -> tuple[list[DocumentRecord], bool]:
        """Newest first, after (created_ms, id); and whether there are more."""

    async def count(self, tenant: str) -> int:
        """How many there are."""

    async def remove(self, tenant: str, document_id: str) -> tuple[DocumentRecord, int] | None:
        """Deletes a record; answers it and the highest version that was ever reserved, None when it was not there."""


class Work(Protocol):
    """Work that must be done in the end, by this process or by another. Raises Overloaded when the state store is away."""

    async def intend(self, item: Mapping[str, Any], delay_s: float, *, removes: bool = False) -> str:
        """Stores the item, due after `delay_s`; answers its ticket. What `removes` something is taken by a store without memory as well."""

    async def settle(self, ticket: str) -> None:
        """The item is done."""

    async def drop(self, tenant: str, user: str) -> int:
        """Takes out the items that are to be done for a user; answers how many."""

    async def claim(self, count: int, lease_s: float) -> list[tuple[str, dict[str, Any]]]:
        """Due items with their tickets; they come again after `lease_s` unless settled."""


class Index(Protocol):
    """Dense and keyword search. Every method raises IndexUnavailable when the store cannot answer."""

    async def collection(self, dimension: int = 0) -> str:
        """The collection of the embedding model, made when `dimension` is given; "" while none is known."""

    async def insert(self, collection: str, rows: Sequence[Row]) -> None:
        """Adds rows whose keys are new."""

    async def upsert(self, collection: str, rows: Sequence[Row]) -> None:
        """Adds or replaces rows."""

    async def delete_memory(self, tenant: str, memory_id: str) -> None:
        """Deletes the row of a memory from every collection that this model has."""

    async def delete_subject(self, tenant: str, user: str) -> None:
        """Deletes the rows of all memories of a user from every collection."""

    async def delete_versions(self, tenant: str, document_id: str, first: int, last: int) -> None:
        """Deletes the rows of a document's versions `first` to `last`."""

    async def dense(self, among: Among, vector: Sequence[float], limit: int) -> list[Hit]:
        """Nearest rows by cosine similarity."""

    async def keyword(self, among: Among, terms: str, limit: int) -> list[Hit]:
        """Best rows by BM25 over terms as `terms.query_terms` makes them."""


class Embedder(Protocol):
    """Embeddings of the configured model. Raises the domain errors of llm_gateway."""

    async def query(self, text: str) -> Sequence[float]:
        """The embedding of one query, from a small cache where it is known."""

    def forget_queries(self) -> None:
        """Empties that cache."""

    async def passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One embedding a text; batched so that every message stays below 4 MiB."""
