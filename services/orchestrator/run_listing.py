"""Lists of runs: newest first, page by page, of all of a caller's or of a thread, those that fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.identity import Principal
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.run_store import RunStore

# Read at once where most may not fit.
CHUNK = 100
# A page of a filtered list ends behind so many, however few of them fit: no call reads all that a caller has ever run.
MOST_LOOKED_AT = 2_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a listed run must be: of one of `statuses` and of `agent`; empty means any."""

    statuses: frozenset[str] = frozenset()
    agent: str = ""

    @property
    def all(self) -> bool:
        """Whether every run fits."""
        return not (self.statuses or self.agent)

    def fits(self, record: RunRecord) -> bool:
        """Whether a run is listed."""
        return (not self.statuses or record.status in self.statuses) and self.agent in ("", record.spec.agent)


async def list_runs(
    store: RunStore, caller: Principal, thread_id: str, wanted: Wanted, size: int, before: int
) -> tuple[Sequence[RunRecord], int]:
    """At most `size` runs older than the position `before` (0: the newest), and the position to go on from; 0 where nothing is left.

    A page may hold fewer, also none, and others may still come. Raises Overloaded.
    """
    kind, found, looked = "thread" if thread_id else "runs", [], 0
    while True:
        # Where all are wanted, all but the records that are gone fit.
        chunk = size if wanted.all and not looked else min(CHUNK, MOST_LOOKED_AT - looked)
        members = await store.list_members(kind, caller.tenant, caller.user, before, chunk + 1, thread_id)
        left, members = len(members) > chunk, members[:chunk]
        refs = [
            RunRef(caller.tenant, thread_id, member) if thread_id else RunRef(caller.tenant, *member.split("/")) for member, _ in members
        ]
        records = {record.run_id: record for record in await store.runs(refs)} if refs else {}
        for number, (ref, (_, before)) in enumerate(zip(refs, members, strict=True), 1):
            record = records.get(ref.run_id)
            if record is not None and wanted.fits(record):
                found.append(record)
                if len(found) == size:
                    return found, before if left or number < len(members) else 0
        looked += len(members)
        if not left or looked >= MOST_LOOKED_AT:
            return found, before if left else 0
