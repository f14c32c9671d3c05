"""What the files of the state store keep of erased subjects goes once the store writes them anew, which it is asked for after erasures.

An append-only file holds what was written until it is rewritten; left to itself the store does so when the file has doubled. All
erasures of some minutes share one rewrite: it costs a fork and the writing of all that the store holds.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

import structlog
from opentelemetry.metrics import get_meter

from services.orchestrator.repeating import repeat

# Between two rewrites, whoever asks; one that is cut short is asked for again after the second.
LEAST_S = 300.0
AGAIN_S = 60.0
# How long whoever asks watches, which is less than AGAIN_S; a rewrite that takes longer goes on.
WATCHED_S = 45.0
EVERY_S = 1.0
log = structlog.get_logger("bulkhead.erasure")
_asked = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_store_files_rewrites_total", description="Rewrites of the state store's files after erasures, by outcome."
)


class Outcome(StrEnum):
    """What became of a rewrite at one server."""

    REWRITTEN = "rewritten"
    # It goes on after WATCHED_S.
    UNDER_WAY = "under_way"
    # The server keeps no such file.
    NO_FILE = "no_file"
    # One that began before was at work, and may have read what is erased now.
    BUSY = "busy"
    # Or the server was lost before it could be seen to be done.
    FAILED = "failed"
    # The command is not allowed here, or not known.
    REFUSED = "refused"
    # Its address leads nowhere from here.
    UNREACHABLE = "unreachable"


# Asked for again in AGAIN_S; the others are final, so that nobody asks for what he does not get for ever.
NOT_YET = frozenset({Outcome.BUSY, Outcome.FAILED})
_AS_WANTED = frozenset({Outcome.REWRITTEN, Outcome.UNDER_WAY, Outcome.NO_FILE})


class Rewritten(NamedTuple):
    """The outcome at a server (`primary`, or `replica host:port`); `detail` is what the server said."""

    server: str
    outcome: Outcome
    detail: str = ""


class FilesWanted(Protocol):
    """Of ErasureStore. Raises Overloaded while the store is away."""

    async def take_files(self, again_s: float, least_s: float) -> int:
        """The date (ms) from which on files are asked for, which nobody else is given for `again_s`; 0: none are, or too soon."""
        ...

    async def done_files(self, at_ms: int) -> None:
        """Files were asked for at that date."""
        ...


class StoreFiles(Protocol):
    """The servers of the state store."""

    async def rewrite(self, watched_s: float) -> Sequence[Rewritten]:
        """Asks each of them to write its file anew and watches it. Raises Overloaded while the primary is away."""
        ...


class Rewriting:
    """The use case."""

    def __init__(self, wanted: FilesWanted, files: StoreFiles, *, least_s: float = LEAST_S, again_s: float = AGAIN_S) -> None:
        """`least_s` stands between two rewrites, `again_s` between two tries of one."""
        self._wanted, self._files, self._least_s, self._again_s = wanted, files, least_s, again_s

    async def run(self) -> None:
        """Looks until cancelled; a store that is away is tried again."""

        async def once() -> int:
            await self.look()
            return 0

        await repeat("erased-files", once, 1, EVERY_S)

    async def look(self) -> Sequence[Rewritten]:
        """Has files written anew where that is wanted; what became of it. Raises Overloaded."""
        at_ms = await self._wanted.take_files(self._again_s, self._least_s)
        if not at_ms:
            return ()
        found = await self._files.rewrite(WATCHED_S)
        for server, outcome, detail in found:
            _asked.add(1, {"outcome": outcome})
            if outcome in _AS_WANTED:
                log.info("store_files_rewritten", server=server, outcome=outcome)
            else:
                log.warning("store_files_not_rewritten", server=server, reason=outcome, detail=detail, again=outcome in NOT_YET)
        if NOT_YET.isdisjoint(outcome for _, outcome, _ in found):
            await self._wanted.done_files(at_ms)
        return found
