"""What files and batches need from outside."""

from collections.abc import AsyncIterable, AsyncIterator, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from services.common.errors import BulkheadError
from services.common.identity import Principal
from services.llm_gateway.batches.journal import Entry, Results
from services.llm_gateway.batches.records import BatchRecord, BatchSpec, FileRecord, Progress
from services.llm_gateway.batches.requests import Scan
from services.llm_gateway.money import NOTHING, Usage
from services.llm_gateway.ports import Ask, Purse, Ticket


class ContentTooLarge(Exception):
    """More bytes than may be stored; nothing was kept."""


class LeaseLost(Exception):
    """Another holder has the batch, or it is gone: nothing more may be written."""


class Contents(Protocol):
    """Contents of files on a disk that all replicas share. Raises Overloaded (STORAGE_FULL, STORAGE_UNAVAILABLE)."""

    async def write(self, tenant: str, file_id: str, pieces: AsyncIterable[bytes], most: int) -> int:
        """Stores all of the pieces, or nothing; answers their bytes. Raises ContentTooLarge beyond `most` of them."""
        ...

    def read(self, tenant: str, file_id: str) -> AsyncIterator[bytes]:
        """The content in pieces. Raises NotFound."""
        ...

    async def delete(self, tenant: str, file_id: str) -> bool:
        """Removes a content and what an interrupted write left of it; False where there was none."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of a list, and whether more follow."""

    items: Sequence[Any]
    more: bool


class FileRecords(Protocol):
    """Records of files. Raises Overloaded without a store."""

    async def now_ms(self) -> int:
        """The store's clock, Unix milliseconds."""
        ...

    async def announce(self, tenant: str, file_id: str, due_ms: int) -> None:
        """Says that a content may come to be, so that it is found if nobody ever writes its record."""
        ...

    async def hold(self, tenant: str, file_id: str, size_bytes: int, most_bytes: int = -1, most_files: int = -1) -> bool:
        """Counts a content at `size_bytes` from here on. False where the tenant's contents together were more than `most_bytes` or
        `most_files` then, and nothing is counted; below 0 there is no bound.
        """
        ...

    async def free(self, tenant: str, file_id: str) -> None:
        """The content is gone and counts no more, or only for as long as a batch keeps it. Doing it again is harmless."""
        ...

    async def keep(self, tenant: str, file_id: str, batch_id: str) -> None:
        """The batch keeps the content, which counts until the batch leaves it, deleted or not. Doing it again is harmless."""
        ...

    async def leave(self, tenant: str, batch_id: str) -> None:
        """The batch keeps nothing any more. Doing it again is harmless."""
        ...

    async def put(self, record: FileRecord) -> None:
        """Writes a record."""
        ...

    async def get(self, tenant: str, file_id: str) -> FileRecord | None:
        """A record."""
        ...

    async def list(self, tenant: str, *, after: str, limit: int, purpose: str, ascending: bool) -> Page:
        """Records by time of creation, behind `after`. Raises InvalidInput for an `after` that is none."""
        ...

    async def delete(self, tenant: str, file_id: str) -> bool:
        """Removes a record; False where there was none."""
        ...

    async def of_user(self, tenant: str, user: str) -> Sequence[FileRecord]:
        """All files of a user."""
        ...

    async def due(self, limit: int) -> Sequence[tuple[str, str]]:
        """(tenant, id) of files whose time has come, or that were announced and never written."""
        ...

    async def settle_due(self, tenant: str, file_id: str, due_ms: int) -> None:
        """Puts the time of a file, 0 for never."""
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to execute a batch until the lease ends. `now_ms` is the store's clock."""

    record: BatchRecord
    epoch: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the store says of a batch at a renewal."""

    cancelling: bool
    erased: bool
    now_ms: int


class BatchRecords(Protocol):
    """Records of batches and their leases. Raises Overloaded without a store."""

    async def create(self, tenant: str, batch_id: str, spec: BatchSpec, fingerprint: str) -> BatchRecord:
        """Writes a batch that begins now; one of the same id is answered as it is. Raises IdempotencyMismatch for another fingerprint."""
        ...

    async def get(self, tenant: str, batch_id: str) -> BatchRecord | None:
        """A batch."""
        ...

    async def list(self, tenant: str, *, after: str, limit: int) -> Page:
        """Batches, newest first, behind `after`. Raises InvalidInput for an `after` that is none."""
        ...

    async def cancel(self, tenant: str, batch_id: str) -> tuple[bool, BatchRecord] | None:
        """Asks for the end of a batch; False with a batch that has ended. None without one."""
        ...

    async def erase(self, tenant: str, batch_id: str) -> bool:
        """Removes a batch that has ended; one that has not ends at once and is removed by its holder. False where it is gone."""
        ...

    async def of_user(self, tenant: str, user: str) -> Sequence[BatchRecord]:
        """All batches of a user."""
        ...

    async def due(self, limit: int) -> Sequence[tuple[str, str]]:
        """(tenant, id) of batches that nobody holds, or whose lease has ended."""
        ...

    async def claim(self, tenant: str, batch_id: str, lease_s: float) -> Claim | bool:
        """Takes the lease in a new epoch; False where somebody holds it, True where it has ended or is gone, and nobody looks after what
        is left of it.
        """
        ...

    async def renew(self, claim: Claim, lease_s: float, progress: Progress | None = None, *, enter: str = "", **fields: Any) -> Standing:
        """Holds the lease on and writes what is known. Raises LeaseLost."""
        ...

    async def release(self, claim: Claim, after_s: float = 0.0) -> None:
        """Gives the lease back; another holder may take it after `after_s`. Where it was lost, somebody looks whether the batch has ended:
        what this holder has left behind since is nobody's.
        """
        ...

    async def finish(
        self, claim: Claim, status: str, progress: Progress, files: Mapping[str, FileRecord], errors: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The end of a batch, once: answers the status that it has got, which is cancelled where that was asked for. `files` are its
        output and error, by these names. Raises LeaseLost.
        """
        ...

    async def forget_due(self, tenant: str, batch_id: str) -> None:
        """Nobody needs to look at the batch any more."""
        ...


@dataclass(frozen=True, slots=True)
class Answered:
    """What a route answered to one line. `body` is JSON; `error` is the domain error behind a body that tells of one."""

    status: int
    body: bytes
    request_id: str
    usage: Usage = NOTHING
    error: BulkheadError | None = None


class Lines(Protocol):
    """Executes single lines."""

    async def call(self, endpoint: str, body: Mapping[str, Any], principal: Principal, *, key_checked: bool) -> Answered:
        """Asks the route of `endpoint`, as if `principal` had sent `body`; with `key_checked` its key must be valid still.

        Raises nothing but cancellation.
        """
        ...


class KeyCheck(Protocol):
    """Whether a stored principal may still act."""

    async def __call__(self, principal: Principal) -> None:
        """Raises Unauthenticated for a key that has ended or is blocked, Overloaded without a store."""
        ...


class BatchPurse(Purse, Protocol):
    """A purse whose tickets can be handed on to another process."""

    async def reserve(self, ask: Ask, *, ticket_id: str = "") -> Ticket:
        """As Purse.reserve, for a ticket that its caller names, so that it can be found again after a crash."""
        ...

    async def adopt(self, ticket_id: str, ask: Ask) -> Ticket:
        """The ticket of a reservation that another process has made. Raises as `reserve`."""
        ...

    async def drain(self, timeout_s: float) -> int:
        """Waits until all that was settled and released has reached the store; answers how much has not after `timeout_s`."""
        ...


class Journal(Protocol):
    """Where results of one epoch are kept."""

    async def append(self, entry: Entry) -> None:
        """Returns when the entry will survive a crash. A full disk is waited for. Raises LeaseLost after `close`."""
        ...

    async def close(self) -> None:
        """Ends it; what waits for the disk is given up."""
        ...


class Workspace(Protocol):
    """What the disk holds of one batch. All but the journal blocks. Raises Overloaded for a disk that cannot be used."""

    def begin(self, input_file_id: str) -> None:
        """Takes the input: what happens to the uploaded file from here on does not matter. Raises NotFound."""
        ...

    def scan(self, endpoint: str) -> Scan:
        """Reads the whole input."""
        ...

    def line(self, offset: int, length: int) -> bytes:
        """One request of the input."""
        ...

    def results(self, total: int) -> Results:
        """What the journals of all epochs hold."""
        ...

    def journal(self, epoch: int, results: Results) -> Journal:
        """Begins the journal of this epoch; its entries go to `results` once they are safe."""
        ...

    def merged(self, scan: Scan, results: Results, wants_failed: bool) -> Generator[tuple[int, bytes | None], None, None]:
        """Pairs of line and result in the order of the input: those that failed, or those that did not. A line without a result counts
        as failed, and its result is None.
        """
        ...

    def scratch(self, name: str) -> BinaryIO:
        """An empty file."""
        ...

    def remove(self) -> None:
        """Forgets it all."""
        ...
