"""What the domain needs from outside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from services.common.identity import Principal
from services.tool_executor.outcomes import Citation


class Verdict(StrEnum):
    """What a ledger found under a key."""

    CLAIMED = "claimed"  # the call is the caller's to make
    RUNNING = "running"  # somebody is at it
    DONE = "done"  # it has ended, with a stored result of any outcome
    UNKNOWN = "unknown"  # whoever was at it is gone, and the tool must not be run twice
    MISMATCH = "mismatch"  # the key was used for another call


@dataclass(frozen=True, slots=True)
class Record:
    """One call as the ledger knows it. Times are seconds of the store's clock since 1970."""

    verdict: Verdict
    tool: str = ""
    version: str = ""
    started_at: float = 0.0
    left_s: float = 0.0
    meta: bytes = b""
    output: bytes = b""


@dataclass(frozen=True, slots=True)
class Entry:
    """A call to be claimed. `pinned`: the caller asked for this version and for no other.

    `again`: how often a person had it made again after its outcome stayed unknown; each of these times claims it at most once.
    `of_run`: a step of a run that was accepted, which goes on where the store's memory is full.
    """

    tenant: str
    key: str
    fingerprint: str
    tool: str
    version: str
    pinned: bool
    repeatable: bool
    token: str
    lease_s: float
    again: int = 0
    # Whose call it is; "" where nobody is to be found by it.
    user: str = ""
    of_run: bool = False


class CallLedger(Protocol):
    """Durable records of calls by tenant and key, kept for at least 24 hours. Every method raises Overloaded without a store."""

    async def begin(self, entry: Entry) -> Record:
        """Claims the call, or answers what is known of it. The claim of a call that must not be made twice outlasts the loss of a store.
        Where Overloaded is raised it may have been made all the same."""

    async def renew(self, entry: Entry) -> None:
        """Moves the end of the lease to `lease_s` from now."""

    async def finish(self, entry: Entry, meta: bytes, output: bytes, *, free: bool) -> bool:
        """Stores the result, which lasts as the claim does; False when the claim was lost. `free`: the key may be claimed again, as
        nothing has happened."""

    async def read(self, tenant: str, key: str) -> Record | None:
        """What is known of a call, None when the key was never seen."""

    async def stop(self, tenant: str, key: str, never_begun: bytes, *, for_good: bool) -> Record | None:
        """Asks for the end of a call and answers what is known of it now. `for_good`: the key is never to run anything again, also
        where it was never seen; `never_begun` is the meta of such a call. None for an unknown key that may still be used."""

    async def stopping(self, entry: Entry) -> bool:
        """Whether somebody asked for the end of the call that this claim stands for."""

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes the calls of a user; answers how many. What is at work then stores no result."""


class LastResults(Protocol):
    """The last good results of tools that change nothing, by tenant, user and name of the call."""

    async def keep(self, tenant: str, user: str, name: str, output: bytes, kept_s: float) -> None:
        """Keeps a result for about that long. Never raises: what cannot be kept is lost."""

    async def last(self, tenant: str, user: str, name: str) -> tuple[float, bytes] | None:
        """The age in seconds and the output; None where none is known. Never raises."""

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes what is kept of a user; answers how many. Raises Overloaded without a store."""


class RateLimit(Protocol):
    """Tool calls per minute of a user."""

    async def take(self, principal: Principal) -> None:
        """Raises QuotaExceeded, or Overloaded without a store."""


@dataclass(frozen=True, slots=True)
class FoundPassage:
    """A passage of a document."""

    text: str
    citation: Citation


class Documents(Protocol):
    """Search in the documents of the caller's tenant."""

    async def search(self, query: str, limit: int) -> Sequence[FoundPassage]:
        """Passages by falling score. Raises ToolFailure."""


class Sandbox(Protocol):
    """Runs Python code without files and network."""

    async def run(self, code: str, limits: Mapping[str, Any], printed: Callable[[str], None]) -> Any:
        """The value of the last expression, JSON-ready. Calls `printed` in the event loop. Raises ToolFailure."""


@dataclass(frozen=True, slots=True)
class Page:
    """A fetched page. `truncated`: the body was longer than was read."""

    url: str
    status: int
    content_type: str
    charset: str
    body: bytes
    truncated: bool


Allowed = Callable[[str, str, int], bool | None]
"""Whether a scheme, host and port may be fetched: None for no, else whether private addresses are fine there."""


class Web(Protocol):
    """GET requests into the open web, one connection to one checked address at a time."""

    async def get(self, url: str, allowed: Allowed, max_bytes: int, progress: Callable[[int, int | None], None]) -> Page:
        """Fetches `url`, following redirects that are allowed as well; at most `max_bytes` of the body. Raises ToolFailure.

        `progress` hears how many bytes have come, and of how many where that is known.
        """
