"""A thread without its log, for a client whose place in the log is no longer kept.

The order of the reads is what makes it fit together with the log: first where the log ends, then which run is at work, then the runs.
What happens in between is told of twice, by a run and by events behind the snapshot's number, and never by neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import NotFound
from services.common.identity import Principal
from services.orchestrator.approvals.deciding import MOST_LOOKED_AT, Deciding, Seen
from services.orchestrator.records import RunRecord, RunRef, ThreadRecord
from services.orchestrator.run_store import RunStore

MOST_RUNS = 100
MOST_APPROVALS = 100
# Of the texts of the runs, and of the arguments of the approvals; what is around them is small.
MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A thread as it stands: from `resume_after_seq` on the log tells the rest. `older_than` is the position in the list of the thread's
    runs below which those are that are not here, 0 where there are none."""

    thread: ThreadRecord
    resume_after_seq: int
    runs: Sequence[RunRecord]
    approvals: Sequence[Seen]
    older_than: int


class Snapshots:
    """Makes them."""

    def __init__(self, store: RunStore, deciding: Deciding) -> None:
        self._store, self._deciding = store, deciding

    async def of(self, principal: Principal, thread_id: str) -> Snapshot:
        """A thread of the caller. Raises NotFound, Overloaded."""
        ref = RunRef(principal.tenant, thread_id, "-")
        thread = await self._store.thread(principal.tenant, principal.user, thread_id)
        if thread is None:
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        first = await self._at_work(ref, principal.user)
        members = await self._store.list_members("thread", ref.tenant, principal.user, 0, MOST_RUNS + 1, thread_id)
        others = [(run_id, at) for run_id, at in members if first is None or run_id != first.run_id]
        asked = [ref._replace(run_id=run_id) for run_id, _ in others[:MOST_RUNS]]
        records = {record.run_id: record for record in await self._store.runs(asked)}
        shown, size = [first] if first is not None else [], _size(first) if first is not None else 0
        older_than = 0
        for run_id, position in others:
            record = records.get(run_id)
            if record is None and len(members) <= MOST_RUNS:
                # Deleted meanwhile.
                continue
            size += _size(record) if record is not None else 0
            if record is None or len(shown) == MOST_RUNS or (shown and size > MOST_BYTES):
                older_than = position + 1
                break
            shown.append(record)
        # Of a run that has begun, the text so far stands nowhere but in the log. Nobody but the first of the line has begun.
        begun = first is not None and bool(first.attempt) and not first.ended
        resume = min(thread.last_seq, first.first_seq - 1) if first is not None and begun else thread.last_seq
        approvals = await self._approvals(principal, first.run_id) if first is not None and begun else []
        return Snapshot(thread, resume, shown, approvals, older_than)

    async def _at_work(self, ref: RunRef, user: str) -> RunRecord | None:
        run_id = await self._store.at_work(ref, user)
        return await self._store.run(ref._replace(run_id=run_id)) if run_id else None

    async def _approvals(self, principal: Principal, run_id: str) -> list[Seen]:
        found, _ = await self._deciding.list_(
            principal, run_id=run_id, thread_id="", state="open", decidable=False, before=0, size=MOST_LOOKED_AT
        )
        shown: list[Seen] = []
        size = 0
        for seen in reversed(found):
            size += len(seen.interrupt.arguments.encode()) + len(seen.interrupt.schema.encode())
            if len(shown) == MOST_APPROVALS or (shown and size > MOST_BYTES):
                break
            shown.append(seen)
        return shown


def _size(record: RunRecord) -> int:
    """About the bytes of a run's texts."""
    said = sum(len(message["text"].encode()) for message in record.spec.input)
    return said + len(record.result.get("output_text", "").encode()) + 1_000 * len(record.result.get("citations", ()))
